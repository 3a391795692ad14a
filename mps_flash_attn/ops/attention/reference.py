"""Attention and its gradients written out, O(Lq * Lk) in memory: the one reference that tests compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Scoring", "attention_backward", "attention_forward", "dropped", "philox", "scores"]


@dataclass(frozen=True)
class Scoring:
    """How products become weights; the names and meanings are those of the operators.

    Attributes:
        dropped: ``[B, Hq, Lq, Lk]``, true where a weight is dropped.
    """

    scale: float
    causal: int = 0
    softcap: float = 0.0
    window: tuple[int, int] = (-1, -1)
    bottom_right: bool = False
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
    dropout_p: float = 0.0
    dropped: Tensor | None = None


def _visible(lq: int, lk: int, scoring: Scoring, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which keys each query sees, and how far each key is from a query's place: ``[lq, lk]`` both."""
    place = torch.arange(lq, device=device)[:, None]
    if scoring.bottom_right or scoring.causal == 2:
        place = place + lk - lq
    after = torch.arange(lk, device=device) - place
    left, right = scoring.window
    visible = torch.ones(lq, lk, dtype=torch.bool, device=device)
    if left >= 0:
        visible &= after >= -left
    if right >= 0 or scoring.causal:
        visible &= after <= (0 if scoring.causal else right)
    return visible, after.abs()


def scores(query: Tensor, key: Tensor, attn_mask: Tensor | None, scoring: Scoring) -> Tensor:
    """Masked scores ``[B, Hq, Lq, Lk]`` with the dtype of ``query``."""
    groups = query.shape[1] // key.shape[1]
    s = query @ key.repeat_interleave(groups, dim=1).transpose(-2, -1) * scoring.scale
    if scoring.softcap:
        s = scoring.softcap * torch.tanh(s / scoring.softcap)
    visible, distance = _visible(query.shape[2], key.shape[2], scoring, s.device)
    if scoring.alibi_slopes is not None:
        s = s - scoring.alibi_slopes[:, :, None, None].to(s.dtype) * distance
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        s = s + attn_mask.to(s.dtype)
    elif attn_mask is not None:
        s = s.masked_fill(~attn_mask, -torch.inf)
    return s.masked_fill(~visible, -torch.inf)


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """Softmax attention and the log-sum-exp of its scores.

    Args:
        query: ``[B, Hq, Lq, D]``.
        key, value: ``[B, Hkv, Lk, D]``; query head ``h`` uses head ``h // (Hq / Hkv)``.
        attn_mask: boolean (true takes part) or additive, broadcast to ``[B, Hq, Lq, Lk]``.

    Returns:
        ``o [B, Hq, Lq, D]`` and ``lse [B, Hq, Lq]`` (natural logarithm), in the inputs' dtype. A row with every key
        masked has ``o`` 0 and ``lse`` -inf, or the sink.
    """
    s = scores(query, key, attn_mask, scoring)
    lse = torch.logsumexp(s, dim=-1)
    if scoring.sinks is not None:
        lse = torch.logaddexp(lse, scoring.sinks[:, :, None].to(lse.dtype).expand_as(lse))
    p = _dropped(_weights(s, lse), scoring)
    return p @ value.repeat_interleave(query.shape[1] // key.shape[1], dim=1), lse


def _weights(s: Tensor, lse: Tensor) -> Tensor:
    return torch.exp(s - torch.where(lse == -torch.inf, 0, lse).to(s.dtype).unsqueeze(-1))


def _dropped(p: Tensor, scoring: Scoring) -> Tensor:
    return p if scoring.dropped is None else p.masked_fill(scoring.dropped, 0) / (1 - scoring.dropout_p)


def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scoring: Scoring,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of `attention_forward`, after FlashAttention-2 (arXiv:2307.08691), section 3.1, without tiles.

    With ``delta = rowsum(dO * O) - dlse`` and ``drop`` the dropout of a matrix: ``dS = P * (drop(dO V^T) - delta)``,
    ``dV = drop(P)^T dO``, and ``dX = dS (1 - tanh^2) scale`` of the products gives ``dQ = dX K`` and ``dK = dX^T Q``;
    ``dK`` and ``dV`` are summed over the query heads that share them, ``dS`` over what shares an element of the mask.

    Returns:
        ``dq``, ``dk``, ``dv`` with the shapes of ``query``, ``key``, ``value``; ``dmask`` of an additive mask;
        ``dsinks [B, Hq]``.
    """
    groups = query.shape[1] // key.shape[1]
    p = _weights(scores(query, key, attn_mask, scoring), lse)
    delta = (grad_out * out).sum(-1, keepdim=True)
    if grad_lse is not None:
        delta = delta - grad_lse.to(delta.dtype).unsqueeze(-1)
    dp = grad_out @ value.repeat_interleave(groups, dim=1).transpose(-2, -1)
    ds = p * (_dropped(dp, scoring) - delta)
    dx = ds * scoring.scale
    if scoring.softcap:
        s = query @ key.repeat_interleave(groups, dim=1).transpose(-2, -1) * scoring.scale
        dx = dx * (1 - torch.tanh(s / scoring.softcap) ** 2)
    dq = dx @ key.repeat_interleave(groups, dim=1)
    dk, dv = (
        per_query_head.unflatten(1, (key.shape[1], groups)).sum(2)
        for per_query_head in (dx.transpose(-2, -1) @ query, _dropped(p, scoring).transpose(-2, -1) @ grad_out)
    )
    dmask = dsinks = None
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        dmask = ds.sum_to_size(attn_mask.shape)
    if scoring.sinks is not None:
        weights = torch.exp(scoring.sinks[:, :, None].to(lse.dtype) - lse).masked_fill(lse == -torch.inf, 0)
        dsinks = -(weights * delta.squeeze(-1)).sum(2)
    return dq, dk, dv, dmask, dsinks


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011) of four int64 tensors that hold 32-bit words: four more."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    low = 0xFFFFFFFF
    for _ in range(10):
        a, b = _product(0xD2511F53, c0), _product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = b[0] ^ c1 ^ k0, b[1], a[0] ^ c3 ^ k1, a[1]
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0, c1, c2, c3


def _product(a: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product of two words; by halves, as it would not fit in a signed 64-bit number."""
    low, high = a * (x & 0xFFFF), a * (x >> 16)
    middle = high + (low >> 16)
    return middle >> 16, (middle << 16 | low & 0xFFFF) & 0xFFFFFFFF


def dropped(shape: tuple[int, int, int, int], seed: Tensor, dropout_p: float, first_head: int = 0) -> Tensor:
    """Which weights ``[B, Hq, Lq, Lk]`` the kernels drop.

    Query ``i`` and key ``j`` of a head have the counter ``(i // 16, j // 16, i % 8 * 8 + j % 8, head)``, one word of
    four: the others are those of the places 8 queries, 8 keys, or both, away in the same tile of 16 x 16.
    """
    batches, heads, queries, keys = shape
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    head = first_head + torch.arange(batches * heads).view(batches, heads, 1, 1)
    counter = torch.broadcast_tensors(i // 16, j // 16, i % 8 * 8 + j % 8, head)
    words = torch.stack(philox(tuple(counter), (int(seed[0]) & 0xFFFFFFFF, int(seed[1]) & 0xFFFFFFFF)))
    word = (i // 8 % 2 * 2 + j // 8 % 2).expand(shape)
    return words.gather(0, word[None]).squeeze(0) < round(dropout_p * 2**32)
