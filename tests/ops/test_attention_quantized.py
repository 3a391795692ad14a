"""Attention to quantized keys and values: that of the dequantized ones, to the bit, and as far off as is promised."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mps_flash_attn import flash_attention, quantize_kv
from mps_flash_attn.errors import UnsupportedError
from mps_flash_attn.functional import QuantizedKV, flash_attention_with_quantized_kv
from mps_flash_attn.ops.quantize.formats import FORMATS
from mps_flash_attn.runtime import simulator

#: Shapes by what they are for: one query over a long cache, a few, and whole blocks of them.
SHAPES = {"decoding": (1, 1100), "few": (5, 300), "prefill": (100, 130)}


def attention(query: Tensor, kv: QuantizedKV, **options: Any) -> Tensor:
    out = flash_attention_with_quantized_kv(query, kv, **options)
    assert isinstance(out, Tensor)
    return out


@pytest.mark.parametrize("format", FORMATS)
def test_is_attention_to_what_it_stands_for(format: str, seed: int) -> None:  # noqa: A002
    """In a dtype that is drawn, so that fewer texts are compiled."""
    dtype = random.Random(seed).choice((torch.float32, torch.float16, torch.bfloat16))
    for queries, keys in SHAPES.values():
        query = torch.randn(2, 4, queries, 40).to(dtype)
        key, value = torch.randn(2, 2, keys, 40).to(dtype), torch.randn(2, 2, keys, 72).to(dtype)
        kv = quantize_kv(key, value, format, group_size=16)  # type: ignore[arg-type]
        for options in ({}, {"is_causal": True, "softcap": 3.0, "sinks": torch.randn(4)}):
            with simulator.check():
                actual = attention(query, kv, **options)
            expected = flash_attention(
                query, *kv.dequantize(), enable_gqa=True, **options, causal_alignment="bottom-right"
            )
            assert torch.equal(actual, expected), (queries, keys, options)


def test_a_slice_of_a_longer_cache_and_a_mask(seed: int) -> None:
    kv = quantize_kv(torch.randn(2, 2, 90, 64), torch.randn(2, 2, 90, 64), "nf4")
    names = ("key", "value", "key_scale", "value_scale")
    part = dataclasses.replace(kv, **{name: getattr(kv, name)[:, :, 10:71] for name in names})
    query, mask = torch.randn(2, 4, 7, 64), torch.randn(7, 61)
    with simulator.check():
        actual, lse = flash_attention_with_quantized_kv(query, part, mask, return_lse=True)
    expected = flash_attention(query, *part.dequantize(), mask, enable_gqa=True, return_lse=True)
    assert torch.equal(actual, expected[0])
    assert torch.equal(lse, expected[1])


#: Of the largest value of a key or value, see `quantize_kv`.
ERRORS = {"int8": 1 / 254, "fp8_e4m3": 1 / 16, "fp8_e5m2": 1 / 8, "int4": 1 / 14, "nf4": 0.152}


@pytest.mark.parametrize("format", FORMATS)
def test_error_is_bounded_by_that_of_the_numbers(format: str, seed: int) -> None:  # noqa: A002
    """An error e of the scores changes each weight by a factor of at most exp(2 e); that of values is weighted."""
    query, key, value = (torch.randn(1, 2, n, 64) for n in (20, 200, 200))
    out = attention(query, quantize_kv(key, value, format)).double()  # type: ignore[arg-type]
    exact = flash_attention(*(x.double() for x in (query, key, value)))
    largest_key, largest = key.abs().amax(-1), value.abs().max()
    of_scores = (query.abs().sum(-1, keepdim=True) / 8 * ERRORS[format] * largest_key[:, :, None, :]).amax((-1, -2))
    bound = ERRORS[format] * largest + (torch.exp(2 * of_scores) - 1)[..., None, None] * largest
    assert ((out - exact).abs() <= bound + 1e-5).all()
    assert (out - exact).abs().max() > 1e-6, "nothing was quantized"


def test_keys_are_read_as_they_are_stored(seed: int) -> None:
    """Of one query over many keys, bytes are a fraction of those in float16."""
    query, (key, value) = torch.randn(1, 8, 1, 64).half(), torch.randn(2, 1, 2, 2048, 64).half()
    read = {}
    for name in ("float16", "int8", "int4"):
        kv = quantize_kv(key, value, name) if name != "float16" else None  # type: ignore[arg-type]
        with simulator.profile() as counts:
            flash_attention(query, key, value, enable_gqa=True) if kv is None else attention(query, kv)
        read[name] = counts.launches[0].counters.device_bytes_read
    # Each 16 bytes of elements take a scale, too.
    assert read["int8"] <= 0.8 * read["float16"]
    assert read["int4"] <= 0.55 * read["float16"]


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_without_graph_breaks(seed: int) -> None:
    kv = quantize_kv(torch.randn(1, 2, 30, 16), torch.randn(1, 2, 30, 16))
    query = torch.randn(1, 4, 1, 16)
    compiled = torch.compile(lambda q: attention(q, kv), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query), attention(query, kv))


def test_operator_keeps_pytorchs_rules(seed: int) -> None:
    kv = quantize_kv(torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 32), "int4", group_size=16)
    options = {"k_scale": kv.key_scale, "v_scale": kv.value_scale, "stored": 4, "group_size": 16}
    torch.library.opcheck(
        torch.ops.mps_flash_attn.attention_forward.default,
        (torch.randn(1, 4, 3, 16), kv.key, kv.value, None, 0.25, 0),
        options,
    )


KV = quantize_kv(torch.zeros(1, 2, 9, 16), torch.zeros(1, 2, 9, 16))
QUERY = torch.zeros(1, 4, 3, 16)
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "not quantized": ({"kv": (QUERY, QUERY)}, TypeError, "kv is a tuple; accepted is a QuantizedKV"),
    "head size": ({"query": QUERY[..., :8]}, ValueError, "accepted is [1, Hq, Lq, 16]"),
    "heads": ({"query": QUERY[:, :3]}, ValueError, "Hq a multiple of its 2 heads"),
    "gradient": ({"query": QUERY.clone().requires_grad_()}, UnsupportedError, "query requires grad"),
    "mask": ({"attn_mask": torch.zeros(4, 4)}, ValueError, "attn_mask has shape"),
    "alignment": ({"causal_alignment": "left"}, ValueError, "causal_alignment is 'left'"),
    "scales": ({"kv": dataclasses.replace(KV, key_scale=KV.key_scale[:, :1])}, ValueError, "key_scale has shape"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap is -1.0"),
}


@pytest.mark.parametrize(("arguments", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_in_words(
    arguments: dict[str, Any], error: type[Exception], words: str, assert_refused: Callable[..., None]
) -> None:
    call = {"query": QUERY, "kv": KV, **arguments}
    assert_refused(lambda: flash_attention_with_quantized_kv(**call), error, words)
