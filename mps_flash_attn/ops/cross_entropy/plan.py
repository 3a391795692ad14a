"""Decides how cross entropy is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ...launch import Capabilities, Launch, ParamStruct
from ...source import Define
from ..dtypes import ELEMENTS, refuse_dtype
from ..rows import Operand, Params, Rows, grid, share

__all__ = ["Problem", "backward", "forward"]

_FOLDER = "ops/cross_entropy"
#: Tensors that the params struct has strides of; of the first four also those within a row.
_STRIDED = ("x", "dx", "target", "d_target", "loss", "d_loss")


@dataclass(frozen=True)
class Problem:
    """Cross entropy along ``dim`` of logits of this shape.

    Attributes:
        operands: of ``x dx target d_target`` those that there are, ``target`` where it holds probabilities.
        per_row: of ``target loss d_loss`` those that there are, ``target`` where it holds classes; stride 0 in ``dim``.
        weighted: whether classes have weights.
    """

    shape: tuple[int, ...]
    dim: int
    operands: tuple[tuple[str, Operand], ...]
    per_row: tuple[tuple[str, Operand], ...]
    weighted: bool
    ignore_index: int
    label_smoothing: float

    @property
    def probabilities(self) -> bool:
        return "target" in dict(self.operands)

    @property
    def spread(self) -> bool:
        """Whether every class weighs in a row's loss."""
        return self.probabilities or self.label_smoothing > 0

    @property
    def number(self) -> torch.dtype:
        """What losses are computed in."""
        return dict(self.per_row)["loss"].dtype


@functools.lru_cache(maxsize=1024)
def forward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``cross_entropy_forward``.

    Raises:
        UnsupportedError: with the reason.
    """
    return _launch("forward", problem, capabilities, (), scratch_numbers=4 if problem.spread else 2)


@functools.lru_cache(maxsize=1024)
def backward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``cross_entropy_backward``.

    Raises:
        UnsupportedError: with the reason.
    """
    wanted = dict(problem.operands)
    defines = (("X_GRADIENT", int("dx" in wanted)), ("TARGET_GRADIENT", int("d_target" in wanted)))
    return _launch("backward", problem, capabilities, defines, scratch_numbers=0)


def _launch(
    name: str, problem: Problem, capabilities: Capabilities, defines: tuple[Define, ...], *, scratch_numbers: int
) -> Launch:
    operands, per_row = dict(problem.operands), dict(problem.per_row)
    for operand in operands.values():
        refuse_dtype(operand.dtype, capabilities)
    rows = Rows.over((problem.dim,), problem.shape, tuple(operands.values()), tuple(per_row.values()))
    team = share(rows, capabilities, held=())
    params = ParamStruct.read(f"{_FOLDER}/args.h", "CrossEntropyArgs")
    fields: Params = {
        "ignore_index": problem.ignore_index,
        "on_target": 1 - problem.label_smoothing,
        "on_each": problem.label_smoothing / rows.length,
    }
    given, rest = (*operands, *per_row), [name for name in _STRIDED if name not in (*operands, *per_row)]
    strided = [name for name in _STRIDED[:4] if name not in operands]
    number = ELEMENTS[problem.number]
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel=f"cross_entropy_{name}",
        defines=(
            ("ELEMENT", ELEMENTS[operands["x"].dtype]),
            ("ACCUMULATOR", number),
            ("TARGET", ELEMENTS[operands["target"].dtype] if problem.probabilities else "long"),
            ("PROBABILITIES", int(problem.probabilities)),
            ("WEIGHTED", int(problem.weighted)),
            ("SPREAD", int(problem.spread)),
            *defines,
            *rows.defines,
            *team.defines,
            ("ARGS_BYTES", params.size),
        ),
        words=params.pack(rows.params(*given, *rest) | rows.strides(*operands, *strided) | fields, number),
        threads=grid(rows.count, team),
        group_size=(team.threads, 1, 1),
        threadgroup_bytes=team.scratch * scratch_numbers * problem.number.itemsize,
    )
