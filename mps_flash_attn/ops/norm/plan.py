"""Decides how a normalisation is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ...errors import UnsupportedError
from ...launch import Capabilities, Launch, ParamStruct
from ...source import Define
from ..dtypes import ELEMENTS, accumulator, refuse_dtype

__all__ = ["MAX_RANK", "Problem", "backward", "forward", "parameter_blocks", "parameters"]

#: Dimensions that rows may be counted over once those that follow each other in memory are one.
MAX_RANK = 4

_FOLDER = "ops/norm"
_LANES = 32
_CHUNK_BYTES = 16  # what a lane moves at once
#: Threads that share a row, from short rows to long ones; those above 32 are a threadgroup of their own.
_TEAMS = (8, 32, 128, 512)
_THREADS = 128  # of a threadgroup of several rows
#: Packs of a row, or single elements, that a thread holds in registers: 64 bytes at most, of each tensor.
_HELD_PACKS, _HELD_ELEMENTS = 4, 16
#: Rows that one threadgroup adds up for the gradients of weight and bias, and the most such blocks.
_BLOCK_ROWS, _MOST_BLOCKS = 32, 256
_OPERANDS = ("x", "residual", "dy", "dsum")


@dataclass(frozen=True)
class Problem:
    """Everything about a launch that a plan may depend on.

    Attributes:
        parameter: dtype of weight and bias, ``dtype`` where there is neither.
        rows, columns: elements over which the mean is taken make a row.
        centred: LayerNorm; otherwise RMSNorm.
        weight, bias: whether there is one.
        row_sizes: the dimensions that rows are counted over, 1 or `MAX_RANK`, so that kernels come in two forms only.
        strides: names and strides over ``row_sizes``, in elements, of those among ``x residual dy dsum`` that are read.
        aligned: rows of all tensors start at a multiple of 16 bytes and are a whole number of 16 bytes long.
    """

    dtype: torch.dtype
    parameter: torch.dtype
    rows: int
    columns: int
    centred: bool
    weight: bool
    bias: bool
    eps: float
    row_sizes: tuple[int, ...]
    strides: tuple[tuple[str, tuple[int, ...]], ...]
    aligned: bool

    @property
    def pack(self) -> int:
        """Elements that a lane moves at once."""
        return _CHUNK_BYTES // self.dtype.itemsize if self.aligned else 1

    def reads(self, name: str) -> bool:
        """Whether that tensor is among those read."""
        return name in dict(self.strides)


def _params() -> ParamStruct:
    return ParamStruct.read(f"{_FOLDER}/args.h", "NormArgs")


def _filled(values: tuple[int, ...]) -> tuple[int, ...]:
    return (*values, *(0,) * (MAX_RANK - len(values)))


def parameter_blocks(problem: Problem) -> tuple[int, int]:
    """Blocks of rows for the gradients of weight and bias, and the rows of each."""
    rows = max(_BLOCK_ROWS, -(-problem.rows // _MOST_BLOCKS))
    return -(-problem.rows // rows), rows


def _words(problem: Problem) -> tuple[int, ...]:
    blocks, block_rows = parameter_blocks(problem)
    return _params().pack(
        {
            "rows": problem.rows,
            "columns": problem.columns,
            "row_sizes": _filled(problem.row_sizes),
            **{f"{name}_stride": _filled(dict(problem.strides).get(name, ())) for name in _OPERANDS},
            "blocks": blocks,
            "block_rows": block_rows,
            "eps": problem.eps,
        },
        accumulator(problem.dtype),
    )


def _defines(problem: Problem) -> tuple[Define, ...]:
    return (
        ("ELEMENT", ELEMENTS[problem.dtype]),
        ("ACCUMULATOR", accumulator(problem.dtype)),
        ("PARAMETER", ELEMENTS[problem.parameter]),
        ("ARGS_BYTES", _params().size),
    )


def _refuse(problem: Problem, capabilities: Capabilities) -> None:
    for dtype in (problem.dtype, problem.parameter):
        refuse_dtype(dtype, capabilities)
    if problem.columns >= 2**31 - 2**16 or problem.rows >= 2**32 // _LANES:
        raise UnsupportedError(f"{problem.rows} rows of {problem.columns} elements do not fit in the grid")


def _over_rows(name: str, problem: Problem, defines: tuple[Define, ...]) -> Launch:
    """A kernel with a team of threads for each row."""
    held = _HELD_PACKS if problem.aligned else _HELD_ELEMENTS
    team = next((team for team in _TEAMS if problem.columns <= team * problem.pack * held), None)
    if team is None:
        team, held = _TEAMS[-1], 0
    threads = max(team, _THREADS)
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel=f"norm_{name}",
        defines=(
            *_defines(problem),
            ("CENTRED", int(problem.centred)),
            ("WEIGHT", int(problem.weight)),
            ("ROW_RANK", len(problem.row_sizes)),
            ("PACK", problem.pack),
            ("ROW_THREADS", team),
            ("THREADS", threads),
            ("HELD", held),
            *defines,
        ),
        words=_words(problem),
        threads=(-(-problem.rows * team // threads) * threads, 1, 1),
        group_size=(threads, 1, 1),
        threadgroup_bytes=threads // _LANES * 3 * 8,
    )


@functools.lru_cache(maxsize=1024)
def forward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``norm_forward``.

    Raises:
        UnsupportedError: with the reason.
    """
    _refuse(problem, capabilities)
    return _over_rows("forward", problem, (("BIAS", int(problem.bias)), ("RESIDUAL", int(problem.reads("residual")))))


@functools.lru_cache(maxsize=1024)
def backward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``norm_backward``.

    Raises:
        UnsupportedError: with the reason.
    """
    _refuse(problem, capabilities)
    return _over_rows("backward", problem, (("SUM_GRADIENT", int(problem.reads("dsum"))),))


@functools.lru_cache(maxsize=1024)
def parameters(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``norm_backward_parameters``.

    Raises:
        UnsupportedError: with the reason.
    """
    _refuse(problem, capabilities)
    sums, (blocks, _) = 1 + problem.bias, parameter_blocks(problem)
    return Launch(
        file=f"{_FOLDER}/backward_parameters.metal",
        kernel="norm_backward_parameters",
        defines=(
            *_defines(problem),
            ("CENTRED", int(problem.centred)),
            ("ROW_RANK", len(problem.row_sizes)),
            ("PACK", problem.pack),
            ("THREADS", _THREADS),
            ("SUMS", sums),
        ),
        words=_words(problem),
        threads=(-(-problem.columns // (_LANES * problem.pack)) * _THREADS, blocks, 1),
        group_size=(_THREADS, 1, 1),
        threadgroup_bytes=sums * _THREADS * problem.pack * max(problem.dtype.itemsize, 4),
    )
