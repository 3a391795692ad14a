"""Decides how softmax is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ...launch import Capabilities, Launch, ParamStruct
from ..dtypes import ELEMENTS, accumulator, accumulator_dtype, refuse_dtype
from ..rows import Operand, Rows, Team, grid, share

__all__ = ["Problem", "backward", "forward"]

_FOLDER = "ops/softmax"


@dataclass(frozen=True)
class Problem:
    """A softmax along ``dim``.

    Attributes:
        operands: the input and the output; in the backward pass the gradient of the input, the output and its gradient.
        log: whether it is the logarithm of the softmax.
    """

    shape: tuple[int, ...]
    dim: int
    operands: tuple[Operand, ...]
    log: bool


@functools.lru_cache(maxsize=1024)
def forward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``softmax_forward``.

    Raises:
        UnsupportedError: with the reason.
    """
    rows = _rows(problem, capabilities)
    team = share(rows, capabilities, held=[problem.operands[0].dtype])
    return _launch("forward", problem, rows, team, scratch_numbers=2)


@functools.lru_cache(maxsize=1024)
def backward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``softmax_backward``.

    Raises:
        UnsupportedError: with the reason.
    """
    rows = _rows(problem, capabilities)
    team = share(rows, capabilities, held=[operand.dtype for operand in problem.operands[1:]])
    return _launch("backward", problem, rows, team, scratch_numbers=1)


def _rows(problem: Problem, capabilities: Capabilities) -> Rows:
    for operand in problem.operands:
        refuse_dtype(operand.dtype, capabilities)
    return Rows.over((problem.dim,), problem.shape, problem.operands)


def _launch(name: str, problem: Problem, rows: Rows, team: Team, *, scratch_numbers: int) -> Launch:
    x, y = (operand.dtype for operand in problem.operands[:2])
    number = accumulator_dtype(torch.promote_types(x, y))
    names = ("x", "y", "dy")
    params = ParamStruct.read(f"{_FOLDER}/args.h", "SoftmaxArgs")
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel=f"softmax_{name}",
        defines=(
            ("ELEMENT", ELEMENTS[x]),
            ("RESULT", ELEMENTS[y]),
            ("ACCUMULATOR", accumulator(number)),
            ("LOG", int(problem.log)),
            *rows.defines,
            *team.defines,
            ("ARGS_BYTES", params.size),
        ),
        words=params.pack(rows.params(*names) | rows.strides(*names), accumulator(number)),
        threads=grid(rows.count, team),
        group_size=(team.threads, 1, 1),
        threadgroup_bytes=team.scratch * scratch_numbers * number.itemsize,
    )
