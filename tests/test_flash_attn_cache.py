"""``flash_attn_with_kvcache`` against attention to the keys that the cache then holds, however it holds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn.errors import UnsupportedError
from mps_flash_attn.flash_attn_interface import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from mps_flash_attn.functional import rope, rope_tables
from mps_flash_attn.runtime import simulator

D = 16


def paged(cache: Tensor, lengths: list[int], page_size: int, spare: int = 3) -> tuple[Tensor, Tensor]:
    """The rows of a cache ``[B, L, H, D]`` in pages in random order, the rest NaN, and their table."""
    batch, length, heads, size = cache.shape
    places = -(-length // page_size)
    numbers = torch.randperm(batch * places + spare)[: batch * places].view(batch, places)
    pages = torch.full((batch * places + spare, page_size, heads, size), torch.nan, dtype=cache.dtype)
    for b, used in enumerate(lengths):
        for row in range(used):
            pages[numbers[b, row // page_size], row % page_size] = cache[b, row]
    return pages, numbers.to(torch.int32)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@settings(max_examples=30)
@given(
    new=st.integers(0, 5),
    queries=st.sampled_from((1, 2, 5)),
    group=st.sampled_from((1, 4)),
    page_size=st.sampled_from((0, 8, 16, 40)),
    causal=st.booleans(),
    window=st.sampled_from(((-1, -1), (7, 0))),
    rotary=st.sampled_from(("no", "half", "interleaved")),
    padded=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_is_attention_to_what_the_cache_holds(
    new: int,
    queries: int,
    group: int,
    page_size: int,
    causal: bool,
    window: tuple[int, int],
    rotary: str,
    padded: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    batch, heads, room = 3, 2, 60
    held = torch.randint(5, room - new + 1, (batch,)).tolist()
    pads = torch.randint(0, 5, (batch,)).tolist() if padded else [0] * batch
    q = torch.randn(batch, queries, heads * group, D)
    k, v = (torch.randn(batch, new, heads, size) for size in (D, 24))
    caches = [torch.randn(batch, room, heads, size) for size in (D, 24)]
    tables = rope_tables(room + queries, D) if rotary != "no" and new else (None, None)
    options: dict[str, Any] = {"causal": causal, "window_size": window}

    table, stores = None, [x.clone() for x in caches]
    if page_size:
        pages = [paged(x, [room] * batch, page_size) for x in caches]
        table = pages[0][1]
        stores = [torch.full_like(p, torch.nan) for p, _ in pages]
        for store, x in zip(stores, caches, strict=True):
            for b, used in enumerate(held):
                for row in range(used):
                    store[table[b, row // page_size], row % page_size] = x[b, row]
    with simulator.check():
        out, lse = flash_attn_with_kvcache(
            q,
            *stores,
            *((k, v) if new else (None, None)),
            *tables,
            int32(*held),
            cache_leftpad=int32(*pads) if padded else None,
            block_table=table,
            rotary_interleaved=rotary == "interleaved",
            return_softmax_lse=True,
            **options,
        )
    for b in range(batch):
        key, value = (
            torch.cat((x[b : b + 1, : held[b]], n[b : b + 1]), 1) for x, n in zip(caches, (k, v), strict=True)
        )
        query = q[b : b + 1]
        if tables[0] is not None:
            cos, sin = tables
            how = rotary == "interleaved"
            local = causal or window != (-1, -1)
            first = [held[b] + (i if local else 0) for i in range(queries)]
            query = rope(query.transpose(1, 2), cos=cos[first], sin=sin[first], interleaved=how).transpose(1, 2)
            new_rows = slice(held[b], held[b] + new)
            turned = rope(key[:, new_rows].transpose(1, 2), cos=cos[new_rows], sin=sin[new_rows], interleaved=how)
            key = torch.cat((key[:, : held[b]], turned.transpose(1, 2)), 1)
        expected, expected_lse, _ = flash_attn_func(
            query, key[:, pads[b] :], value[:, pads[b] :], return_attn_probs=True, **options
        )
        assert (out[b] - expected[0]).abs().max() <= 1e-5
        assert torch.allclose(lse[b], expected_lse[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("page_size", [8, 16, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pages_change_no_bit(dtype: torch.dtype, page_size: int, seed: int) -> None:
    """With keys cut into parts, too: one query over long caches."""
    caches = [torch.randn(2, 1500, 2, 64).to(dtype) for _ in range(2)]
    q, lengths = torch.randn(2, 1, 8, 64).to(dtype), [1500, 701]
    whole = flash_attn_with_kvcache(q, *caches, cache_seqlens=int32(*lengths), causal=True)
    with simulator.profile() as counts:
        state = torch.get_rng_state()
        stores = []
        for x in caches:
            torch.set_rng_state(state)
            pages, table = paged(x, lengths, page_size)
            stores.append(pages)
        paged_out = flash_attn_with_kvcache(q, *stores, cache_seqlens=int32(*lengths), block_table=table, causal=True)
    assert torch.equal(whole, paged_out)
    assert [x.kernel for x in counts.launches][:2] == ["attention_forward", "merge_forward"]


def test_batches_of_the_cache_by_index(seed: int) -> None:
    caches = [torch.randn(5, 30, 2, D) for _ in range(2)]
    q, places, lengths = torch.randn(3, 2, 2, D), int32(4, 0, 3), int32(30, 7, 12)
    out = flash_attn_with_kvcache(q, *caches, cache_seqlens=lengths, cache_batch_idx=places, causal=True)
    rows = [x[places.long()] for x in caches]
    assert torch.equal(out, flash_attn_with_kvcache(q, *rows, cache_seqlens=lengths, causal=True))
    k = torch.randn(3, 2, 2, D)
    flash_attn_with_kvcache(q, caches[0], caches[1], k, k, cache_seqlens=int32(28, 7, 12), cache_batch_idx=places)
    assert torch.equal(caches[0][4, 28:], k[0])
    assert torch.equal(caches[1][0, 7:9], k[1])


def test_one_length_for_all_and_none(seed: int) -> None:
    caches, q = [torch.randn(2, 20, 2, D) for _ in range(2)], torch.randn(2, 3, 4, D)
    assert torch.equal(
        flash_attn_with_kvcache(q, *caches, cache_seqlens=20), flash_attn_with_kvcache(q, *caches, cache_seqlens=None)
    )
    short = flash_attn_with_kvcache(q, *caches, cache_seqlens=7)
    assert (short - flash_attn_func(q, *(x[:, :7] for x in caches))).abs().max() <= 1e-6
    assert (flash_attn_with_kvcache(q, *caches, cache_seqlens=0) == 0).all()


def test_packed_queries_over_pages(seed: int) -> None:
    caches, lengths = [torch.randn(3, 40, 2, D) for _ in range(2)], [40, 9, 23]
    state = torch.get_rng_state()
    stores = []
    for x in caches:
        torch.set_rng_state(state)
        pages, table = paged(x, lengths, 8)
        stores.append(pages)
    q, ends = torch.randn(12, 4, D), int32(0, 3, 4, 12)
    key_ends = int32(0, *torch.tensor(lengths).cumsum(0).tolist())
    packed = [torch.cat([x[b, :n] for b, n in enumerate(lengths)]) for x in caches]
    expected = flash_attn_varlen_func(q, *packed, ends, key_ends, 8, 40, causal=True)
    actual = flash_attn_varlen_func(q, *stores, ends, key_ends, 8, 40, causal=True, block_table=table)
    assert torch.equal(actual, expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_without_graph_breaks(seed: int) -> None:
    def step(q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor, lengths: Tensor) -> Tensor:
        out = flash_attn_with_kvcache(q, k_cache, v_cache, k, k, cache_seqlens=lengths, causal=True)
        assert isinstance(out, Tensor)
        return out

    caches, q, k = [torch.randn(2, 20, 2, D) for _ in range(2)], torch.randn(2, 1, 4, D), torch.randn(2, 1, 2, D)
    copies = [x.clone() for x in caches]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, *copies, k, int32(5, 9)), step(q, *caches, k, int32(5, 9)))
    assert torch.equal(copies[0], caches[0])


CACHE = torch.zeros(2, 20, 2, D)
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "too long": ({"cache_seqlens": int32(21, 3)}, ValueError, r"seqused_k\[0\] is 21; accepted are 0 to 20"),
    "negative": ({"cache_seqlens": int32(2, -3)}, ValueError, r"seqused_k\[1\] is -3"),
    "no int32": ({"cache_seqlens": torch.tensor([2, 3])}, TypeError, "int64; accepted are int32"),
    "as many as batches": ({"cache_seqlens": int32(2, 3, 4)}, ValueError, "accepted are as many as lengths"),
    "batch of the cache": (
        {"cache_seqlens": int32(2, 3), "cache_batch_idx": int32(0, 2)},
        ValueError,
        r"cache_batch_idx\[1\] is 2; accepted are 0 to 1",
    ),
    "padding": ({"cache_seqlens": int32(2, 3), "cache_leftpad": int32(0, 4)}, ValueError, r"cache_leftpad\[1\] is 4"),
    "page": (
        {"cache_seqlens": int32(25, 3), "block_table": int32(0, 2, 1, 0).view(2, 2)},
        ValueError,
        r"block_table\[0, 1\] is 2; accepted are 0 to 1",
    ),
    "table": (
        {"cache_seqlens": int32(2, 3), "block_table": torch.zeros(2, 2)},
        TypeError,
        "block_table has dtype torch.float32; accepted are int32",
    ),
    "keys alone": ({"cache_seqlens": 3, "k": CACHE[:, :1]}, ValueError, "come together"),
    "no length": ({"k": CACHE[:, :1], "v": CACHE[:, :1]}, ValueError, "cache_seqlens is None and k is not"),
    "gradient": ({"q": torch.zeros(2, 1, 2, D, requires_grad=True)}, UnsupportedError, "q requires grad"),
}


@pytest.mark.parametrize(("arguments", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_in_words(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    call = {"q": torch.zeros(2, 1, 2, D), "k_cache": CACHE, "v_cache": CACHE, **arguments}
    with pytest.raises(error, match=words):
        flash_attn_with_kvcache(**call)
