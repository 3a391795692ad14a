"""Products that tests, benchmarks and the strict parse share: shapes, layouts, and the tensors they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from . import plan
from .activation import Activation
from .reference import gemm as _reference_gemm
from .reference import gemm_backward

__all__ = ["LAYOUTS", "NAMES", "SIZES", "Case", "Inputs", "LayoutName", "launches"]

#: Sizes next to those of tiles and blocks.
SIZES = (1, 3, 17, 33, 65, 129)

#: How a matrix lies in memory: contiguous; transposed; a slice of a wider one, so that rows start at odd addresses; the
#: same of a transposed one; one row or column for all; every second element of both dimensions.
LayoutName = Literal["contiguous", "transposed", "sliced", "transposed slice", "one row", "one column", "strided"]
LAYOUTS: tuple[LayoutName, ...] = (
    "contiguous",
    "transposed",
    "sliced",
    "transposed slice",
    "one row",
    "one column",
    "strided",
)

#: What `Inputs.exact` and `Inputs.pytorch` return, in this order.
NAMES = ("c", "grad_a", "grad_b", "grad_bias")


@dataclass(frozen=True)
class Inputs:
    """The operands of a product, and the gradient of its result."""

    a: Tensor
    b: Tensor
    bias: Tensor | None
    activation: Activation
    grad_c: Tensor

    def exact(self) -> tuple[Tensor, ...]:
        """``c``, ``grad_a``, ``grad_b`` and with a bias ``grad_bias``, from the reference in float64."""
        a, b, grad_c = self.a.double(), self.b.double(), self.grad_c.double()
        c, z = _reference_gemm(a, b, None if self.bias is None else self.bias.double(), self.activation)
        gradients = gemm_backward(grad_c, a, b, z, self.activation)
        return c, *(gradients if self.bias is not None else gradients[:2])

    def pytorch(self) -> tuple[Tensor, ...]:
        """The same from PyTorch's operators, in the dtype of the operands."""
        operands = [x.detach().clone().requires_grad_() for x in (self.a, self.b)]
        biases = [] if self.bias is None else [self.bias.detach().clone().requires_grad_()]
        z = operands[0] @ operands[1] if self.bias is None else operands[0] @ operands[1] + biases[0]
        c = _pytorch_activation(z, self.activation)
        return c.detach(), *torch.autograd.grad(c, (*operands, *biases), self.grad_c)


def _pytorch_activation(z: Tensor, activation: Activation) -> Tensor:
    functional = torch.nn.functional
    if activation == Activation.RELU:
        return functional.relu(z)
    if activation in (Activation.GELU, Activation.GELU_TANH):
        return functional.gelu(z, approximate="tanh" if activation == Activation.GELU_TANH else "none")
    return functional.silu(z) if activation == Activation.SILU else z


@dataclass(frozen=True)
class Case:
    """One product: ``A [*a_batch, rows, depth]`` and ``B [*b_batch, depth, columns]``."""

    rows: int
    columns: int
    depth: int
    a_batch: tuple[int, ...] = ()
    b_batch: tuple[int, ...] = ()
    a_layout: LayoutName = "contiguous"
    b_layout: LayoutName = "contiguous"
    bias: bool = False
    activation: Activation = Activation.NONE

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> Inputs:
        """Random tensors from PyTorch's generator; scaled so that the result is about standard normal."""
        scale = max(self.depth, 1) ** -0.25
        batch = torch.broadcast_shapes(self.a_batch, self.b_batch)
        return Inputs(
            a=_matrices((*self.a_batch, self.rows, self.depth), self.a_layout, scale, dtype, device),
            b=_matrices((*self.b_batch, self.depth, self.columns), self.b_layout, scale, dtype, device),
            bias=torch.randn(self.columns, device=device).to(dtype) if self.bias else None,
            activation=self.activation,
            grad_c=torch.randn(*batch, self.rows, self.columns, device=device).to(dtype),
        )


def _matrices(shape: tuple[int, ...], layout: LayoutName, scale: float, dtype: torch.dtype, device: str) -> Tensor:
    *batch, rows, columns = shape

    def random(*size: int) -> Tensor:
        return (scale * torch.randn(*batch, *size, device=device)).to(dtype)

    if layout == "transposed":
        return random(columns, rows).mT
    if layout == "sliced":
        return random(rows + 2, columns + 3)[..., 1:-1, 1:-2]
    if layout == "transposed slice":
        return random(columns + 2, rows + 3)[..., 1:-1, 1:-2].mT
    if layout == "one row":
        return random(1, columns).expand(shape)
    if layout == "one column":
        return random(rows, 1).expand(shape)
    if layout == "strided":
        return random(2 * rows, 2 * columns)[..., ::2, ::2]
    return random(rows, columns)


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernels' preprocessor, in each dtype that Metal has."""
    capabilities = capabilities or Capabilities()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        plain = plan.Problem(
            dtype=dtype,
            batch=(),
            rows=128,
            columns=128,
            depth=128,
            a=plan.Operand(True, 128, aligned=True),
            b=plan.Operand(False, 128, aligned=True),
        )
        small = plan.Tiling(BM=32, BN=32, BK=16, WM=2, WN=1, pad=False, stages=2)
        batched = replace(
            plain,
            batch=(2, 3),
            a=plan.Operand(False, 128, (0, 7)),
            b=plan.Operand(True, 128, (7, 0)),
            bias=True,
            activation=Activation.GELU,
            save=True,
        )
        split = plan.product(batched, capabilities, replace(small, splits=2))
        turned = replace(plain, a=plan.Operand(False, 128, aligned=True), b=plan.Operand(True, 128, aligned=True))
        problems = [
            plan.product(plain, capabilities),
            *(
                plan.product(problem, capabilities, tiling)
                for problem in (plain, turned)
                for tiling in plan.wide_tilings(problem, capabilities)
            ),
            plan.product(batched, capabilities, small),
            split,
            *(
                plan.product(replace(plain, bias=True, activation=activation), capabilities)
                for activation in (Activation.RELU, Activation.GELU_TANH, Activation.SILU)
            ),
            *(
                plan.backward_epilogue(plan.BackwardProblem(dtype, 300, 40, bias, activation), capabilities)
                for bias, activation in (
                    (True, Activation.NONE),
                    (False, Activation.RELU),
                    (True, Activation.GELU),
                    (True, Activation.GELU_TANH),
                    (True, Activation.SILU),
                )
            ),
        ]
        for chosen in problems:
            yield chosen.product
            if chosen.reduction is not None:
                yield chosen.reduction
