"""Each reduction kernel on small problems, fed with exact results of those before it: each stands for itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...launch import Capabilities
from ...self_check import Expected, SelfCheck, in_each_dtype
from ..dtypes import accumulator_dtype
from ..rows import Operand
from . import plan, reference
from .cases import Case
from .function import describe
from .plan import Operation

__all__ = ["self_checks"]

#: Rows of a part of a simdgroup, of a threadgroup, and side by side; equal largest elements.
_CASES = (
    Case((40, 23), (1,), values="whole"),
    Case((3, 2, 2000), (0, 2), values="whole"),
    Case((20, 600), (0,), values="whole"),
)


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of every kernel in each dtype that Metal has."""
    return in_each_dtype(_CASES, _checks, capabilities)


def _checks(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Iterator[SelfCheck]:
    x, dims, words = case.input(dtype), list(case.dims), f"{' x '.join(map(str, case.shape))} over {case.dims}"
    total = Expected("sum", reference.sum_forward(x.double(), case.dims), x.sum(dims, keepdim=True))
    y = x.amax(dims, keepdim=True)
    largest = Expected("amax", reference.amax_forward(x.double(), case.dims), y)
    equal = x == y
    count = reference.sum_forward(equal.double(), case.dims)
    ties = Expected("ties", count, count.to(accumulator_dtype(dtype)))
    for operation, expected, compared in (
        (Operation.SUM, total, None),
        (Operation.LARGEST, largest, None),
        (Operation.TIES, ties, y),
    ):
        problem = describe(operation, x, compared, dims, expected.pytorch)
        (launch,) = plan.reduction(problem, capabilities).launches
        yield SelfCheck(
            f"{expected.name} of {words}", dtype, launch, (x, x if compared is None else compared), (expected,)
        )

    grad_out = torch.randn(y.shape).to(dtype)
    grad = Expected(
        "grad", reference.amax_backward(grad_out.double(), x.double(), case.dims), _gradient(x, dims, grad_out)
    )
    per_row = (Operand.of(ties.pytorch), Operand.of(y), Operand.of(grad_out))
    launch = plan.amax_backward(case.shape, case.dims, (Operand.of(x), Operand.of(grad.pytorch)), per_row, capabilities)
    yield SelfCheck(f"amax of {words}", dtype, launch, (x, y, grad_out, ties.pytorch), (grad,))


def _gradient(x: Tensor, dims: list[int], grad_out: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(leaf.amax(dims, keepdim=True), leaf, grad_out)[0]
