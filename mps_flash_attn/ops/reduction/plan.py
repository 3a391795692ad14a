"""Decides how reductions are launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import dataclasses
import enum
import functools
from dataclasses import dataclass

import torch

from ...launch import Capabilities, Launch, ParamStruct
from ...source import Define
from ..dtypes import ELEMENTS, accumulator_dtype, refuse_dtype
from ..rows import Operand, Params, Rows, Team, grid, padded

__all__ = ["Operation", "Problem", "Reduction", "amax_backward", "reduction"]

_FOLDER = "ops/reduction"
_THREADS = 256
_ROW_THREADS = (8, 32, _THREADS)
_FEW_STEPS = 4
#: From this many rows on, those that lie side by side have a thread each, so that neighbours read neighbours.
_MANY_ROWS = 32
#: Rows are split until there are this many threadgroups, but not into parts of fewer steps.
_THREADGROUPS, _PART_STEPS = 1024, 16


class Operation(enum.IntEnum):
    """What rows are reduced to; the values are those of ``reduction.metal``."""

    SUM = 0
    LARGEST = 1
    #: The number of elements equal to the largest.
    TIES = 2


@dataclass(frozen=True)
class Problem:
    """A reduction over ``dims``.

    Attributes:
        x: the input.
        reduced: the result, with any strides in ``dims``.
        y: the largest values, where ties are counted; the same.
    """

    shape: tuple[int, ...]
    dims: tuple[int, ...]
    x: Operand
    reduced: Operand
    operation: Operation
    y: Operand | None = None

    @property
    def number(self) -> torch.dtype:
        """What sums are kept in."""
        return accumulator_dtype(torch.promote_types(self.x.dtype, self.reduced.dtype))


@dataclass(frozen=True)
class Reduction:
    """One launch from the input to the result, or two with the results of parts of rows between them.

    Attributes:
        partial: shape of these; ``None`` for one launch.
        number: their dtype.
    """

    launches: tuple[Launch, ...]
    partial: tuple[int, ...] | None
    number: torch.dtype


@functools.lru_cache(maxsize=1024)
def reduction(problem: Problem, capabilities: Capabilities) -> Reduction:
    """The launches of ``reduction``: from ``x``, ``y`` or any tensor in its place, to what it is reduced to.

    Raises:
        UnsupportedError: with the reason.
    """
    _, parts, _ = _split(_rows(problem))
    if parts == 1:
        return Reduction((_reduce(problem, capabilities),), None, problem.number)
    kept = [1 if dim in problem.dims else size for dim, size in enumerate(problem.shape)]
    partial = torch.empty(*kept, parts, dtype=problem.number, device="meta")
    strides = partial.stride()
    in_parts = dataclasses.replace(problem, reduced=Operand(partial.dtype, strides[:-1]))
    of_parts = Problem(
        tuple(partial.shape),
        (len(kept),),
        Operand(partial.dtype, strides),
        dataclasses.replace(problem.reduced, strides=(*problem.reduced.strides, 0)),
        Operation.SUM if problem.operation == Operation.TIES else problem.operation,
    )
    launches = _reduce(in_parts, capabilities), _reduce(of_parts, capabilities)
    return Reduction(launches, tuple(partial.shape), problem.number)


@functools.lru_cache(maxsize=1024)
def amax_backward(
    shape: tuple[int, ...],
    dims: tuple[int, ...],
    operands: tuple[Operand, Operand],
    per_row: tuple[Operand, Operand, Operand],
    capabilities: Capabilities,
) -> Launch:
    """The launch of ``reduction_amax_backward``.

    Args:
        shape, dims: of the input, and which of them were reduced.
        operands: the input and its gradient.
        per_row: number of ties, largest value and its gradient, with any strides in ``dims``.

    Raises:
        UnsupportedError: with the reason.
    """
    rows = Rows.over(dims, shape, operands, per_row)
    names = ("x", "dx", "reduced", "y", "dy")
    result = (("RESULT", ELEMENTS[operands[0].dtype]),)
    dtype = operands[0].dtype
    return _launch("amax_backward", dtype, accumulator_dtype(dtype), result, names, rows, capabilities)


def _rows(problem: Problem) -> Rows:
    per_row = (problem.reduced,) if problem.y is None else (problem.reduced, problem.y)
    return Rows.over(problem.dims, problem.shape, (problem.x,), per_row)


def _reduce(problem: Problem, capabilities: Capabilities) -> Launch:
    refuse_dtype(problem.reduced.dtype, capabilities)
    defines = (("OPERATION", int(problem.operation)), ("RESULT", ELEMENTS[problem.reduced.dtype]))
    names = ("x", "reduced", "y", "dx", "dy")
    return _launch("reduction", problem.x.dtype, problem.number, defines, names, _rows(problem), capabilities)


def _split(rows: Rows) -> tuple[Team, int, int]:
    """Who shares a row, into how many parts it is split, and their length, a whole number of steps."""
    if rows.side_by_side and rows.count >= _MANY_ROWS:
        row_threads = 1
    else:
        few = (threads for threads in _ROW_THREADS if rows.length <= threads * rows.pack * _FEW_STEPS)
        row_threads = next(few, _THREADS)
    team = Team(row_threads, _THREADS, 0, rows.pack)
    step = row_threads * rows.pack
    steps = -(-rows.length // step)
    threadgroups = grid(rows.count, team)[0] // _THREADS
    parts = max(1, min(steps // _PART_STEPS, _THREADGROUPS // threadgroups))
    part_length = -(-steps // parts) * step
    return team, -(-rows.length // part_length), part_length


def _launch(
    name: str,
    dtype: torch.dtype,
    number: torch.dtype,
    defines: tuple[Define, ...],
    names: tuple[str, ...],
    rows: Rows,
    capabilities: Capabilities,
) -> Launch:
    refuse_dtype(dtype, capabilities)
    team, parts, part_length = _split(rows)
    params = ParamStruct.read(f"{_FOLDER}/args.h", "ReductionArgs")
    fields: Params = {
        "part_length": part_length,
        "reduced_part": 1,
        "column_sizes": padded(rows.column_sizes),
        "x_columns": padded(rows.column_strides[0]),
        "dx_columns": padded(rows.column_strides[-1]),
    }
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel="reduction" if name == "reduction" else f"reduction_{name}",
        defines=(
            ("ELEMENT", ELEMENTS[dtype]),
            ("ACCUMULATOR", ELEMENTS[number]),
            *defines,
            *rows.defines,
            ("COLUMN_RANK", len(rows.column_sizes)),
            *team.defines,
            ("ARGS_BYTES", params.size),
        ),
        words=params.pack(rows.params(*names) | fields, ELEMENTS[number]),
        threads=(grid(rows.count, team)[0], parts, 1),
        group_size=(team.threads, 1, 1),
        threadgroup_bytes=team.scratch * number.itemsize if name == "reduction" else 0,
    )
