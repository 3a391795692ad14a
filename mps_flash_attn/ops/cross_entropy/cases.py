"""Cross entropy problems that tests share: shapes, options, layouts and values, and the tensors they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from ..dtypes import accumulator_dtype
from ..layouts import LayoutName, lay
from ..rows import Operand
from . import plan

__all__ = ["Case", "Inputs", "ValuesName", "launches"]

#: Standard normal logits; those and an offset of 1e4; one large logit a row; a third of those of other classes -inf.
ValuesName = Literal["normal", "offset", "one-hot", "infinite"]


@dataclass(frozen=True)
class Inputs:
    """The arguments of `cross_entropy`, and a gradient for the loss of each row."""

    x: Tensor
    target: Tensor
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    grad_loss: Tensor


@dataclass(frozen=True)
class Case:
    """One problem; the shape is that of the logits, with the classes in the second dimension, or the only one."""

    shape: tuple[int, ...]
    weighted: bool = False
    label_smoothing: float = 0.0
    ignored: bool = False  # about a quarter of the rows
    layout: LayoutName = "contiguous"
    values: ValuesName = "normal"
    ignore_index: int = -100
    probabilities: torch.dtype | None = None  # the target's dtype, if it holds those in the place of classes

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> Inputs:
        """Random tensors from PyTorch's generator."""
        dim = min(len(self.shape), 2) - 1
        classes, rows = self.shape[dim], self.shape[:dim] + self.shape[dim + 1 :]
        target = torch.randint(classes, rows, device=device)
        if self.ignored:
            target = target.masked_fill(torch.rand(rows, device=device) < 1 / 4, self.ignore_index)
        weight = torch.rand(classes, device=device).add(0.5).to(dtype) if self.weighted else None
        grad_loss = torch.randn(rows, device=device).to(dtype)
        x = lay(self._values(dim, target, device).to(dtype), self.layout)
        if self.probabilities is not None:
            target = lay(torch.rand(self.shape, device=device).to(self.probabilities), self.layout)
        return Inputs(x, target, weight, self.ignore_index, self.label_smoothing, grad_loss)

    def _values(self, dim: int, target: Tensor, device: str) -> Tensor:
        x = torch.randn(self.shape, device=device)
        if self.values == "offset":
            x += 1e4
        elif self.values == "one-hot":
            x.movedim(dim, 0)[0] += 100
        elif self.values == "infinite":
            of_target = torch.zeros(self.shape, dtype=torch.bool, device=device)
            of_target.scatter_(dim, target.clamp(0, self.shape[dim] - 1).unsqueeze(dim), True)
            x = x.masked_fill((torch.rand(self.shape, device=device) < 1 / 3) & ~of_target, -torch.inf)
        return x


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernels' preprocessor, in each dtype that Metal has."""
    capabilities = capabilities or Capabilities()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape, weighted, smoothing in (
            ((5, 24), True, 0.1),
            ((5, 23), False, 0.0),
            ((2, 100_000), False, 0.1),
            ((3, 50, 2000), True, 0.0),
        ):
            x = Operand(dtype, torch.empty(shape, device="meta").stride())
            strides = list(torch.empty((shape[0], *shape[2:]), device="meta").stride())
            strides.insert(1, 0)
            target = Operand(torch.int64, tuple(strides))
            loss = Operand(accumulator_dtype(dtype), tuple(strides))
            options = (weighted, -100, smoothing)
            rows = (("loss", loss), ("d_loss", loss))
            classes = (shape, 1, (("x", x), ("dx", x)), (("target", target), *rows))
            probabilities = replace(x, dtype=torch.float32)
            operands = (("x", x), ("target", probabilities))
            yield plan.forward(plan.Problem(shape, 1, (("x", x),), classes[3], *options), capabilities)
            yield plan.backward(plan.Problem(*classes, *options), capabilities)
            yield plan.forward(plan.Problem(shape, 1, operands, rows, *options), capabilities)
            for wanted in ((("dx", x),), (("d_target", probabilities),), (("dx", x), ("d_target", probabilities))):
                yield plan.backward(plan.Problem(shape, 1, (*operands, *wanted), rows, *options), capabilities)
