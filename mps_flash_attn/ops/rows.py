"""Tensors as rows: how those of one operation lie in memory, and how threads share each row (``msl/rows.h``)."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..launch import CHUNK_BYTES, LANES, Capabilities
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

_THREADS = 256  # of a threadgroup of several rows
#: Threads that share a row, from short rows to long ones; those above 32 are a threadgroup of their own. A team is the
#: smallest that takes a row in few steps.
_ROW_THREADS = (8, 32, 128, 256, 512)
_FEW_STEPS = 4
_LONG_ROW_THREADS = 1024
#: What a thread may keep of its rows in registers, and the most steps that it does so for.
_HELD_BYTES, _HELD_STEPS = 128, 16
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

    @classmethod
    def contiguous(cls, dtype: torch.dtype, shape: Sequence[int]) -> Operand:
        """Of a new tensor."""
        sizes = itertools.accumulate(reversed(shape[1:]), operator.mul, initial=1)
        return cls(dtype, tuple(sizes)[::-1])


@dataclass(frozen=True)
class Rows:
    """Rows over some dimensions of a shape: the others number the rows, those number the elements of a row.

    Attributes:
        count: of the rows.
        length: of each.
        sizes: of the dimensions that number the rows, as many as the kernel is compiled for.
        row_strides: of each operand over them, first those with all elements of a row, then those with one.
        column_sizes, column_strides: the same for the elements of a row, of the former operands.
        pack: elements that a thread may take at once: 16 bytes of the smallest ones, or 1.
    """

    count: int
    length: int
    sizes: tuple[int, ...]
    row_strides: tuple[tuple[int, ...], ...]
    column_sizes: tuple[int, ...]
    column_strides: tuple[tuple[int, ...], ...]
    pack: int

    @classmethod
    def over(
        cls,
        dims: Sequence[int],
        shape: Sequence[int],
        operands: Sequence[Operand],
        per_row: Sequence[Operand] = (),
        *,
        in_order: bool = False,
    ) -> Rows:
        """The rows of operands that share a shape, and of others with an element a row.

        Args:
            in_order: rows and their elements are numbered in row-major order, not in that of memory.

        Raises:
            UnsupportedError: rows too long, or elements scattered over more than `MAX_RANK` dimensions.
        """
        others = [dim for dim in range(len(shape)) if dim not in dims]
        sizes, row_strides = _numbering(others, shape, (*operands, *per_row), in_order)
        column_sizes, column_strides = _numbering(dims, shape, operands, in_order)
        length = math.prod(shape[dim] for dim in dims)
        if length >= 2**31 - 2**16:
            raise UnsupportedError(f"rows of {length} elements do not fit in 32 bits")
        pack = CHUNK_BYTES // min(x.dtype.itemsize for x in operands)
        starts = [
            byte
            for x, rows, columns in zip(operands, row_strides, column_strides, strict=False)
            for byte in (x.address, *(n * x.dtype.itemsize for n in (*rows, *columns[:-1])))
        ]
        contiguous = all(columns[-1] == 1 for columns in column_strides) and column_sizes[-1] % pack == 0
        if not contiguous or any(byte % CHUNK_BYTES for byte in starts):
            pack = 1
        count = math.prod(shape[dim] for dim in others)
        return cls(count, length, sizes, row_strides, column_sizes, column_strides, pack)

    @property
    def side_by_side(self) -> bool:
        """Whether neighbours of different rows are neighbours in memory, and those of one row are not."""
        return self.row_strides[0][-1] == 1 and self.column_strides[0][-1] != 1

    @property
    def defines(self) -> tuple[Define, ...]:
        return (("ROW_RANK", len(self.sizes)),)

    def params(self, *names: str) -> Params:
        """The fields ``rows``, ``length``, ``sizes``, and ``<name>_rows`` of each operand by its name.

        More names than operands are those that the kernel does not use; operands without a name are contiguous, or the
        same in every row.
        """
        named = itertools.zip_longest(names, self.row_strides[: len(names)], fillvalue=())
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
    dims: Sequence[int], shape: Sequence[int], operands: Sequence[Operand], in_order: bool
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Few dimensions that number elements. Where their order is free, neighbours in number are neighbours in memory.

    Returns:
        The sizes, as many as kernels are compiled for, and each operand's strides over them.
    """
    dims = sorted(dims, key=lambda dim: dim if in_order else -operands[0].strides[dim])
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
    pack: int

    @property
    def defines(self) -> tuple[Define, ...]:
        return (
            ("ROW_THREADS", self.row_threads),
            ("THREADS", self.threads),
            ("HOLD", self.hold),
            ("PACK", self.pack),
        )

    @property
    def scratch(self) -> int:
        """Places of ``SCRATCH``."""
        return self.threads // LANES if self.row_threads > LANES else 1


def share(rows: Rows, capabilities: Capabilities, *, held: Sequence[torch.dtype]) -> Team:
    """The team for rows of which each thread keeps operands of these dtypes, if any, in registers where they fit.

    Short rows go several to a simdgroup, long ones each to a threadgroup. Where rows lie side by side, each has one
    thread, so that neighbouring threads read neighbours.
    """
    if rows.side_by_side and rows.count >= _MANY_ROWS:
        return Team(1, _THREADS, 0, rows.pack)
    a_pack = rows.pack * sum(dtype.itemsize for dtype in held)
    most = min(_HELD_STEPS, _HELD_BYTES // a_pack) if held else _FEW_STEPS
    few = min(_FEW_STEPS, most)
    teams = [(threads, few) for threads in _ROW_THREADS if threads <= capabilities.max_threads]
    for row_threads, steps in (*teams, (teams[-1][0], most)):
        if rows.length <= row_threads * rows.pack * steps:
            threads = _THREADS if row_threads <= LANES else row_threads
            return Team(row_threads, threads, steps if held else 0, rows.pack)
    threads = min(_LONG_ROW_THREADS, 1 << capabilities.max_threads.bit_length() - 1)
    return Team(threads, threads, 0, rows.pack)


def grid(count: int, team: Team) -> tuple[int, int, int]:
    """Threads for this many rows.

    Raises:
        UnsupportedError: more than a grid has.
    """
    threads = -(-count * team.row_threads // team.threads) * team.threads
    if threads >= 2**32:
        raise UnsupportedError(f"{count} rows of {team.row_threads} threads each are more than a grid has")
    return threads, 1, 1
