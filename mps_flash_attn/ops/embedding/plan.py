"""Decides how an embedding problem is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from ...errors import UnsupportedError
from ...launch import CHUNK_BYTES, LANES, Capabilities, Launch, ParamStruct
from ...source import Define
from ..dtypes import ELEMENTS, accumulator, refuse_dtype

__all__ = ["INDICES", "MAX_RANK", "Problem", "Tokens", "backward", "blocks", "forward", "renormalise"]

#: Metal's name of each dtype that indices may have.
INDICES = {torch.int32: "int", torch.int64: "long"}

#: Dimensions of the tokens that kernels tell apart; as in args.h.
MAX_RANK = 4

_FOLDER = "ops/embedding"
_THREADS = 256
#: Rows that a threadgroup of ``backward_order`` sorts for: each costs it 4 bytes a simdgroup, 16 KiB in all, and every
#: block of rows reads all indices.
_ROWS = 512


@dataclass(frozen=True)
class Tokens:
    """Where something of each token lies: its index, or its row of the gradient.

    Attributes:
        sizes: of the tokens' dimensions, merged.
        strides: over them, in elements.
        step: the largest number of bytes, up to 16, of which every row's address is a multiple.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    step: int = 0


@dataclass(frozen=True)
class Problem:
    """Everything about a call that a plan may depend on.

    Attributes:
        index_dtype: of the indices.
        indices: their places.
        rows, columns: V and D of the weight.
        row_stride: of the weight.
        step: the largest number of bytes, up to 16, of which the address and length of every row is a multiple.
        gradient: places of the rows of the output's gradient, in the backward pass.
        padding_row: the row that gets no gradient, or -1.
        by_count: each row's gradient is divided by the number of its tokens.
        column_stride, max_norm, norm_type: of the weight, the largest norm of a row and its order, where rows are
            renormalised.
    """

    dtype: torch.dtype
    index_dtype: torch.dtype
    indices: Tokens
    rows: int
    columns: int
    row_stride: int = 0
    step: int = 0
    gradient: Tokens | None = None
    padding_row: int = -1
    by_count: bool = False
    column_stride: int = 1
    max_norm: float = 0.0
    norm_type: float = 2.0

    @property
    def tokens(self) -> int:
        return math.prod(self.indices.sizes)


def blocks(problem: Problem) -> int:
    """Threadgroups of ``backward_order``, each of which reads all indices twice."""
    return problem.rows // _ROWS + 1


def _refuse(problem: Problem, capabilities: Capabilities) -> None:
    refuse_dtype(problem.dtype, capabilities)
    if max(problem.tokens, problem.rows, problem.columns) >= 2**31 - 2**10:
        raise UnsupportedError(
            f"{problem.tokens} indices, {problem.rows} rows and {problem.columns} columns do not fit in 32 bits"
        )


def _words(problem: Problem, read: Tokens) -> tuple[int, ...]:
    more = MAX_RANK - len(read.sizes)
    evenly = more == MAX_RANK - 1  # the kernel takes the first alone; otherwise all, the last fastest
    return _params().pack(
        {
            "sizes": (*read.sizes, *(1,) * more) if evenly else (*(1,) * more, *read.sizes),
            "strides": (*read.strides, *(0,) * more) if evenly else (*(0,) * more, *read.strides),
            "tokens": problem.tokens,
            "rows": problem.rows,
            "columns": problem.columns,
            "row_stride": problem.row_stride,
            "column_stride": problem.column_stride,
            "padding_row": problem.padding_row,
            "max_norm": problem.max_norm,
            "norm_type": problem.norm_type,
        },
        accumulator(problem.dtype),
    )


def _params() -> ParamStruct:
    return ParamStruct.read(f"{_FOLDER}/args.h", "EmbeddingArgs")


