"""The rungs and how each is launched."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from ....errors import UnsupportedError
from ....launch import CHUNK_BYTES, LANES, Capabilities, Launch, ParamStruct
from ....source import Define
from ...dtypes import ELEMENTS, accumulator, refuse_dtype

__all__ = ["RUNGS", "Kind", "Problem", "Rung", "Tiling", "launch", "tilings"]

_FOLDER = "ops/gemm/ladder"
_TILE = 16  # rows and columns of the matrix layer's unit
_QUAD = 4  # elements that a thread moves at once

#: What a rung's threads do: one element each, straight from device memory; blocks of elements, by single elements or by
#: quads; tiles of the matrix layer.
Kind = Literal["elements", "blocks", "quads", "matrices"]


@dataclass(frozen=True)
class Tiling:
    """Sizes of a rung's blocks.

    Attributes:
        BM, BN, BK: rows, columns and depth of a threadgroup's block.
        TM, TN: rows and columns that one thread computes.
        WM, WN: simdgroups that share the block's rows and columns, for rung 10.
        pad: elements between staged rows.
        stages: places for tiles in threadgroup memory.
    """

    BM: int
    BN: int
    BK: int = 1
    TM: int = 1
    TN: int = 1
    WM: int = 0
    WN: int = 0
    pad: int = 0
    stages: int = 1

    @property
    def threads(self) -> int:
        return self.WM * self.WN * LANES if self.WM else self.BM * self.BN // (self.TM * self.TN)


@dataclass(frozen=True)
class Rung:
    """One kernel of the ladder.

    Attributes:
        number: from 1.
        name: in a few words.
        file: its Metal file in this folder; rung 9 is rung 8's kernel with a tiling that a search finds.
        tiling: its sizes, for rung 9 those it starts from.
    """

    number: int
    name: str
    file: str
    kind: Kind
    tiling: Tiling

    @property
    def kernel(self) -> str:
        return "gemm_" + self.file.split("_", 2)[2].removesuffix(".metal")


_BLOCK = Tiling(128, 128, 8, 8, 8)
_DOUBLE = Tiling(128, 128, 8, 8, 8, stages=2)
_PADDED = Tiling(128, 128, 8, 8, 8, pad=4, stages=2)

RUNGS = (
    Rung(1, "naive", "rung_01_naive.metal", "elements", Tiling(32, 8)),
    Rung(2, "coalesced", "rung_02_coalesced.metal", "elements", Tiling(8, 32)),
    Rung(3, "threadgroup tiles", "rung_03_threadgroup_tiles.metal", "blocks", Tiling(32, 32, 32)),
    Rung(4, "1-D blocktiling", "rung_04_1d_blocktiling.metal", "blocks", Tiling(64, 64, 8, 8)),
    Rung(5, "2-D blocktiling", "rung_05_2d_blocktiling.metal", "blocks", _BLOCK),
    Rung(6, "vectorised", "rung_06_vectorised.metal", "quads", _BLOCK),
    Rung(7, "double buffering", "rung_07_double_buffering.metal", "quads", _DOUBLE),
    Rung(8, "no bank conflicts", "rung_08_bank_conflicts.metal", "quads", _PADDED),
    Rung(9, "autotuned", "rung_08_bank_conflicts.metal", "quads", _PADDED),
    Rung(10, "simdgroup matrices", "rung_10_simdgroup_matrix.metal", "matrices", Tiling(64, 64, 16, WM=2, WN=2)),
)


@dataclass(frozen=True)
class Problem:
    """``C [rows, columns] = A [rows, depth] B [depth, columns]``, contiguous.

    Attributes:
        aligned: all three start at multiples of 16 bytes.
    """

    dtype: torch.dtype
    rows: int
    columns: int
    depth: int
    aligned: bool = True


def _refuse(rung: Rung, problem: Problem, capabilities: Capabilities, tiling: Tiling) -> None:
    refuse_dtype(problem.dtype, capabilities)
    if max(problem.rows, problem.columns, problem.depth) >= 2**31 - 2**10:
        raise UnsupportedError(
            f"sizes {problem.rows} x {problem.columns} x {problem.depth} of a product do not fit in 32 bits"
        )
    threads, name = tiling.threads, f"a block of {tiling.BM} x {tiling.BN} x {tiling.BK}"
    if threads > capabilities.max_threads:
        raise UnsupportedError(f"{threads} threads are more than {capabilities.max_threads}")
    if rung.kind == "matrices" and (tiling.BM % (tiling.WM * _TILE) or tiling.BN % (tiling.WN * _TILE)):
        raise UnsupportedError(f"{name} is not made of 16 x 16 tiles for {tiling.WM} x {tiling.WN} simdgroups")
    if rung.kind == "quads":
        if any(size * tiling.BK % (_QUAD * threads) for size in (tiling.BM, tiling.BN)):
            raise UnsupportedError(f"{name} is no whole number of quads for each of {threads} threads")
        if rung.number >= 8 and (tiling.BM // tiling.TM % 4 or tiling.BN // tiling.TN % 8):
            raise UnsupportedError(f"{name} is not made of 4 x 8 threads with {tiling.TM} x {tiling.TN} elements each")
    if (used := _threadgroup_bytes(rung, problem, tiling)) > capabilities.threadgroup_bytes * _scale(problem):
        raise UnsupportedError(f"{used} bytes of threadgroup memory are more than {capabilities.threadgroup_bytes}")


def _scale(problem: Problem) -> int:
    """float64 exists for checks only and takes the tiles of float32, in twice the memory."""
    return 2 if problem.dtype == torch.float64 else 1


def _threadgroup_bytes(rung: Rung, problem: Problem, tiling: Tiling) -> int:
    size = problem.dtype.itemsize
    if rung.kind == "elements":
        return 0
    if rung.kind == "matrices":
        return (tiling.BM * tiling.BK + tiling.BK * tiling.BN) * size + (tiling.BM + tiling.BK) * CHUNK_BYTES
    return tiling.stages * tiling.BK * (tiling.BM + tiling.pad + tiling.BN) * size


def _defines(rung: Rung, problem: Problem, tiling: Tiling) -> tuple[Define, ...]:
    numbers: tuple[Define, ...] = (
        ("ELEMENT", ELEMENTS[problem.dtype]),
        ("ACCUMULATOR", accumulator(problem.dtype)),
        ("LADDER_ARGS_BYTES", ParamStruct.read(f"{_FOLDER}/args.h", "LadderArgs").size),
    )
    if rung.kind == "elements":
        return numbers
    blocks: tuple[Define, ...] = tuple((name, getattr(tiling, name)) for name in ("BM", "BN", "BK"))
    row_bytes = (problem.depth * problem.dtype.itemsize, problem.columns * problem.dtype.itemsize)
    if rung.kind == "matrices":
        aligned = problem.aligned and all(x % CHUNK_BYTES == 0 for x in row_bytes)
        own: tuple[Define, ...] = (("WM", tiling.WM), ("WN", tiling.WN), ("PAD", 1), ("ALIGNED", int(aligned)))
    else:
        vector = problem.aligned and problem.depth % _QUAD == 0 and problem.columns % _QUAD == 0
        own = (("TM", tiling.TM), ("TN", tiling.TN), ("PAD", tiling.pad))
        own = (*own, ("VECTOR", int(vector and rung.kind == "quads")))
    return (*numbers, *blocks, *own, ("THREADS", tiling.threads))


def launch(rung: Rung, problem: Problem, capabilities: Capabilities, tiling: Tiling | None = None) -> Launch:
    """The launch of a rung, on ``a, b, c``; with its own tiling unless one is given.

    Raises:
        UnsupportedError: with the reason, also for a tiling that cannot run.
    """
    tiling = tiling or rung.tiling
    _refuse(rung, problem, capabilities, tiling)
    words = ParamStruct.read(f"{_FOLDER}/args.h", "LadderArgs").pack(
        {"rows": problem.rows, "columns": problem.columns, "depth": problem.depth}, accumulator(problem.dtype)
    )
    threads: tuple[int, int, int]
    if rung.kind == "elements":
        x, y = (problem.rows, problem.columns) if rung.number == 1 else (problem.columns, problem.rows)
        threads, group = (x, y, 1), (32, 8, 1)
    else:
        across, down = -(-problem.columns // tiling.BN), -(-problem.rows // tiling.BM)
        threads, group = (across * tiling.threads, down, 1), (tiling.threads, 1, 1)
    return Launch(
        file=f"{_FOLDER}/{rung.file}",
        kernel=rung.kernel,
        defines=_defines(rung, problem, tiling),
        words=words,
        threads=threads,
        group_size=group,
        threadgroup_bytes=_threadgroup_bytes(rung, problem, tiling),
    )


def tilings() -> Iterator[Tiling]:
    """Those that rung 9 is chosen from, rung 8's first; some cannot run, and `launch` says why."""
    yield _PADDED
    blocks = ((64, 64), (128, 64), (64, 128), (128, 128), (256, 128), (128, 256))
    for (BM, BN), BK, (TM, TN) in itertools.product(
        blocks, (8, 16, 32), ((4, 4), (8, 4), (4, 8), (8, 8), (16, 8), (8, 16))
    ):
        tiling = Tiling(BM, BN, BK, TM, TN, pad=4, stages=2)
        if tiling != _PADDED:
            yield tiling
