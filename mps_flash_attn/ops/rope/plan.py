"""Decides how a rotation is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import enum
import functools
import math
from dataclasses import dataclass

import torch

from ...errors import UnsupportedError
from ...launch import CHUNK_BYTES, Capabilities, Launch, ParamStruct
from ..dtypes import ELEMENTS, accumulator, refuse_dtype

__all__ = ["MAX_OUTER", "POSITIONS", "Angles", "Problem", "forward"]

#: Metal's name of each dtype that positions may have.
POSITIONS = {torch.int32: "int", torch.int64: "long"}

#: Outer dimensions that the kernel tells apart; as in args.h.
MAX_OUTER = 4

_FOLDER = "ops/rope"
_THREADS = 256
#: Rows that share the angles a thread computes: enough that cosines and sines cost little beside moving the rows.
_HEADS = 4


class Angles(enum.IntEnum):
    """Where angles come from; as in angle.h."""

    IMPLIED = 0
    POSITIONS = 1
    TABLES = 2


@dataclass(frozen=True)
class Problem:
    """Everything about a call that a plan may depend on. Rows are numbered by (outer, inner, position).

    Attributes:
        outer, inner, length: sizes of these dimensions; the outer ones are merged where strides allow it.
        input_strides, output_strides: over the outer dimensions, the inner one and positions, in elements.
        batches: into how many runs outer numbers fall that may differ in positions.
        angle_strides: of the tensor of positions, or of the tables: from batch to batch and from row to row.
        step: the largest number of bytes, up to 16, of which addresses and strides of all rows are multiples.
        offset: the first position, where they are implied.
    """

    dtype: torch.dtype
    outer: tuple[int, ...]
    inner: int
    length: int
    columns: int
    rotary_dim: int
    input_strides: tuple[int, ...]
    output_strides: tuple[int, ...]
    batches: int
    angles: Angles
    position_dtype: torch.dtype
    angle_strides: tuple[int, int]
    step: int
    offset: int
    interleaved: bool
    inverse: bool


def _refuse(problem: Problem, capabilities: Capabilities) -> None:
    refuse_dtype(problem.dtype, capabilities)
    rows = math.prod(problem.outer) * problem.inner
    if max(problem.length, rows, problem.columns) >= 2**31:
        raise UnsupportedError(f"{rows} times {problem.length} rows of {problem.columns} do not fit in 32 bits")


def _pack(problem: Problem) -> int:
    """Elements that a thread moves at once."""
    pack = CHUNK_BYTES // problem.dtype.itemsize
    fits = problem.step == CHUNK_BYTES and problem.columns % pack == problem.rotary_dim // 2 % pack == 0
    return pack if fits else 1


@functools.lru_cache(maxsize=1024)
def forward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``rope_forward``.

    Raises:
        UnsupportedError: with the reason.
    """
    _refuse(problem, capabilities)
    params = ParamStruct.read(f"{_FOLDER}/args.h", "RopeArgs")
    pack, more = _pack(problem), MAX_OUTER - len(problem.outer)
    rank = 1 if len(problem.outer) == 1 else MAX_OUTER

    def outer(values: tuple[int, ...], fill: int) -> tuple[int, ...]:
        """With one dimension the kernel takes the first value alone; else all, the last dimension fastest."""
        return (*values, *(fill,) * more) if rank == 1 else (*(fill,) * more, *values)

    half = problem.rotary_dim // 2
    width = (problem.columns - half) // pack  # threads of pairs, then those that copy
    across = min(1 << (width - 1).bit_length(), _THREADS)
    return Launch(
        file=f"{_FOLDER}/forward.metal",
        kernel="rope_forward",
        defines=(
            ("ELEMENT", ELEMENTS[problem.dtype]),
            ("ACCUMULATOR", accumulator(problem.dtype)),
            ("OUTER_RANK", rank),
            ("ANGLES", int(problem.angles)),
            ("POSITION", POSITIONS[problem.position_dtype]),
            ("INTERLEAVED", int(problem.interleaved)),
            ("PACK", pack),
            ("HEADS", _HEADS),
            ("ARGS_BYTES", params.size),
        ),
        words=params.pack(
            {
                "outer_sizes": outer(problem.outer, 1),
                "input_outer": outer(problem.input_strides[:-2], 0),
                "output_outer": outer(problem.output_strides[:-2], 0),
                "input_stride": problem.input_strides[-2:],
                "output_stride": problem.output_strides[-2:],
                "inner": problem.inner,
                "outer_per_batch": math.prod(problem.outer) // problem.batches,
                "angle_stride": problem.angle_strides,
                "rotary_pairs": half,
                "offset": problem.offset,
                "direction": -1.0 if problem.inverse else 1.0,
            },
            accumulator(problem.dtype),
        ),
        threads=(width, problem.length, math.prod(problem.outer) * -(-problem.inner // _HEADS)),
        group_size=(across, _THREADS // across, 1),
        threadgroup_bytes=0,
    )
