"""Decides how a product of matrices is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...errors import UnsupportedError
from ...launch import CHUNK_BYTES, LANES, Capabilities, Launch, ParamStruct
from ...source import Define
from ..dtypes import ELEMENTS, accumulator, refuse_dtype
from .activation import Activation

__all__ = [
    "MAX_BATCH_DIMS",
    "BackwardProblem",
    "Operand",
    "Plan",
    "Problem",
    "Tiling",
    "backward_epilogue",
    "default_tiling",
    "product",
    "shape_class",
    "split_depth",
    "tilings",
    "wide_tilings",
]

#: Batch dimensions that the kernel walks over, after those were merged that can be.
MAX_BATCH_DIMS = 4

_FOLDER = "ops/gemm"
_TILE = 16  # rows and columns of the matrix layer's unit
_THREADS = 256  # of a threadgroup of the kernels without tiles
#: 32-bit registers a lane may spend on accumulators: of 128 that allow an Apple GPU its full number of threads, half.
_ACCUMULATOR_REGISTERS = 128
#: Columns of a block that warpgroups multiply, and those of the panels in which they read it.
_WARPGROUP_COLUMNS, _PANEL = (64, 128, 256), 64
#: Threadgroups below which a product leaves a GPU idle, so that its depth is split.
_BUSY_GROUPS = 64
#: Threadgroups of 128 x 128 that keep a large GPU busy.
_BUSY_WIDE_GROUPS = 128
#: Depth below which a further split costs more, in partial sums, than it brings.
_LEAST_SPLIT_DEPTH = 256
_MOST_SPLITS = 64


@dataclass(frozen=True)
class Operand:
    """Where the matrices of one operand lie.

    Attributes:
        depth_last: neighbours in depth are neighbours in memory; otherwise those in rows of A, or columns of B, are.
        stride: elements between neighbours in the other dimension.
        batch_strides: elements between matrices, 0 where broadcast; as many as the problem has batch dimensions.
        aligned: every row in memory starts at a multiple of 16 bytes and is a whole number of 16 bytes long.
    """

    depth_last: bool
    stride: int
    batch_strides: tuple[int, ...] = ()
    aligned: bool = False


@dataclass(frozen=True)
class Problem:
    """``C [batch, M, N] = activation(A [batch, M, K] B [batch, K, N] + bias [N])``: all that a plan may depend on.

    Attributes:
        batch: at most `MAX_BATCH_DIMS` sizes.
        save: ``A B + bias`` is wanted too.
    """

    dtype: torch.dtype
    batch: tuple[int, ...]
    rows: int
    columns: int
    depth: int
    a: Operand
    b: Operand
    bias: bool = False
    activation: Activation = Activation.NONE
    save: bool = False

    @property
    def accumulator(self) -> str:
        return accumulator(self.dtype)

    @property
    def batches(self) -> int:
        return math.prod(self.batch)


@dataclass(frozen=True)
class Tiling:
    """What may be chosen freely: it changes the speed of a product, and the order of its sums.

    Attributes:
        BM, BN: rows and columns of a threadgroup's block.
        BK: depth that is staged at a time.
        WM, WN: simdgroups that share the block's rows and columns.
        pad: a chunk of 16 bytes between staged rows, against bank conflicts.
        stages: 1, or more to stage that many steps less one ahead while one is multiplied.
        splits: parts that the depth is cut into, fewer where it is too short.
        group: rows of blocks that are computed together, for the cache.
    """

    BM: int
    BN: int
    BK: int
    WM: int
    WN: int
    pad: bool = True
    stages: int = 1
    splits: int = 1
    group: int = 8

    @property
    def threads(self) -> int:
        return self.WM * self.WN * LANES


@dataclass(frozen=True)
class Plan:
    """The launches of a product.

    Attributes:
        product: of ``gemm``, on ``a, b, bias, z, c``; with a reduction, ``c`` is its ``parts``.
        reduction: of ``gemm_reduce``, on ``parts, bias, z, c``; where the depth is split.
        splits: how many parts there are.
    """

    product: Launch
    reduction: Launch | None
    splits: int


def _blocks(problem: Problem, tiling: Tiling) -> tuple[tuple[Operand, int], ...]:
    """The operands, and how many rows or columns a block has of each."""
    return (problem.a, tiling.BM), (problem.b, tiling.BN)


def _by_warpgroups(problem: Problem, capabilities: Capabilities, tiling: Tiling) -> bool:
    """Whether four simdgroups at a time multiply together: elements of 16 bits, 16 rows to each, without padding.

    The rows of a block that a thread copies are eight apart, or a multiple of it.
    """
    columns = (tiling.BK if operand.depth_last else extent for operand, extent in _blocks(problem, tiling))
    return (
        capabilities.wgmma
        and all(tiling.threads % n == 0 for n in columns)
        and problem.dtype in (torch.float16, torch.bfloat16)
        and (tiling.WM % 4, tiling.WN, tiling.BM) == (0, 1, _TILE * tiling.WM)
        and tiling.BN in _WARPGROUP_COLUMNS
        and tiling.BK % _PANEL == 0
        and tiling.stages >= 3
        and not tiling.pad
    )


def _threadgroup_bytes(problem: Problem, tiling: Tiling) -> int:
    size = problem.dtype.itemsize
    pad = tiling.pad * CHUNK_BYTES
    total = 0
    for operand, extent in _blocks(problem, tiling):
        rows, columns = (extent, tiling.BK) if operand.depth_last else (tiling.BK, extent)
        total += rows * (columns * size + pad)
    return tiling.stages * total


def _limit(problem: Problem, capabilities: Capabilities) -> int:
    """Threadgroup memory. float64 exists for checks only and takes the tiles of float32, in twice the memory."""
    return capabilities.threadgroup_bytes * (2 if problem.dtype == torch.float64 else 1)


def _refuse(problem: Problem, capabilities: Capabilities) -> None:
    refuse_dtype(problem.dtype, capabilities)
    if max(problem.rows, problem.columns, problem.depth) >= 2**31 - 2**10:
        raise UnsupportedError(
            f"sizes {problem.rows} x {problem.columns} x {problem.depth} of a product do not fit in 32 bits"
        )


def _refuse_tiling(problem: Problem, capabilities: Capabilities, tiling: Tiling) -> None:
    if tiling.BM % (tiling.WM * _TILE) or tiling.BN % (tiling.WN * _TILE) or tiling.BK % _TILE:
        raise UnsupportedError(
            f"a block of {tiling.BM} x {tiling.BN} x {tiling.BK} is not made of {_TILE} x {_TILE} tiles for "
            f"{tiling.WM} x {tiling.WN} simdgroups"
        )
    if min(tiling.stages, tiling.splits, tiling.group) < 1:
        raise UnsupportedError(
            f"{tiling.stages} stages, {tiling.splits} splits, groups of {tiling.group}: accepted are positive numbers"
        )
    if tiling.threads > capabilities.max_threads:
        raise UnsupportedError(f"{tiling.threads} threads are more than {capabilities.max_threads}")
    registers = tiling.BM * tiling.BN // tiling.threads
    if registers > _ACCUMULATOR_REGISTERS:
        raise UnsupportedError(f"{registers} accumulators a lane are more than {_ACCUMULATOR_REGISTERS}")
    used = _threadgroup_bytes(problem, tiling)
    if used > _limit(problem, capabilities):
        raise UnsupportedError(f"{used} bytes of threadgroup memory are more than {_limit(problem, capabilities)}")


def shape_class(problem: Problem) -> str:
    """The class of problems that share a tuned tiling: sizes up to the same powers of two, operands that lie alike."""
    sizes = "x".join(str(1 << max(n - 1, 0).bit_length()) for n in (problem.rows, problem.columns, problem.depth))
    layout = "".join("t" if transposed else "n" for transposed in (not problem.a.depth_last, problem.b.depth_last))
    return f"{sizes}-{layout}-b{1 << max(problem.batches - 1, 0).bit_length()}"


def tilings(problem: Problem, capabilities: Capabilities) -> Iterator[Tiling]:
    """Every tiling worth timing, the default one first; some cannot run, and `product` says why."""
    first = default_tiling(problem, capabilities)
    yield first
    yield from (tiling for tiling in wide_tilings(problem, capabilities) if tiling != first)
    blocks = tuple(
        (BM, BN) for BM, BN in itertools.product((16, 32, 64, 128), repeat=2) if BM <= 4 * BN and BN <= 4 * BM
    )
    simdgroups = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (2, 4), (4, 2))
    splits = sorted({1, first.splits, 2 * first.splits})
    for (BM, BN), BK, (WM, WN), stages, split in itertools.product(blocks, (16, 32, 64), simdgroups, (1, 2), splits):
        for pad in (True, False):
            tiling = Tiling(BM, BN, BK, WM, WN, pad, stages, split)
            if tiling != first:
                yield tiling


def wide_tilings(problem: Problem, capabilities: Capabilities) -> Iterator[Tiling]:
    """Blocks for matrix units that copies keep waiting, the widest first; none on an Apple GPU."""
    by_warpgroups = (
        Tiling(BM, BN, BK=64, WM=BM // _TILE, WN=1, pad=False, stages=stages)
        for BM, BN, stages in ((128, 256, 4), (128, 128, 6), (64, 64, 4))
    )
    if problem.a.aligned and problem.b.aligned:
        yield from (tiling for tiling in by_warpgroups if _by_warpgroups(problem, capabilities, tiling))
    if capabilities.matrix_unit == "mma":
        yield Tiling(128, 128, BK=128 // min(problem.dtype.itemsize, 4), WM=2, WN=2, stages=2)


@functools.lru_cache(maxsize=1024)
def default_tiling(problem: Problem, capabilities: Capabilities) -> Tiling:
    """64 x 64 blocks, narrow ones for thin matrices, the depth split to fill a GPU; wide ones where these suffice to.

    The wide ones need more threadgroup memory than Metal has, and matrix units that copies keep waiting.
    """
    for wide in wide_tilings(problem, capabilities):
        blocks = -(-problem.rows // wide.BM) * -(-problem.columns // wide.BN) * problem.batches
        fits = _threadgroup_bytes(problem, wide) <= _limit(problem, capabilities)
        if fits and blocks >= _BUSY_WIDE_GROUPS:
            return wide
    BM = 16 if problem.rows <= 16 else 64
    BN = 16 if problem.columns <= 16 else 64
    BK = 32 if problem.dtype.itemsize == 2 else 16
    WM, WN = (2, 2) if BM == BN == 64 else (BM // 16, BN // 16)
    blocks = -(-problem.rows // BM) * -(-problem.columns // BN) * problem.batches
    splits = min(_BUSY_GROUPS // max(blocks, 1), problem.depth // _LEAST_SPLIT_DEPTH, _MOST_SPLITS)
    tiling = Tiling(BM, BN, BK, WM, WN, splits=max(splits, 1))
    if _threadgroup_bytes(problem, tiling) > _limit(problem, capabilities):
        tiling = dataclasses.replace(tiling, BM=min(BM, 32), BN=min(BN, 32), pad=False, WM=1, WN=1)
    return tiling


def _gemm_params() -> ParamStruct:
    return ParamStruct.read(f"{_FOLDER}/args.h", "GemmArgs")


def _epilogue_params() -> ParamStruct:
    return ParamStruct.read(f"{_FOLDER}/args.h", "EpilogueArgs")


def _number_defines(dtype: torch.dtype) -> tuple[Define, ...]:
    return (
        ("ELEMENT", ELEMENTS[dtype]),
        ("ACCUMULATOR", accumulator(dtype)),
        ("GEMM_ARGS_BYTES", _gemm_params().size),
        ("EPILOGUE_ARGS_BYTES", _epilogue_params().size),
    )


def _activation_defines(activation: Activation) -> tuple[Define, ...]:
    return (("ACTIVE", int(activation != Activation.NONE)), ("ACTIVATION", activation.struct))


def _epilogue_defines(problem: Problem) -> tuple[Define, ...]:
    return (
        ("BIAS", int(problem.bias)),
        *_activation_defines(problem.activation),
        ("SAVE", int(problem.save)),
    )


def split_depth(problem: Problem, tiling: Tiling) -> int:
    """The depth of each part of a split product but perhaps the last: whole steps, as many as make the parts even."""
    steps = -(-problem.depth // tiling.BK)
    return max(-(-steps // tiling.splits), 1) * tiling.BK


@functools.lru_cache(maxsize=1024)
def product(problem: Problem, capabilities: Capabilities, tiling: Tiling | None = None) -> Plan:
    """The launches of a product; the default tiling unless one is given.

    Raises:
        UnsupportedError: with the reason, also for a tiling that cannot run.
    """
    _refuse(problem, capabilities)
    tiling = tiling or default_tiling(problem, capabilities)
    _refuse_tiling(problem, capabilities, tiling)
    depth = split_depth(problem, tiling)
    splits = max(-(-problem.depth // depth), 1)
    groups = -(-problem.rows // tiling.BM) * -(-problem.columns // tiling.BN) * problem.batches * splits
    if groups * tiling.threads >= 2**32:
        raise UnsupportedError(f"{groups} blocks of {tiling.BM} x {tiling.BN} are more than a grid takes")
    whole, aligned = splits == 1, problem.a.aligned and problem.b.aligned
    defines: tuple[Define, ...] = (
        *_number_defines(problem.dtype),
        ("BM", tiling.BM),
        ("BN", tiling.BN),
        ("BK", tiling.BK),
        ("WM", tiling.WM),
        ("WN", tiling.WN),
        ("THREADS", tiling.threads),
        ("PAD", int(tiling.pad)),
        ("STAGES", tiling.stages),
        ("WGMMA", int(_by_warpgroups(problem, capabilities, tiling))),
        ("BATCH_DIMS", len(problem.batch) if len(problem.batch) <= 1 else MAX_BATCH_DIMS),
        ("ALIGNED", int(aligned)),
        ("A_DEPTH_LAST", int(problem.a.depth_last)),
        ("B_DEPTH_LAST", int(problem.b.depth_last)),
        ("PAIRS", int(aligned and problem.columns % 2 == 0)),
        ("RESULT", "element" if whole else "accum"),
        ("EPILOGUE", int(whole)),
        *(_epilogue_defines(problem) if whole else (("BIAS", 0), *_activation_defines(Activation.NONE), ("SAVE", 0))),
    )

    def padded(values: tuple[int, ...], fill: int) -> tuple[int, ...]:
        return values + (fill,) * (MAX_BATCH_DIMS - len(values))

    words = _gemm_params().pack(
        {
            "batch_size": padded(problem.batch, 1),
            "a_batch_stride": padded(problem.a.batch_strides, 0),
            "b_batch_stride": padded(problem.b.batch_strides, 0),
            "a_stride": problem.a.stride,
            "b_stride": problem.b.stride,
            "rows": problem.rows,
            "columns": problem.columns,
            "depth": problem.depth,
            "batches": problem.batches,
            "group": tiling.group,
            "split_depth": depth,
        },
        problem.accumulator,
    )
    launch = Launch(
        file=f"{_FOLDER}/gemm.metal",
        kernel="gemm",
        defines=defines,
        words=words,
        threads=(groups * tiling.threads, 1, 1),
        group_size=(tiling.threads, 1, 1),
        threadgroup_bytes=_threadgroup_bytes(problem, tiling),
    )
    return Plan(launch, None if whole else _reduction(problem, splits), splits)


def _reduction(problem: Problem, parts: int) -> Launch:
    elements = problem.batches * problem.rows * problem.columns
    if elements >= 2**31:
        raise UnsupportedError(f"{elements} elements of a product whose depth is split do not fit in 31 bits")
    return Launch(
        file=f"{_FOLDER}/reduce.metal",
        kernel="gemm_reduce",
        defines=(*_number_defines(problem.dtype), *_epilogue_defines(problem)),
        words=_epilogue_words(problem.dtype, elements=elements, columns=problem.columns, parts=parts),
        threads=(elements, 1, 1),
        group_size=(min(elements, _THREADS), 1, 1),
        threadgroup_bytes=0,
    )


def _epilogue_words(
    dtype: torch.dtype, *, elements: int, columns: int, parts: int, rows: int = 0, part_rows: int = 0
) -> tuple[int, ...]:
    values = {"elements": elements, "columns": columns, "rows": rows, "parts": parts, "part_rows": part_rows}
    return _epilogue_params().pack(values, accumulator(dtype))


@dataclass(frozen=True)
class BackwardProblem:
    """The gradients of bias and activation, over all rows of all matrices: ``dC [rows, columns]``."""

    dtype: torch.dtype
    rows: int
    columns: int
    bias: bool
    activation: Activation


@functools.lru_cache(maxsize=1024)
def backward_epilogue(problem: BackwardProblem, capabilities: Capabilities) -> Plan:
    """The launches of ``gemm_epilogue_backward`` on ``dc, z, dz, parts``, and for a bias of ``gemm_reduce``.

    Raises:
        UnsupportedError: with the reason.
    """
    refuse_dtype(problem.dtype, capabilities)
    if max(problem.rows, problem.columns) >= 2**31 - 2**10:
        raise UnsupportedError(f"{problem.rows} rows and {problem.columns} columns do not fit in 32 bits")
    strips = -(-problem.columns // LANES)
    parts = max(min(_BUSY_GROUPS // strips, problem.rows // _THREADS), 1)
    part_rows = -(-problem.rows // parts)
    parts = -(-problem.rows // part_rows)
    words = _epilogue_words(
        problem.dtype,
        elements=problem.columns,
        columns=problem.columns,
        parts=parts,
        rows=problem.rows,
        part_rows=part_rows,
    )
    scratch = _THREADS * max(problem.dtype.itemsize, 4) if problem.bias else 0
    launch = Launch(
        file=f"{_FOLDER}/epilogue_backward.metal",
        kernel="gemm_epilogue_backward",
        defines=(
            *_number_defines(problem.dtype),
            ("THREADS", _THREADS),
            ("BIAS", int(problem.bias)),
            *_activation_defines(problem.activation),
        ),
        words=words,
        threads=(strips * _THREADS, parts, 1),
        group_size=(_THREADS, 1, 1),
        threadgroup_bytes=scratch,
    )
    sums = Problem(problem.dtype, (), 1, problem.columns, 0, Operand(True, 0), Operand(True, 0))
    return Plan(launch, _reduction(sums, parts) if problem.bias else None, parts)
