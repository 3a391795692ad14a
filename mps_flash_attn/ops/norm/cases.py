"""Problems of normalisation that tests and benchmarks share: shapes and layouts, and the tensors they stand for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from ..rows import Operand
from . import plan

__all__ = ["Case", "Inputs", "LayoutName", "launches"]

#: How the input lies in memory: contiguous; the first two dimensions swapped; a slice of wider rows, which start at odd
#: addresses; one row expanded to all; the last dimension strided, which has to be copied.
LayoutName = Literal["contiguous", "transposed", "sliced", "expanded", "strided"]


@dataclass(frozen=True)
class Inputs:
    """The arguments of `norm`, or with a residual of `add_norm`, and gradients for their outputs."""

    input: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    dims: int
    eps: float
    centred: bool
    grad: Tensor
    grad_sum: Tensor | None


@dataclass(frozen=True)
class Case:
    """One problem.

    Attributes:
        lead: sizes that rows are counted over, ``row`` those that are normalised over.
        centred: LayerNorm; otherwise RMSNorm, which has no bias.
        float_parameters: weight and bias in float32 whatever the input's dtype.
        offset, scale: of the input's normally distributed values.
    """

    lead: tuple[int, ...]
    row: tuple[int, ...]
    centred: bool = True
    residual: bool = False
    weight: bool = True
    bias: bool = True
    layout: LayoutName = "contiguous"
    float_parameters: bool = False
    offset: float = 0.0
    scale: float = 1.0
    eps: float = field(default=1e-5)

    def inputs(self, dtype: torch.dtype) -> Inputs:
        """Random tensors from PyTorch's generator, on the CPU."""
        shape = (*self.lead, *self.row)
        parameter = torch.promote_types(dtype, torch.float32) if self.float_parameters else dtype
        values = [self._tensor(shape).to(dtype) for _ in range(2 + 2 * self.residual)]
        weight, bias = (1 + torch.randn(self.row), torch.randn(self.row))
        return Inputs(
            input=values[0] * self.scale + self.offset,
            residual=values[2] if self.residual else None,
            weight=weight.to(parameter) if self.weight else None,
            bias=bias.to(parameter) if self.bias and self.centred else None,
            dims=len(self.row),
            eps=self.eps,
            centred=self.centred,
            grad=values[1],
            grad_sum=values[3] if self.residual else None,
        )

    def _tensor(self, shape: tuple[int, ...]) -> Tensor:
        if self.layout == "transposed" and len(shape) > 2:
            return torch.randn(shape[1], shape[0], *shape[2:]).transpose(0, 1)
        if self.layout == "sliced":
            return torch.randn(*shape[:-1], shape[-1] + 3)[..., 1:-2]
        if self.layout == "expanded":
            return torch.randn(shape[len(self.lead) :]).expand(shape)
        if self.layout == "strided":
            return torch.randn(*shape, 2)[..., 1]
        return torch.randn(shape)


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernels' preprocessor, in each dtype that Metal has."""
    capabilities = capabilities or Capabilities()
    names = ("x", "residual", "dy", "dsum")
    for dtype, (columns, address, everything) in itertools.product(
        (torch.float32, torch.float16, torch.bfloat16),
        ((64, 0, True), (61, 0, False), (100_000, 0, False), (3001, 4, True)),
    ):
        shape = (10, 10, columns) if everything else (100, columns)
        strides = (12 * columns, columns, 1) if everything else (columns, 1)
        parameter = Operand(torch.float32 if columns == 64 else dtype, (*(0,) * (len(shape) - 1), 1))
        problem = plan.Problem(
            shape=shape,
            dims=1,
            operands=tuple((name, Operand(dtype, strides, address)) for name in (names if everything else ("x", "dy"))),
            parameters=(parameter,) * 2 * everything,
            weight=everything,
            bias=everything,
            eps=1e-5,
            centred=everything,
        )
        yield plan.forward(problem, capabilities)
        yield plan.backward(problem, capabilities)
        yield plan.parameters(problem, capabilities)
