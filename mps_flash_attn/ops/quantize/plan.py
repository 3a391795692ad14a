"""Decides how rows are quantized and dequantized. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from ...errors import UnsupportedError
from ...launch import CHUNK_BYTES, LANES, Capabilities, Launch, ParamStruct
from ...source import Define
from ..dtypes import ELEMENTS, accumulator, refuse_dtype
from .formats import FORMATS

__all__ = ["MAX_COLUMNS", "MAX_RANK", "Problem", "dequantize", "quantize"]

#: Dimensions that number rows which the kernels tell apart; as in args.h.
MAX_RANK = 4
#: The longest row: a thread keeps its share of a group in registers.
MAX_COLUMNS = 1024

_FOLDER = "ops/quantize"
_THREADS = 256


@dataclass(frozen=True)
class Problem:
    """Rows of ``columns`` numbers, of which one side is stored in a format and the other has a dtype.

    Attributes:
        dtype: of the side that is not stored.
        format: of the other, a name in ``FORMATS``.
        group_size: columns that share a scale, where the format has groups.
        sizes: of the dimensions that number the rows, merged where strides allow it.
        read_strides: over them, of what is read: the input, or the stored bytes.
        scale_strides: likewise of the scales, where they are read.
        step: the largest number of bytes, up to 16, of which the address and length of every row of ``dtype`` is a
            multiple.
    """

    dtype: torch.dtype
    format: str
    group_size: int
    sizes: tuple[int, ...]
    columns: int
    read_strides: tuple[int, ...]
    scale_strides: tuple[int, ...] = ()
    step: int = 0

    @property
    def rows(self) -> int:
        return math.prod(self.sizes)

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return FORMATS[self.format].groups(self.columns, self.group_size)

    @property
    def group_columns(self) -> int:
        """Columns that share a scale."""
        return self.group_size if FORMATS[self.format].in_groups else self.columns

    @property
    def pack(self) -> int:
        """Elements of ``dtype`` that a thread moves at once."""
        return CHUNK_BYTES // self.dtype.itemsize if self.step == CHUNK_BYTES else 1


@functools.lru_cache(maxsize=1024)
def quantize(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``quantize``.

    Raises:
        UnsupportedError: with the reason.
    """
    unit = max(problem.pack, 8 // FORMATS[problem.format].bits)
    units = -(-min(problem.columns, problem.group_columns) // unit)
    row_threads = min(1 << (units - 1).bit_length(), LANES)
    teams = problem.rows * problem.groups
    team = (("ROW_THREADS", row_threads), ("THREADS", _THREADS), ("HOLD", -(-units // row_threads)))
    return _launch("quantize", problem, capabilities, team, (-(-teams * row_threads // _THREADS) * _THREADS, 1, 1))


@functools.lru_cache(maxsize=1024)
def dequantize(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``dequantize``.

    Raises:
        UnsupportedError: with the reason.
    """
    return _launch("dequantize", problem, capabilities, (), (problem.columns // problem.pack, problem.rows, 1))


def _launch(
    name: str,
    problem: Problem,
    capabilities: Capabilities,
    team: tuple[Define, ...],
    threads: tuple[int, int, int],
) -> Launch:
    refuse_dtype(problem.dtype, capabilities)
    if problem.columns > MAX_COLUMNS:
        raise UnsupportedError(f"rows of {problem.columns} columns; accepted are up to {MAX_COLUMNS}")
    if max(threads) >= 2**32:
        raise UnsupportedError(f"{problem.rows} rows of {problem.columns} columns are more than a grid has threads for")
    stored = FORMATS[problem.format]
    params = ParamStruct.read(f"{_FOLDER}/args.h", "QuantizeArgs")
    rank = 1 if len(problem.sizes) == 1 else MAX_RANK
    across = min(1 << (threads[0] - 1).bit_length(), _THREADS)
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel=name,
        defines=(
            ("ELEMENT", ELEMENTS[problem.dtype]),
            ("ACCUMULATOR", accumulator(problem.dtype)),
            ("STORED", int(stored.stored)),
            *((("STORED_GROUP", problem.group_size),) if stored.in_groups else ()),
            ("ROW_RANK", rank),
            ("PACK", problem.pack),
            *team,
            ("ARGS_BYTES", params.size),
        ),
        words=params.pack(
            {
                "sizes": _padded(problem.sizes, 1),
                "read_rows": _padded(problem.read_strides, 0),
                "scale_rows": _padded(problem.scale_strides or (0,), 0),
                "rows": problem.rows,
                "columns": problem.columns,
                "groups": problem.groups,
                "group_columns": problem.group_columns,
                "row_bytes": stored.row_bytes(problem.columns),
            },
            accumulator(problem.dtype),
        ),
        threads=threads,
        group_size=(_THREADS, 1, 1) if team else (across, _THREADS // across, 1),
        threadgroup_bytes=0,
    )


def _padded(values: tuple[int, ...], fill: int) -> tuple[int, ...]:
    """As long as args.h has it: with one dimension the kernel takes the first alone, else all, the last fastest."""
    more = (fill,) * (MAX_RANK - len(values))
    return (*values, *more) if len(values) == 1 else (*more, *values)
