"""Elementwise problems that tests and benchmarks share: operations, shapes and layouts, and their tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from ..rows import Operand
from . import plan
from .plan import Operation

__all__ = ["Case", "Inputs", "LayoutName", "launches"]

#: How a tensor lies in memory: contiguous; dimensions in reverse order; a slice of wider rows, which start at odd
#: addresses; a slice whose elements are not neighbours; the first of the first dimension expanded to all.
LayoutName = Literal["contiguous", "transposed", "sliced", "strided", "expanded"]


@dataclass(frozen=True)
class Inputs:
    """The operands and a gradient for the result."""

    x: Tensor
    y: Tensor | float | None
    activation: str
    combine: str
    grad: Tensor


@dataclass(frozen=True)
class Case:
    """One problem: ``combine(activation(x), y)``.

    Attributes:
        y: shape of a tensor, or a number, or nothing.
        y_dtype: of ``y``, if another than that of ``x``.
        layout: of ``x`` and of the gradient; ``y_layout`` of ``y``.
        scale: of the normally distributed values of ``x``.
    """

    x: tuple[int, ...]
    y: tuple[int, ...] | float | None = None
    activation: str = "identity"
    combine: str = "none"
    layout: LayoutName = "contiguous"
    y_layout: LayoutName = "contiguous"
    scale: float = 3.0
    y_dtype: torch.dtype | None = None

    def inputs(self, dtype: torch.dtype) -> Inputs:
        """Random tensors from PyTorch's generator, on the CPU."""
        shape, result = self.x, dtype
        x = _tensor(self.x, self.layout, dtype, self.scale)
        y: Tensor | float | None
        if isinstance(self.y, tuple):
            shape = tuple(torch.broadcast_shapes(self.x, self.y))
            y = _tensor(self.y, self.y_layout, self.y_dtype or dtype)
            result = torch.result_type(x, y)
        else:
            y = self.y
        return Inputs(x, y, self.activation, self.combine, _tensor(shape, self.layout, result))


def _tensor(shape: tuple[int, ...], layout: LayoutName, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    if shape and layout == "transposed":
        return (scale * torch.randn(shape[::-1])).to(dtype).permute(*reversed(range(len(shape))))
    if shape and layout == "sliced":
        return (scale * torch.randn(*shape[:-1], shape[-1] + 3)).to(dtype)[..., 1:-2]
    if shape and layout == "strided":
        return (scale * torch.randn(*shape, 2)).to(dtype)[..., 1]
    if shape and layout == "expanded":
        return (scale * torch.randn(1, *shape[1:])).to(dtype).expand(shape)
    return (scale * torch.randn(shape)).to(dtype)


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernels' preprocessor, in each dtype that Metal has."""
    capabilities = capabilities or Capabilities()
    for dtype, (activation, combine, number, packed) in itertools.product(
        (torch.float32, torch.float16, torch.bfloat16),
        (
            ("identity", "add", None, True),
            ("identity", "mul", 2.0, False),
            ("relu", "none", None, True),
            ("relu_squared", "mul", None, False),
            ("gelu", "mul", None, True),
            ("gelu_tanh", "none", None, False),
            ("silu", "mul", None, True),
        ),
    ):
        operation = Operation(activation, combine, number)
        second, row = combine != "none" and number is None, Operand(dtype, (64, 1))
        other = Operand(torch.float32, (64, 1)) if activation == "silu" else row
        operands = {"x": row, "out": other, **({"y": other} if second else {})}
        yield plan.forward(plan.Problem(operation, (8, 32), tuple(operands.items()), packed), capabilities)
        for wanted in (("dx",), ("dx", "dy"), ("dy",)) if second else (("dx",),):
            gradients = tuple({**operands, **{name: other if name == "dy" else row for name in wanted}}.items())
            yield plan.backward(plan.Problem(operation, (8, 32), gradients, packed), capabilities)
