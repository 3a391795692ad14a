"""Decides how partial attentions are merged. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ...launch import Capabilities, Launch, ParamStruct
from ..dtypes import ELEMENTS, accumulator, refuse_dtype
from ..rows import Operand, Rows, Team, grid

__all__ = ["Problem", "backward", "forward"]

_FOLDER = "ops/merge"
_THREADS = 256
#: Threads that may share a row: of no more than a simdgroup, whose lanes reduce it by themselves.
_ROW_THREADS = (8, 16, 32)
#: The tensors with an element for each of a result's, and with one for each row; the gradients are the backward's.
_WIDE, _WIDE_GRADIENTS = ("first", "others", "out"), ("d_first", "d_others")
_NARROW, _NARROW_GRADIENTS = ("first_lse", "others_lse", "lse"), ("d_first_lse", "d_others_lse")


@dataclass(frozen=True)
class Problem:
    """Partial results of some shape that become one.

    Attributes:
        shape: of the result, ``[..., D]``.
        dtype: of the partial results.
        result: dtype of the result.
        parts: S, how many there are: the first, and S - 1 others.
        wide: where lie the first part, the first of the others, and the result; in the backward pass its gradient in
            its place, and then the gradients of the two.
        narrow: the same of their log-sum-exps, which have no last dimension.
        steps: elements between neighbours of the others, of their log-sum-exps, and of the gradients of both.
        lse_gradient: in the backward pass, whether the result's log-sum-exp has a gradient.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    result: torch.dtype
    parts: int
    wide: tuple[Operand, ...]
    narrow: tuple[Operand, ...]
    steps: tuple[int, ...]
    lse_gradient: bool = False


@functools.lru_cache(maxsize=1024)
def forward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``merge_forward``.

    Raises:
        UnsupportedError: with the reason.
    """
    return _launch("forward", problem, capabilities, (*_WIDE, *_NARROW, *_WIDE_GRADIENTS, *_NARROW_GRADIENTS))


@functools.lru_cache(maxsize=1024)
def backward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``merge_backward``.

    Raises:
        UnsupportedError: with the reason.
    """
    return _launch("backward", problem, capabilities, (*_WIDE, *_WIDE_GRADIENTS, *_NARROW, *_NARROW_GRADIENTS))


def _launch(name: str, problem: Problem, capabilities: Capabilities, names: tuple[str, ...]) -> Launch:
    for dtype in (problem.dtype, problem.result):
        refuse_dtype(dtype, capabilities)
    rows = Rows.over((len(problem.shape) - 1,), problem.shape, problem.wide, problem.narrow)
    team = _team(rows)
    params = ParamStruct.read(f"{_FOLDER}/args.h", "MergeArgs")
    steps = (*problem.steps, 0, 0)[:4]
    backward = (("LSE_GRADIENT", int(problem.lse_gradient)),) if name == "backward" else ()
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel=f"merge_{name}",
        defines=(
            ("ELEMENT", ELEMENTS[problem.dtype]),
            ("RESULT", ELEMENTS[problem.result]),
            ("ACCUMULATOR", accumulator(problem.dtype)),
            *backward,
            *rows.defines,
            *team.defines,
            ("ARGS_BYTES", params.size),
        ),
        words=params.pack(
            {
                **rows.params(*names),
                **rows.strides(*_WIDE, *_WIDE_GRADIENTS),
                "parts": problem.parts,
                **{f"{name}_step": step for name, step in zip(_STEPS, steps, strict=True)},
            },
            accumulator(problem.dtype),
        ),
        threads=grid(rows.count, team),
        group_size=(team.threads, 1, 1),
        threadgroup_bytes=0 if name == "forward" else team.scratch * problem.narrow[0].dtype.itemsize,
    )


_STEPS = ("others", "others_lse", "d_others", "d_others_lse")


def _team(rows: Rows) -> Team:
    """The fewest threads that hold a row in one step: rows are short, and read as often as there are parts."""
    steps = -(-rows.length // rows.pack)
    row_threads = next((threads for threads in _ROW_THREADS if steps <= threads), _ROW_THREADS[-1])
    return Team(row_threads, _THREADS, 0, rows.pack)
