"""Both softmax kernels on small problems, the backward one fed with exact results: each stands for itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...launch import Capabilities
from ...self_check import Expected, SelfCheck, in_each_dtype
from . import plan, reference
from .cases import Case
from .function import describe

__all__ = ["self_checks"]

#: Rows of a simdgroup's part, of a simdgroup, of a threadgroup and longer; odd and aligned; side by side.
_CASES = (
    Case((6, 23), 1),
    Case((6, 200), 1, log=True, values="offset"),
    Case((3, 20_000), 1),
    Case((4, 30, 300), 1, log=True),
)


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of the forward and backward kernels in each dtype that Metal has."""
    return in_each_dtype(_CASES, _checks, capabilities)


def _checks(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Iterator[SelfCheck]:
    x, grad_out = case.inputs(dtype)
    leaf = x.clone().requires_grad_()
    pytorch = leaf.log_softmax(case.dim) if case.log else leaf.softmax(case.dim)
    (pytorch_grad,) = torch.autograd.grad(pytorch, leaf, grad_out)
    out = Expected("out", reference.softmax_forward(x.double(), case.dim, case.log), pytorch.detach())
    exact_out = out.reference.to(dtype)
    exact_grad = reference.softmax_backward(grad_out.double(), exact_out.double(), case.dim, case.log)
    grad = Expected("grad", exact_grad, pytorch_grad)

    words = f"{'log ' if case.log else ''}softmax of {' x '.join(map(str, case.shape))} along {case.dim}"
    forward = plan.forward(describe(case.dim, case.log, x, out.pytorch), capabilities)
    backward = plan.backward(describe(case.dim, case.log, grad.pytorch, exact_out, grad_out), capabilities)
    yield SelfCheck(words, dtype, forward, (x,), (out,))
    yield SelfCheck(words, dtype, backward, (exact_out, grad_out), (grad,))
