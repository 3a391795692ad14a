"""The functions of ``flash_attn``, against their definitions in that package's documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mps_flash_attn.flash_attn_interface import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (3, 1)},
    "causal window": {"window_size": (2, 5), "causal": True},
    "softcap and alibi": {"softcap": 2.0, "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0])},
    "scale": {"softmax_scale": 0.7},
}


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output ``[B, Lq, Hq, D]`` and log-sum-exp ``[B, Hq, Lq]``; a query that sees nothing has output 0."""
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    lq, lk = scores.shape[-2:]
    after = torch.arange(lk) - (torch.arange(lq)[:, None] + lk - lq)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.view(-1, q.shape[2], 1, 1) * after.abs()
    left, right = window_size
    hidden = (after > 0) if causal else (after > right) if right >= 0 else torch.zeros_like(after, dtype=torch.bool)
    hidden = hidden | (after < -left) if left >= 0 else hidden
    scores = scores.masked_fill(hidden, -torch.inf)
    weights = torch.softmax(scores, -1).nan_to_num(0)
    return torch.einsum("bhij,bjhd->bihd", weights, v), torch.logsumexp(scores, -1)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("lengths", [(9, 9), (5, 9), (9, 5)], ids=str)
def test_as_documented(lengths: tuple[int, int], options: dict[str, Any], seed: int) -> None:
    q, k, v = (
        torch.randn(2, length, heads, 8, dtype=torch.float64, requires_grad=True)
        for length, heads in ((lengths[0], 4), (lengths[1], 2), (lengths[1], 2))
    )
    out, lse, probabilities = flash_attn_func(q, k, v, **options, return_attn_probs=True)
    expected, expected_lse = formula(q, k, v, **options)
    assert probabilities is None
    assert out.shape == q.shape
    assert torch.allclose(out, expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(lse, expected_lse, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(out)
    assert torch.equal(flash_attn_func(q, k, v, **options), out)  # type: ignore[arg-type]
    for ours, theirs in zip(
        torch.autograd.grad(out, (q, k, v), gradient),
        torch.autograd.grad(expected, (q, k, v), gradient),
        strict=True,
    ):
        assert torch.allclose(ours, theirs.nan_to_num(0), rtol=1e-11, atol=1e-11)


def test_packed_forms_are_the_same(seed: int) -> None:
    qkv = torch.randn(2, 9, 3, 4, 8, requires_grad=True)
    out = flash_attn_qkvpacked_func(qkv, causal=True, window_size=(4, 0))
    apart = flash_attn_func(*qkv.unbind(2), causal=True, window_size=(4, 0))
    kv = flash_attn_kvpacked_func(qkv[:, :, 0], qkv[:, :, 1:], causal=True, window_size=(4, 0))
    assert isinstance(out, Tensor)
    assert torch.equal(out, apart)  # type: ignore[arg-type]
    assert torch.equal(out, kv)  # type: ignore[arg-type]
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


def test_dropout_is_pytorchs_to_repeat(seed: int) -> None:
    qkv = torch.randn(2, 9, 3, 4, 8)
    results = []
    for _ in range(2):
        torch.manual_seed(seed)
        results.append(flash_attn_qkvpacked_func(qkv, 0.5))
    assert torch.equal(*results)  # type: ignore[arg-type]
    assert not torch.equal(results[0], flash_attn_qkvpacked_func(qkv))  # type: ignore[arg-type]


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_without_graph_breaks(seed: int) -> None:
    compiled = torch.compile(flash_attn_qkvpacked_func, fullgraph=True, backend="aot_eager")
    qkv = torch.randn(2, 9, 3, 4, 8)
    assert torch.equal(compiled(qkv, causal=True), flash_attn_qkvpacked_func(qkv, causal=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: flash_attn_func(x[0], x, x), "q has shape [9, 4, 8]; accepted is [B, L, H, D]"),
        (lambda x: flash_attn_qkvpacked_func(x), "qkv has shape [2, 9, 4, 8]; accepted is [B, L, 3, H, D]"),
        (lambda x: flash_attn_kvpacked_func(x, x[:, :, None]), "kv has shape [2, 9, 1, 4, 8]; accepted is"),
        (lambda x: flash_attn_func(x, x, x, dropout_p=1.5), "dropout_p is 1.5; accepted are"),
        (lambda x: flash_attn_func(x, x, x, window_size=(-3, 0)), "window is"),
        (lambda x: flash_attn_func(x, x[:, :, :3], x[:, :, :3]), "query has 4 heads and key 3"),
    ],
)
def test_bad_arguments_are_named(call: Any, message: str, assert_refused: Callable[..., None]) -> None:
    assert_refused(lambda: call(torch.zeros(2, 9, 4, 8)), ValueError, message)
