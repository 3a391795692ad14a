"""Tensors as rows: how those of one operation lie in memory, and how threads share each row (``msl/rows.h``)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..launch import Capabilities
from ..source import Define
from .calls import address
from .strides import coalesce

__all__ = ["MAX_RANK", "Operand", "Params", "Rows", "Team", "grid", "padded", "share"]

#: Fields of a params struct.
Params = dict[str, "int | float | Sequence[int]"]

#: Dimensions that a params struct has room for.
MAX_RANK = 8
#: Ranks that kernels are compiled for; a lower one is padded with dimensions of size 1.
_RANKS = (1, 4, MAX_RANK)

_CHUNK_BYTES = 16  # what a lane moves at once
_THREADS = 256
_LONG_ROW_THREADS = 1024
_ROW_THREADS = (8, 32, _THREADS)
#: Numbers that a thread may keep of its rows, and the most steps that it does so for.
_HELD_NUMBERS, _HELD_STEPS = 32, 4
#: Rows from which on it pays to give each a single thread, where that makes neighbouring threads read neighbours.
_MANY_ROWS = 1024


@dataclass(frozen=True)
class Operand:
    """What a plan depends on of a tensor: strides in elements, and its first byte's address modulo 16."""

    dtype: torch.dtype
    strides: tuple[int, ...]
    address: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> Operand:
        return cls(tensor.dtype, tensor.stride(), address(tensor))

    @classmethod
    def without(cls, dims: Sequence[int], tensor: Tensor) -> Operand:
        """Of a tensor that lacks these dimensions: it has stride 0 in them."""
        strides = list(tensor.stride())
        for dim in sorted(dims):
            strides.insert(dim, 0)
        return cls(tensor.dtype, tuple(strides), address(tensor))


@dataclass(frozen=True)
class Rows:
    """Rows over some dimensions of a shape: the others number the rows, those number the elements of a row.

    Attributes:
        count: of the rows.
        length: of each.
        sizes: of the dimensions that number the rows, as many as the kernel is compiled for.
        row_strides: of each operand over them, first those with all elements of a row, then those with one.
        column_sizes, column_strides: the same for the elements of a row, of the former operands.
        width: elements that a thread may take at once: 16 bytes of the smallest ones, or 1. float64, for checks only,
            has 1.
    """

    count: int
    length: int
    sizes: tuple[int, ...]
    row_strides: tuple[tuple[int, ...], ...]
    column_sizes: tuple[int, ...]
    column_strides: tuple[tuple[int, ...], ...]
    width: int

    @classmethod
    def over(
        cls, dims: Sequence[int], shape: Sequence[int], operands: Sequence[Operand], per_row: Sequence[Operand] = ()
    ) -> Rows:
        """The rows of operands that share a shape, and of others with an element a row.

        Raises:
            UnsupportedError: rows too long, or elements scattered over more than `MAX_RANK` dimensions.
        """
        others = [dim for dim in range(len(shape)) if dim not in dims]
        sizes, row_strides = _numbering(others, shape, (*operands, *per_row))
        column_sizes, column_strides = _numbering(dims, shape, operands)
        length = math.prod(shape[dim] for dim in dims)
        if length >= 2**31 - 2**16:
            raise UnsupportedError(f"rows of {length} elements do not fit in 32 bits")
        width = _CHUNK_BYTES // min(x.dtype.itemsize for x in operands)
        starts = [
            byte
            for x, rows, columns in zip(operands, row_strides, column_strides, strict=False)
            for byte in (x.address, *(n * x.dtype.itemsize for n in (*rows, *columns[:-1])))
        ]
        contiguous = all(columns[-1] == 1 for columns in column_strides) and column_sizes[-1] % width == 0
        if width < 4 or not contiguous or any(byte % _CHUNK_BYTES for byte in starts):
            width = 1
        count = math.prod(shape[dim] for dim in others)
        return cls(count, length, sizes, row_strides, column_sizes, column_strides, width)

    @property
    def side_by_side(self) -> bool:
        """Whether neighbours of different rows are neighbours in memory, and those of one row are not."""
        return self.row_strides[0][-1] == 1 and self.column_strides[0][-1] != 1

    @property
    def defines(self) -> tuple[Define, ...]:
        return (("ROW_RANK", len(self.sizes)),)

    def params(self, *names: str) -> Params:
        """The fields ``rows``, ``length``, ``sizes``, and ``<name>_rows`` of each operand by its name.

        More names than operands are those that the kernel does not use.
        """
        named = itertools.zip_longest(names, self.row_strides, fillvalue=())
        strides: Params = {f"{name}_rows": padded(own) for name, own in named}
        return {"rows": self.count, "length": self.length, "sizes": padded(self.sizes), **strides}

    def strides(self, *names: str) -> Params:
        """The fields ``<name>_stride`` of rows over a single dimension."""
        named = itertools.zip_longest(names, self.column_strides, fillvalue=(0,))
        return {f"{name}_stride": own[-1] for name, own in named}


