"""Every attention kernel on small problems, fed with exact results of the kernels before it: each stands for itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...launch import Capabilities
from ...self_check import Expected, SelfCheck
from . import plan
from .cases import Case
from .expected import NAMES, exact, pytorch
from .function import Causal, describe

__all__ = ["self_checks"]

_PLAIN = Case(128, 128, 64, batch=1)
#: All at once: grouped heads, odd lengths, keys hidden by their place and by a mask.
_MASKED = Case(
    70, 90, 80, query_heads=4, key_heads=2, causal=Causal.BOTTOM_RIGHT, mask="additive", mask_dtype=torch.float16
)


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of the forward and backward kernels in each dtype that Metal has, made one problem at a time."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for case in (_PLAIN, _MASKED):
            yield from _checks(case, dtype, capabilities)


def _checks(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Iterator[SelfCheck]:
    inputs = case.inputs(dtype)
    query, key, value, grad_out, grad_lse = inputs.query, inputs.key, inputs.value, inputs.grad_out, inputs.grad_lse
    mask = None if inputs.attn_mask is None else inputs.attn_mask.contiguous()
    out, lse, dq, dk, dv = map(Expected, NAMES, exact(inputs), pytorch(inputs))
    exact_out = out.reference.to(dtype)
    delta = Expected(
        "delta",
        _delta(grad_out.double(), exact_out.double(), grad_lse.double()),
        _delta(grad_out.to(grad_lse.dtype), exact_out.to(grad_lse.dtype), grad_lse),
    )
    exact_lse, exact_delta = (x.reference.to(grad_lse.dtype) for x in (lse, delta))
    problem = describe(
        query,
        key,
        value,
        mask,
        inputs.scale,
        case.causal,
        out=exact_out,
        grad_out=grad_out,
        dq=dq.pytorch,
        dk=dk.pytorch,
        dv=dv.pytorch,
    )
    on_delta, on_dq, on_dkv = plan.backward(problem, capabilities, lse_gradient=True)
    operands = query, key, value, query if mask is None else mask
    for launch, read, written in (
        (plan.forward(problem, capabilities), operands, (out, lse)),
        (on_delta, (exact_out, grad_out, grad_lse), (delta,)),
        (on_dq, (*operands, grad_out, exact_lse, exact_delta), (dq,)),
        (on_dkv, (*operands, grad_out, exact_lse, exact_delta), (dk, dv)),
    ):
        yield SelfCheck(_words(case), dtype, launch, read, written)


def _delta(grad_out: Tensor, out: Tensor, grad_lse: Tensor) -> Tensor:
    return (grad_out * out).sum(-1) - grad_lse


def _words(case: Case) -> str:
    extras = f"{', causal' if case.causal else ''}{', mask' if case.mask != 'none' else ''}"
    grouped = ", grouped heads" if case.query_heads != case.key_heads else ""
    return f"{case.queries} x {case.keys}, D {case.head_size}{grouped}{extras}"
