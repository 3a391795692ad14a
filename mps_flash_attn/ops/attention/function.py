"""The attention operators ``torch.ops.mps_flash_attn.attention_{forward,backward}``: launches, fakes and autograd."""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor

from . import reference

__all__ = ["Causal", "attention_backward", "attention_forward"]


class Causal(enum.IntEnum):
    """Which keys a query may see: all; ``j <= i``; ``j <= i + Lk - Lq``."""

    NONE = 0
    TOP_LEFT = 1
    BOTTOM_RIGHT = 2


def _lse_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.custom_op("mps_flash_attn::attention_forward", mutates_args=())
def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float, causal: int
) -> tuple[Tensor, Tensor]:
    work = torch.promote_types(query.dtype, torch.float32)
    out, lse = reference.attention_forward(query.to(work), key.to(work), value.to(work), attn_mask, scale, causal)
    return out.to(query.dtype), lse.to(_lse_dtype(query.dtype))


@torch.library.custom_op("mps_flash_attn::attention_backward", mutates_args=())
def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal: int,
) -> tuple[Tensor, Tensor, Tensor]:
    work = torch.promote_types(query.dtype, torch.float32)
    dq, dk, dv = reference.attention_backward(
        grad_out.to(work),
        grad_lse,
        query.to(work),
        key.to(work),
        value.to(work),
        attn_mask,
        out.to(work),
        lse.to(work),
        scale,
        causal,
    )
    return dq.to(query.dtype), dk.to(query.dtype), dv.to(query.dtype)


@attention_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float, causal: int
) -> tuple[Tensor, Tensor]:
    lse = query.new_empty(query.shape[:-1], dtype=_lse_dtype(query.dtype))
    return query.new_empty(query.shape), lse


@attention_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, attn_mask, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(query, key, value, attn_mask, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, attn_mask, out, lse = ctx.saved_tensors
    if grad_out is None:
        if grad_lse is None:
            return (None,) * 6
        grad_out = torch.zeros_like(out)
    dq, dk, dv = torch.ops.mps_flash_attn.attention_backward(
        grad_out, grad_lse, query, key, value, attn_mask, out, lse, ctx.scale, ctx.causal
    )
    return dq, dk, dv, None, None, None


attention_forward.register_autograd(_backward, setup_context=_save_for_backward)
