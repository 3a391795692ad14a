"""What each attention kernel reads and has to write; it reads exact results, so that each kernel stands for itself.

Where queries and keys are turned, the kernels' gradients are those of what was turned: nothing turns them back here.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ...self_check import Expected
from . import plan
from .cases import Case, Inputs
from .expected import NAMES, exact, pytorch
from .function import describe

__all__ = ["Operands", "operands", "problem", "words"]

#: What a kernel reads, in the order of its buffers, and what it writes, in that of the buffers that follow.
Operands = tuple[tuple[Tensor, ...], tuple[Expected, ...]]


def problem(inputs: Inputs) -> plan.Problem:
    """The plan's problem for the inputs, which may be on the device ``meta``, and contiguous outputs."""
    like = {"out": inputs.query, "dq": inputs.query, "dk": inputs.key, "dv": inputs.value}
    outputs = {name: torch.empty(x.shape, dtype=x.dtype, device=x.device) for name, x in like.items()}
    described = describe(
        inputs.query,
        inputs.key,
        inputs.value,
        inputs.attn_mask,
        inputs.scale,
        inputs.causal,
        out=outputs.pop("out"),
        grad_out=inputs.grad_out,
        **outputs,
    )
    return dataclasses.replace(described, rotation=inputs.rotation)


def operands(inputs: Inputs) -> dict[str, Operands]:
    """The operands of each kernel by its name; the inputs are CPU tensors, the outputs contiguous as in `problem`."""
    dtype, grad_out, grad_lse = inputs.query.dtype, inputs.grad_out, inputs.grad_lse
    plain = inputs.turned()
    out, lse, dq, dk, dv = map(Expected, NAMES, exact(plain), (x.contiguous() for x in pytorch(plain)))
    exact_out = out.reference.to(dtype)
    delta = Expected(
        "delta",
        _delta(grad_out.double(), exact_out.double(), grad_lse.double()),
        _delta(grad_out.to(grad_lse.dtype), exact_out.to(grad_lse.dtype), grad_lse),
    )
    mask = inputs.query if inputs.attn_mask is None else inputs.attn_mask
    read = inputs.query, inputs.key, inputs.value, mask, *(inputs.tables or (inputs.query,) * 2)
    exact_lse, exact_delta = (x.reference.to(grad_lse.dtype) for x in (lse, delta))
    read_backward = (*read, grad_out, exact_lse, exact_delta)
    return {
        "attention_forward": (read, (out, lse)),
        "attention_backward_delta": ((exact_out, grad_out, grad_lse, exact_lse), (delta,)),
        "attention_backward_dq": (read_backward, (dq,)),
        "attention_backward_dkv": (read_backward, (dk, dv)),
    }


def words(case: Case) -> str:
    """The case in a few words."""
    extras = f"{', causal' if case.causal else ''}{', mask' if case.mask != 'none' else ''}"
    extras += ", rotary" if case.rotation else ""
    grouped = ", grouped heads" if case.query_heads != case.key_heads else ""
    return f"{case.queries} x {case.keys}, D {case.head_size}{grouped}{extras}"


def _delta(grad_out: Tensor, out: Tensor, grad_lse: Tensor) -> Tensor:
    return (grad_out * out).sum(-1) - grad_lse
