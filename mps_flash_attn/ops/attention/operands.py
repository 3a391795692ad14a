"""What each attention kernel reads and has to write; it reads exact results, so that each kernel stands for itself.

Where queries and keys are turned, the kernels' gradients are those of what was turned: nothing turns them back here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...self_check import Expected
from . import plan
from .cases import Case, Inputs
from .expected import NAMES, exact, pytorch
from .problem import describe, empty_output

__all__ = ["Operands", "operands", "outputs", "problem", "words"]

#: What a kernel reads, in the order of its buffers, and what it writes, in that of the buffers that follow.
Operands = tuple[tuple[Tensor, ...], tuple[Expected, ...]]


def problem(inputs: Inputs) -> plan.Problem:
    """The plan's problem for the inputs, which may be on the device ``meta``, and contiguous outputs."""
    like = {
        "out": empty_output(inputs.query, inputs.value.shape[3]),
        "dq": inputs.query,
        "dk": inputs.key,
        "dv": inputs.value,
    }
    empty = {name: torch.empty(x.shape, dtype=x.dtype, device=x.device) for name, x in like.items()}
    return describe(
        inputs.query,
        inputs.key,
        inputs.value,
        inputs.attn_mask,
        inputs.modifiers.options(inputs.query, inputs.key, inputs.value, inputs.scale, int(inputs.causal)),
        out=empty.pop("out"),
        grad_out=inputs.grad_out,
        **empty,
    )


def outputs(inputs: Inputs) -> dict[str, Expected]:
    """What attention gives for the inputs, by `NAMES`."""
    return {
        name: Expected(name, x, baseline.contiguous())
        for name, x, baseline in zip(NAMES, exact(inputs), pytorch(inputs), strict=True)
        if x is not None and baseline is not None
    }


def operands(inputs: Inputs) -> dict[str, Operands]:
    """The operands of each kernel by its name; the inputs are CPU tensors, the outputs contiguous as in `problem`."""
    dtype, grad_out, grad_lse = inputs.query.dtype, inputs.grad_out, inputs.grad_lse
    expected = outputs(inputs.turned())
    out, lse, dq, dk, dv = (expected[name] for name in NAMES[:5])
    exact_out = out.reference.to(dtype)
    delta = Expected(
        "delta",
        _delta(grad_out.double(), exact_out.double(), grad_lse.double()),
        _delta(grad_out.to(grad_lse.dtype), exact_out.to(grad_lse.dtype), grad_lse),
    )
    m = inputs.modifiers
    # Queries stand in for what a kernel does not read.
    before, sinks, seed = (
        tuple(inputs.query if x is None else x for x in extras)
        for extras in ((inputs.attn_mask, m.cos, m.sin, m.alibi_slopes), (m.sinks,), (m.seed, None))
    )
    read = (inputs.query, inputs.key, inputs.value, *before)
    exact_lse, exact_delta = (x.reference.to(grad_lse.dtype) for x in (lse, delta))
    read_backward = (*read, *seed, grad_out, exact_lse, exact_delta)
    return {
        "attention_forward": ((*read, *sinks, *seed, *(inputs.query,) * 3), (out, lse)),
        "attention_backward_delta": ((exact_out, grad_out, grad_lse, exact_lse), (delta,)),
        "attention_backward_dq": (read_backward, (dq,)),
        "attention_backward_dkv": (read_backward, (dk, dv)),
        **({"attention_backward_dmask": (read_backward, (expected["dmask"],))} if inputs.mask_gradient else {}),
    }


def words(case: Case) -> str:
    """The case in a few words."""
    extras = f"{', causal' if case.causal else ''}{', mask' if case.mask != 'none' else ''}"
    extras += ", rotary" if case.rotation else ""
    extras += ", window" if case.window != (-1, -1) else ""
    for name in ("softcap", "alibi", "sinks", "dropout_p"):
        extras += f", {name}" if getattr(case, name) else ""
    grouped = ", grouped heads" if case.query_heads != case.key_heads else ""
    sizes = f"D {case.head_size}" + (f" and {case.value_head_size}" if case.value_head_size else "")
    return f"{case.queries} x {case.keys}, {sizes}{grouped}{extras}"


def _delta(grad_out: Tensor, out: Tensor, grad_lse: Tensor) -> Tensor:
    return (grad_out * out).sum(-1) - grad_lse