def _defines(dtype: torch.dtype, read: Tokens) -> tuple[Define, ...]:
    return (
        ("ELEMENT", ELEMENTS[dtype]),
        ("ACCUMULATOR", accumulator(dtype)),
        ("TOKEN_RANK", 1 if len(read.sizes) == 1 else MAX_RANK),
        ("ARGS_BYTES", _params().size),
    )


def _pack(problem: Problem, step: int) -> int:
    """Elements that a thread moves at once."""
    return CHUNK_BYTES // problem.dtype.itemsize if step == CHUNK_BYTES else 1


def _over_rows(name: str, defines: tuple[Define, ...], words: tuple[int, ...], width: int, rows: int) -> Launch:
    """A kernel of one thread for each of ``width`` places in each of ``rows``; threadgroups fit that width."""
    across = min(1 << (width - 1).bit_length(), _THREADS)
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel=f"embedding_{name}",
        defines=defines,
        words=words,
        threads=(width, rows, 1),
        group_size=(across, _THREADS // across, 1),
        threadgroup_bytes=0,
    )


@functools.lru_cache(maxsize=1024)
def forward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``embedding_forward``.

    Raises:
        UnsupportedError: with the reason.
    """
    _refuse(problem, capabilities)
    pack = _pack(problem, problem.step)
    defines = (
        *_defines(problem.dtype, problem.indices),
        ("INDEX", INDICES[problem.index_dtype]),
        ("PACK", pack),
    )
    words = _words(problem, problem.indices)
    return _over_rows("forward", defines, words, problem.columns // pack, problem.tokens)


@functools.lru_cache(maxsize=1024)
def backward(problem: Problem, capabilities: Capabilities) -> tuple[Launch, Launch]:
    """The launches of ``embedding_backward_order`` and ``_sum``, in this order.

    Raises:
        UnsupportedError: with the reason.
    """
    if problem.gradient is None:
        raise ValueError("gradient is None; the backward pass needs its places")
    pack = _pack(problem, problem.gradient.step)
    defines = (*_defines(problem.dtype, problem.gradient), ("PACK", pack), ("BY_COUNT", int(problem.by_count)))
    words = _words(problem, problem.gradient)
    total = _over_rows("backward_sum", defines, words, problem.columns // pack, problem.rows)
    return _order(problem, capabilities), total


@functools.lru_cache(maxsize=1024)
def renormalise(problem: Problem, capabilities: Capabilities) -> tuple[Launch, Launch]:
    """The launches of ``embedding_backward_order``, which finds the rows that tokens have, and ``_renormalise``.

    Raises:
        UnsupportedError: with the reason.
    """
    norm = {2.0: "NORM_TWO", math.inf: "NORM_LARGEST"}.get(problem.norm_type, "NORM_POWER")
    defines = (
        *_defines(problem.dtype, problem.indices),
        ("PACK", _pack(problem, problem.step if problem.column_stride == 1 else 0)),
        ("ROW_THREADS", LANES),
        ("THREADS", _THREADS),
        *((name, number) for number, name in enumerate(("NORM_TWO", "NORM_LARGEST", "NORM_POWER"))),
        ("NORM", norm),
    )
    words = _words(problem, problem.indices)
    return _order(problem, capabilities), _over_rows("renormalise", defines, words, LANES, problem.rows)


def _order(problem: Problem, capabilities: Capabilities) -> Launch:
    _refuse(problem, capabilities)
    simdgroups = _THREADS // LANES
    return Launch(
        file=f"{_FOLDER}/backward_order.metal",
        kernel="embedding_backward_order",
        defines=(
            *_defines(problem.dtype, problem.indices),
            ("INDEX", INDICES[problem.index_dtype]),
            ("ROWS", _ROWS),
            ("THREADS", _THREADS),
        ),
        words=_words(problem, problem.indices),
        threads=(blocks(problem) * _THREADS, 1, 1),
        group_size=(_THREADS, 1, 1),
        threadgroup_bytes=4 * simdgroups * (_ROWS + 2),
    )
