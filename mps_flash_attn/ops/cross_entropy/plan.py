"""Decides how cross entropy is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ...launch import Capabilities, Launch, ParamStruct
from ..dtypes import ELEMENTS, accumulator, accumulator_dtype, refuse_dtype
from ..rows import Operand, Params, Rows, grid, share

__all__ = ["Problem", "backward", "forward"]

_FOLDER = "ops/cross_entropy"


@dataclass(frozen=True)
class Problem:
    """Cross entropy along ``dim`` of logits of this shape.

    Attributes:
        operands: the logits and, in the backward pass, their gradient.
        per_row: target and loss, in the backward pass the loss's gradient too; stride 0 in ``dim``.
        weighted: whether classes have weights.
    """

    shape: tuple[int, ...]
    dim: int
    operands: tuple[Operand, ...]
    per_row: tuple[Operand, ...]
    weighted: bool
    ignore_index: int
    label_smoothing: float


@functools.lru_cache(maxsize=1024)
def forward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``cross_entropy_forward``.

    Raises:
        UnsupportedError: with the reason.
    """
    names = ("x", "target", "loss", "dx", "d_loss")
    numbers = 4 if problem.label_smoothing else 2
    return _launch("forward", names, problem, capabilities, scratch_numbers=numbers)


@functools.lru_cache(maxsize=1024)
def backward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``cross_entropy_backward``.

    Raises:
        UnsupportedError: with the reason.
    """
    names = ("x", "dx", "target", "loss", "d_loss")
    return _launch("backward", names, problem, capabilities, scratch_numbers=0)


def _launch(
    name: str, names: tuple[str, ...], problem: Problem, capabilities: Capabilities, *, scratch_numbers: int
) -> Launch:
    dtype = problem.operands[0].dtype
    refuse_dtype(dtype, capabilities)
    rows = Rows.over((problem.dim,), problem.shape, problem.operands, problem.per_row)
    team = share(rows, capabilities, held=0)
    params = ParamStruct.read(f"{_FOLDER}/args.h", "CrossEntropyArgs")
    fields: Params = {
        "ignore_index": problem.ignore_index,
        "on_target": 1 - problem.label_smoothing,
        "on_each": problem.label_smoothing / rows.length,
    }
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel=f"cross_entropy_{name}",
        defines=(
            ("ELEMENT", ELEMENTS[dtype]),
            ("ACCUMULATOR", accumulator(dtype)),
            ("WEIGHTED", int(problem.weighted)),
            ("SMOOTHING", int(problem.label_smoothing > 0)),
            *rows.defines,
            *team.defines,
            ("ARGS_BYTES", params.size),
        ),
        words=params.pack(rows.params(*names) | rows.strides("x", "dx") | fields, accumulator(dtype)),
        threads=grid(rows.count, team),
        group_size=(team.threads, 1, 1),
        threadgroup_bytes=team.scratch * scratch_numbers * accumulator_dtype(dtype).itemsize,
    )