def padded(values: tuple[int, ...]) -> tuple[int, ...]:
    """As long as a params struct has it."""
    return values + (0,) * (MAX_RANK - len(values))


def _numbering(
    dims: Sequence[int], shape: Sequence[int], operands: Sequence[Operand]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Few dimensions that number elements whose order is free: neighbours in number are neighbours in memory.

    Returns:
        The sizes, as many as kernels are compiled for, and each operand's strides over them.
    """
    dims = sorted(dims, key=lambda dim: -operands[0].strides[dim])
    sizes, strides = coalesce([shape[dim] for dim in dims], *([x.strides[dim] for dim in dims] for x in operands))
    rank = next((rank for rank in _RANKS if rank >= len(sizes)), None)
    if rank is None:
        raise UnsupportedError(f"strides that leave {len(sizes)} separate dimensions; accepted are up to {MAX_RANK}")
    missing = rank - len(sizes)
    return (1,) * missing + sizes, tuple((0,) * missing + own for own in strides)


@dataclass(frozen=True)
class Team:
    """How threads share a row; the names are those of the defines of ``msl/rows.h``."""

    row_threads: int
    threads: int
    hold: int
    width: int

    @property
    def defines(self) -> tuple[Define, ...]:
        return (
            ("ROW_THREADS", self.row_threads),
            ("THREADS", self.threads),
            ("HOLD", self.hold),
            ("WIDTH", self.width),
        )

    @property
    def scratch(self) -> int:
        """Places of ``SCRATCH``."""
        return self.threads // 32 if self.row_threads > 32 else 1


def share(rows: Rows, capabilities: Capabilities, *, held: int = 1) -> Team:
    """The team for rows of which each thread keeps ``held`` operands, none or more, in registers where they fit.

    Short rows go several to a simdgroup, long ones each to a threadgroup. Where rows lie side by side, each has one
    thread, so that neighbouring threads read neighbours.
    """
    if rows.side_by_side and rows.count >= _MANY_ROWS:
        return Team(1, _THREADS, 0, rows.width)
    steps = min(_HELD_STEPS, _HELD_NUMBERS // (max(held, 1) * rows.width))
    for row_threads in _ROW_THREADS:
        if rows.length <= row_threads * rows.width * steps:
            return Team(row_threads, _THREADS, steps if held else 0, rows.width)
    threads = min(_LONG_ROW_THREADS, capabilities.max_threads)
    return Team(threads, threads, 0, rows.width)


def grid(count: int, team: Team) -> tuple[int, int, int]:
    """Threads for this many rows.

    Raises:
        UnsupportedError: more than a grid has.
    """
    threads = -(-count * team.row_threads // team.threads) * team.threads
    if threads >= 2**32:
        raise UnsupportedError(f"{count} rows of {team.row_threads} threads each are more than a grid has")
    return threads, 1, 1
