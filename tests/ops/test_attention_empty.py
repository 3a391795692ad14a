"""Attention where a size is 0: results and gradients are defined, and no kernel is launched for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from mps_flash_attn import flash_attention, flash_attention_with_bias, launch
from mps_flash_attn.flash_attn_interface import flash_attn_func, flash_attn_qkvpacked_func, flash_attn_varlen_func
from mps_flash_attn.functional import Rotary, rope_tables
from mps_flash_attn.ops import calls
from mps_flash_attn.runtime import simulator

#: B, Hq, Lq, Lk; one or more of them 0. There are two query heads for each key head.
SIZES = [
    (0, 4, 5, 7),
    (2, 4, 0, 7),
    (2, 4, 5, 0),
    (2, 4, 0, 0),
    (0, 4, 0, 0),
    (0, 4, 5, 0),
    (2, 0, 5, 7),
    (2, 0, 5, 0),
]
D = 8


@pytest.fixture(autouse=True)
def _no_launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither compiles a kernel nor lets one be launched."""

    def refuse(*tensors: Tensor) -> NoReturn:
        raise AssertionError("a kernel is launched")

    calls.forget()
    monkeypatch.setattr(launch, "bind", lambda launch, runtime: refuse)
    yield
    calls.forget()


def additive(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


#: Arguments beyond query, key and value by B, Hq, Lq and Lk.
VARIANTS: dict[str, Callable[[int, int, int, int], dict[str, Any]]] = {
    "plain": lambda b, h, i, j: {},
    "causal": lambda b, h, i, j: {"is_causal": True},
    "bottom-right": lambda b, h, i, j: {"is_causal": True, "causal_alignment": "bottom-right"},
    "window": lambda b, h, i, j: {"window": (2, 1)},
    "softcap": lambda b, h, i, j: {"softcap": 2.0},
    "alibi": lambda b, h, i, j: {"alibi_slopes": torch.rand(h)},
    "sinks": lambda b, h, i, j: {"sinks": additive(h)},
    "sinks of batches": lambda b, h, i, j: {"sinks": additive(b, h)},
    "dropout": lambda b, h, i, j: {"dropout_p": 0.5},
    "rotary": lambda b, h, i, j: {"rotary": Rotary(*rope_tables(16, D), query_offset=3)},
    "boolean mask": lambda b, h, i, j: {"attn_mask": torch.rand(b, 1, i, j) < 0.5},
    "boolean mask of keys": lambda b, h, i, j: {"attn_mask": torch.rand(j) < 0.5},
    "full bias": lambda b, h, i, j: {"attn_mask": additive(b, h, i, j)},
    "bias of heads": lambda b, h, i, j: {"attn_mask": additive(h, i, j)},
    "bias of keys": lambda b, h, i, j: {"attn_mask": additive(1, 1, 1, j)},
    "bias of queries": lambda b, h, i, j: {"attn_mask": additive(i, 1)},
    "all at once": lambda b, h, i, j: {
        "attn_mask": additive(b, 1, i, j),
        "is_causal": True,
        "window": (2, 1),
        "softcap": 2.0,
        "alibi_slopes": torch.rand(b, h),
        "sinks": additive(h),
        "dropout_p": 0.5,
    },
}


def qkv(b: int, h: int, i: int, j: int, value_size: int = D) -> list[Tensor]:
    heads = max(h // 2, 1)
    shapes = ((b, h, i, D), (b, heads, j, D), (b, heads, j, value_size))
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("value_size", [D, 12])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_results_and_gradients(sizes: tuple[int, int, int, int], name: str, value_size: int, seed: int) -> None:
    operands, options = qkv(*sizes, value_size), VARIANTS[name](*sizes)
    with simulator.check():  # what nobody writes is NaN then
        compare(operands, options, sizes, value_size)


def compare(operands: list[Tensor], options: dict[str, Any], sizes: tuple[int, int, int, int], value_size: int) -> None:
    """Attention's results and gradients with what they have to be."""
    b, h, i, j = sizes
    out, lse = flash_attention(*operands, enable_gqa=True, return_lse=True, **options)
    assert out.shape == (b, h, i, value_size)
    assert lse.shape == (b, h, i)
    assert torch.equal(out, torch.zeros_like(out))
    sinks = options.get("sinks")
    if j == 0:  # no key is seen, but sinks are
        expected = torch.full((b, h, i), -torch.inf) if sinks is None else sinks.expand(b, h)[..., None].expand(b, h, i)
        assert torch.equal(lse, expected)

    learned = [*operands, *(x for x in options.values() if isinstance(x, Tensor) and x.requires_grad)]
    for results in ((out,), (lse,), (out, lse)):
        gradients = torch.autograd.grad(results, learned, [torch.randn_like(x) for x in results], retain_graph=True)
        for x, gradient in zip(learned, gradients, strict=True):
            assert gradient.shape == x.shape
            if x is not sinks:
                assert torch.equal(gradient, torch.zeros_like(x))
    if sinks is not None and sinks.dim() == 1:
        (gradient,) = torch.autograd.grad(lse, sinks, torch.ones_like(lse))
        assert torch.equal(gradient, torch.full((h,), float(b * i if j == 0 else 0)))


@pytest.mark.parametrize("sizes", [x for x in SIZES if x[1]], ids=str)
def test_other_faces(sizes: tuple[int, int, int, int], seed: int) -> None:
    b, h, i, j = sizes
    operands = [x.detach().transpose(1, 2).requires_grad_() for x in qkv(*sizes)]
    out, lse, _ = flash_attn_func(*operands, causal=True, return_attn_probs=True)
    assert torch.equal(out, torch.zeros(b, i, h, D))
    assert torch.equal(lse, torch.full((b, h, i), -torch.inf)) or lse.numel() == 0
    assert [x.shape for x in torch.autograd.grad(out.sum(), operands)] == [x.shape for x in operands]
    bias = additive(1, h, i, j)
    biased = flash_attention_with_bias(*(x.transpose(1, 2) for x in operands), bias, bias_repeat_count=2)
    assert torch.equal(biased, torch.zeros(b, h, i, D))
    assert torch.equal(torch.autograd.grad(biased.sum(), bias)[0], torch.zeros_like(bias))


@pytest.mark.parametrize(("b", "n"), [(0, 5), (2, 0)])
def test_packed_face(b: int, n: int) -> None:
    out = flash_attn_qkvpacked_func(torch.randn(b, n, 3, 4, D))
    assert isinstance(out, Tensor)
    assert out.shape == (b, n, 4, D)


@pytest.mark.parametrize(("sequences", "tokens"), [(0, 0), (1, 0), (3, 0)])
def test_sequences_without_tokens(sequences: int, tokens: int) -> None:
    cuts = torch.zeros(sequences + 1, dtype=torch.int32)
    operands = [torch.randn(tokens, 4, D, requires_grad=True) for _ in range(3)]
    out = flash_attn_varlen_func(*operands, cuts, cuts, 0, 0, causal=True)
    assert isinstance(out, Tensor)
    assert out.shape == (tokens, 4, D)
    assert [x.shape for x in torch.autograd.grad(out.sum(), operands)] == [x.shape for x in operands]


@pytest.mark.parametrize("heads", [0, 4])
def test_no_key_heads_are_refused(heads: int) -> None:
    query, key = torch.zeros(1, heads, 3, D), torch.zeros(1, 0, 3, D)
    with pytest.raises(ValueError, match="key has 0 heads; accepted are 1 or more"):
        flash_attention(query, key, key, enable_gqa=True)
