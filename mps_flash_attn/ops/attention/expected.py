"""What attention has to give for a problem: exactly, and as PyTorch computes it in the problem's own dtype."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .cases import Inputs
from .function import Causal

__all__ = ["NAMES", "exact", "pytorch"]

#: What `exact` and `pytorch` return, in this order.
NAMES = ("out", "lse", "dq", "dk", "dv")


def exact(inputs: Inputs) -> tuple[Tensor, ...]:
    """``out lse dq dk dv`` from the reference in float64."""
    double = dataclasses.replace(
        inputs,
        **{name: getattr(inputs, name).double() for name in ("query", "key", "value", "grad_out", "grad_lse")},
    )
    arguments = (double.query, double.key, double.value, double.attn_mask)
    out, lse = reference.attention_forward(*arguments, double.scale, double.causal)
    gradients = reference.attention_backward(
        double.grad_out, double.grad_lse, *arguments, out, lse, double.scale, double.causal
    )
    return out, lse, *gradients


def pytorch(inputs: Inputs) -> tuple[Tensor, ...]:
    """``out lse dq dk dv`` from PyTorch: its attention, and for the log-sum-exp its ``logsumexp``."""
    query, key, value = (x.detach().clone().requires_grad_() for x in (inputs.query, inputs.key, inputs.value))
    dtype, (lq, lk) = query.dtype, (query.shape[2], key.shape[2])
    mask = torch.zeros(query.shape[0], query.shape[1], lq, lk, dtype=dtype)
    if inputs.attn_mask is not None and inputs.attn_mask.dtype == torch.bool:
        mask = mask.masked_fill(~inputs.attn_mask, -torch.inf)
    elif inputs.attn_mask is not None:
        mask = mask + inputs.attn_mask.to(dtype)
    if inputs.causal:
        visible = reference.causal_mask(lq, lk, bottom_right=inputs.causal == Causal.BOTTOM_RIGHT)
        mask = mask.masked_fill(~visible, -torch.inf)
    groups = query.shape[1] // key.shape[1]
    work = torch.promote_types(dtype, torch.float32)
    scores = query.to(work) @ key.to(work).repeat_interleave(groups, 1).transpose(-2, -1) * inputs.scale
    lse = torch.logsumexp(scores + mask.to(work), dim=-1)
    out = F.scaled_dot_product_attention(query, key, value, mask, scale=inputs.scale, enable_gqa=True)
    gradients = torch.autograd.grad((out, lse), (query, key, value), (inputs.grad_out, inputs.grad_lse))
    return tuple(x.detach().nan_to_num(posinf=torch.inf, neginf=-torch.inf) for x in (out, lse, *gradients))
