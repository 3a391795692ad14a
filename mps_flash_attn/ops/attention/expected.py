"""What attention has to give for a problem: exactly, and as PyTorch computes it in the problem's own dtype."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .cases import Inputs

__all__ = ["NAMES", "exact", "pytorch"]

#: What `exact` and `pytorch` return, in this order; the last two where the inputs have a float mask, or sinks.
NAMES = ("out", "lse", "dq", "dk", "dv", "dmask", "dsinks")

Results = tuple["Tensor | None", ...]


def exact(inputs: Inputs) -> Results:
    """`NAMES` from the reference in float64."""
    double = dataclasses.replace(
        inputs,
        **{name: getattr(inputs, name).double() for name in ("query", "key", "value", "grad_out", "grad_lse")},
    )
    arguments = (double.query, double.key, double.value, double.attn_mask)
    scoring = inputs.scoring()
    if scoring.sinks is not None:
        scoring = dataclasses.replace(scoring, sinks=scoring.sinks.double())
    out, lse = reference.attention_forward(*arguments, scoring)
    gradients = reference.attention_backward(double.grad_out, double.grad_lse, *arguments, out, lse, scoring)
    return out, lse, *gradients


def pytorch(inputs: Inputs) -> Results:
    """`NAMES` from PyTorch in the inputs' own dtype: its attention, and for the log-sum-exp its ``logsumexp``.

    Of softcap, sinks and dropout its attention knows nothing; there it is the formula in PyTorch's operators.
    """
    scoring, work = inputs.scoring(), torch.promote_types(inputs.query.dtype, torch.float32)
    query, key, value = (x.detach().clone().requires_grad_() for x in (inputs.query, inputs.key, inputs.value))
    mask, sinks = inputs.attn_mask, scoring.sinks
    if mask is not None and inputs.mask_gradient:
        mask = mask.detach().clone().requires_grad_()
    if sinks is not None:
        sinks = sinks.detach().clone().requires_grad_()
        scoring = dataclasses.replace(scoring, sinks=sinks)
    leaves = [x for x in (query, key, value, mask, sinks) if x is not None and x.requires_grad]

    out, lse = reference.attention_forward(query.to(work), key.to(work), value.to(work), mask, scoring)
    if scoring.softcap or sinks is not None or scoring.dropped is not None:
        out, _ = reference.attention_forward(query, key, value, mask, scoring)
    else:
        plain = dataclasses.replace(scoring, scale=0.0)
        bias = reference.scores(torch.zeros_like(query), torch.zeros_like(key), mask, plain)
        out = F.scaled_dot_product_attention(query, key, value, bias, scale=inputs.scale, enable_gqa=True)
    gradients = iter(torch.autograd.grad((out, lse), leaves, (inputs.grad_out, inputs.grad_lse), allow_unused=True))
    results = (
        out,
        lse,
        *(next(gradients) if x is not None and x.requires_grad else None for x in (query, key, value, mask, sinks)),
    )
    return tuple(None if x is None else x.detach().nan_to_num(posinf=torch.inf, neginf=-torch.inf) for x in results)
