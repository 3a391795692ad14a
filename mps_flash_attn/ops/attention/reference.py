"""Attention and its gradients written out, O(Lq * Lk) in memory: the one reference that tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["attention_backward", "attention_forward", "causal_mask"]


def causal_mask(lq: int, lk: int, *, bottom_right: bool, device: torch.device | None = None) -> Tensor:
    """Boolean ``[lq, lk]`` matrix, true where query ``i`` may see key ``j``.

    Top-left: ``j <= i``. Bottom-right: ``j <= i + lk - lq``.
    """
    return torch.ones(lq, lk, dtype=torch.bool, device=device).tril(lk - lq if bottom_right else 0)


def _scores(query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float, causal: int) -> Tensor:
    """Masked scores ``[B, Hq, Lq, Lk]`` with the dtype of ``query``."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, dim=1).transpose(-2, -1) * scale
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        scores = scores + attn_mask.to(scores.dtype)
    elif attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    if causal:
        visible = causal_mask(*scores.shape[-2:], bottom_right=causal == 2, device=scores.device)
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float, causal: int
) -> tuple[Tensor, Tensor]:
    """Softmax attention and the log-sum-exp of its scores.

    Args:
        query: ``[B, Hq, Lq, D]``.
        key, value: ``[B, Hkv, Lk, D]``; query head ``h`` uses head ``h // (Hq / Hkv)``.
        attn_mask: boolean (true takes part) or additive, broadcast to ``[B, Hq, Lq, Lk]``.
        scale: factor of the scores.
        causal: 0 none, 1 aligned top-left, 2 aligned bottom-right.

    Returns:
        ``o [B, Hq, Lq, D]`` and ``lse [B, Hq, Lq]`` (natural logarithm), in the inputs' dtype. A row with every key
        masked has ``o`` 0 and ``lse`` -inf.
    """
    scores = _scores(query, key, attn_mask, scale, causal)
    lse = torch.logsumexp(scores, dim=-1)
    p = torch.exp(scores - torch.where(lse == -torch.inf, 0, lse).unsqueeze(-1))
    return p @ value.repeat_interleave(query.shape[1] // key.shape[1], dim=1), lse


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
    """Gradients of `attention_forward`, after FlashAttention-2 (arXiv:2307.08691), section 3.1, without tiles.

    With ``delta = rowsum(dO * O) - dlse``: ``dS = P * (dO V^T - delta)``, ``dQ = scale dS K``, ``dK = scale dS^T Q``,
    ``dV = P^T dO``; ``dK`` and ``dV`` are summed over the query heads that share them.

    Returns:
        ``dq``, ``dk``, ``dv`` with the shapes of ``query``, ``key``, ``value``.
    """
    groups = query.shape[1] // key.shape[1]
    scores = _scores(query, key, attn_mask, scale, causal)
    p = torch.exp(scores - torch.where(lse == -torch.inf, 0, lse).to(scores.dtype).unsqueeze(-1))
    delta = (grad_out * out).sum(-1, keepdim=True)
    if grad_lse is not None:
        delta = delta - grad_lse.to(delta.dtype).unsqueeze(-1)
    dp = grad_out @ value.repeat_interleave(groups, dim=1).transpose(-2, -1)
    ds = p * (dp - delta) * scale
    dq = ds @ key.repeat_interleave(groups, dim=1)
    batch, heads, lk, size = key.shape
    dk = (ds.transpose(-2, -1) @ query).view(batch, heads, groups, lk, size).sum(2)
    dv = (p.transpose(-2, -1) @ grad_out).view(batch, heads, groups, lk, size).sum(2)
    return dq, dk, dv
