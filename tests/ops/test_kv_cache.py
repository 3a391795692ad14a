"""Rows appended to a cache in place: contiguous, numbered and paged, turned on their way, bad arguments, safety."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from mps_flash_attn import UnsupportedError
from mps_flash_attn.functional import append_kv, rope, rope_tables, rotate_queries
from mps_flash_attn.ops.kv_cache import function, reference
from mps_flash_attn.ops.kv_cache.cases import Case, Inputs
from mps_flash_attn.runtime import simulator
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def appended(x: Inputs, interleaved: bool = False) -> tuple[Tensor, Tensor]:
    """Copies of the caches that lie as they do, with the new rows."""
    caches = []
    for cache in (x.k_cache, x.v_cache):
        base = cache._base if cache._base is not None else cache
        caches.append(base.clone().as_strided(cache.shape, cache.stride(), cache.storage_offset()))
    append_kv(*caches, x.key, x.value, **x.options, interleaved=interleaved)
    for cache, old in zip(caches, (x.k_cache, x.v_cache), strict=True):
        if cache._base is not None and old._base is not None:
            frame, before = (whole._base.clone() for whole in (cache, old))  # type: ignore[union-attr]
            for whole in (frame, before):
                whole.as_strided(cache.shape, cache.stride(), cache.storage_offset()).zero_()
            assert torch.equal(frame.nan_to_num(7.0), before.nan_to_num(7.0)), "memory around the cache was written"
    return caches[0], caches[1]


def check(case: Case, dtype: torch.dtype) -> None:
    """Values and columns that are not turned have the bits that came; the rest of a cache those that it had."""
    x = case.inputs(dtype)
    k_cache, v_cache = appended(x, case.interleaved)
    (exact, exact_values), (pytorch, values) = (x.expected(case.interleaved, exact=exact) for exact in (True, False))
    assert_accurate(f"keys of {case}", k_cache, pytorch, exact)
    assert torch.equal(v_cache, values)
    assert torch.equal(v_cache.double(), exact_values)
    assert torch.equal(k_cache[..., case.rotary_dim :], pytorch[..., case.rotary_dim :])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_places_and_pairings(dtype: torch.dtype, seed: int) -> None:
    for case in (
        Case(batches=3, length=5),
        Case(place="numbered", rotary_dim=32, columns=96),
        Case(place="paged", columns=17, value_columns=24, rotary_dim=10, interleaved=True),
    ):
        check(case, dtype)


@given(
    st.builds(
        Case,
        batches=st.integers(0, 4),
        length=st.sampled_from((0, 1, 2, 9, 20)),
        heads=st.integers(0, 3),
        columns=st.sampled_from((17, 48)),
        value_columns=st.sampled_from((1, 64)),
        rotary_dim=st.sampled_from((0, 2, 16)),
        interleaved=st.booleans(),
        place=st.sampled_from(("batch", "numbered", "paged")),
        capacity=st.sampled_from((20, 33)),
        page_size=st.sampled_from((8, 13, 256)),
        layout=st.sampled_from(("contiguous", "transposed", "sliced")),
    ),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    check(case, torch.bfloat16)


def test_float64_and_tables_of_other_dtypes(seed: int) -> None:
    check(Case(rotary_dim=64), torch.float64)
    for table_dtype in (torch.float16, torch.bfloat16):
        check(Case(rotary_dim=64, table_dtype=table_dtype), torch.float32)


def test_tables_of_any_layout(seed: int) -> None:
    """Halves of one tensor, transposed ones, and two that lie each in its own way."""
    cos, sin = rope_tables(9, 32)
    rows = torch.randn(1, 3, 2, 48)
    expected = rotate_queries(rows, cos, sin, cache_seqlens=6)
    halves = torch.cat([cos, sin], 1).chunk(2, 1)
    for tables in (halves, (cos.mT.contiguous().mT, sin.mT.contiguous().mT), (halves[0], sin)):
        cache = torch.zeros(1, 9, 2, 48)
        append_kv(cache, cache.clone(), rows, rows, cache_seqlens=6, cos=tables[0], sin=tables[1])
        assert torch.equal(cache[:, 6:], expected)


@pytest.mark.parametrize("place", ["numbered", "paged"])
def test_a_cache_of_more_elements_than_32_bits_count(place: str, tmp_path: Path, seed: int) -> None:
    """Batches, or pages, 4 GiB apart in a sparse file of which hardly any is touched."""
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=3 * 2**31, dtype=torch.half)
    cache = memory.as_strided((3, 8, 2, 16), (2**31 + 64, 32, 16, 1))
    key, value = torch.randn(2, 1, 3, 2, 16).half().unbind()
    numbers = {"cache_batch_idx": ints(2)} if place == "numbered" else {"block_table": ints(0, 2).view(1, 2)}
    begin = 2 if place == "numbered" else 10
    append_kv(cache, torch.zeros(3, 8, 2, 16).half(), key, value, cache_seqlens=begin, **numbers)
    assert torch.equal(cache[2, 2:5], key[0])
    assert (cache[2, :2] == 0).all()
    assert (cache[0] == 0).all()


def test_pytorch_counts_the_change(seed: int) -> None:
    """Whoever saved a cache for a gradient finds out that it was written to."""
    x = Case().inputs(torch.float32)
    weight = torch.ones(1, requires_grad=True)
    before = x.k_cache._version, x.v_cache._version
    loss = (weight * x.k_cache).sum()
    append_kv(**vars(x))
    assert x.k_cache._version > before[0]
    assert x.v_cache._version > before[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        append_kv(**vars(Case().inputs(torch.float32)))


def test_a_sequence_grows_step_by_step(seed: int) -> None:
    """Prompt and single tokens, in pages that are shared by nobody: the same bits as all at once, and as `rope`'s."""
    key, value = torch.randn(2, 20, 2, 64).half(), torch.randn(2, 20, 2, 32).half()
    cos, sin = rope_tables(24, 64)
    whole = rope(key.transpose(1, 2), cos=cos[:20], sin=sin[:20]).transpose(1, 2)
    table = torch.tensor([[5, 0, 3], [1, 4, 2]], dtype=torch.int32)
    paged = torch.zeros(6, 8, 2, 64).half(), torch.zeros(6, 8, 2, 32).half()
    plain = torch.zeros(2, 24, 2, 64).half(), torch.zeros(2, 24, 2, 32).half()
    for begin, end in ((0, 7), (7, 8), (8, 17), (17, 20)):
        lengths = torch.full((2,), begin, dtype=torch.int32)
        new = key[:, begin:end], value[:, begin:end]
        append_kv(*paged, *new, cache_seqlens=lengths, block_table=table, cos=cos, sin=sin)
        append_kv(*plain, *new, cache_seqlens=begin, cos=cos, sin=sin)
    assert torch.equal(plain[0][:, :20], whole)
    assert torch.equal(plain[1][:, :20], value)
    for found, expected in zip(paged, plain, strict=True):
        assert torch.equal(found[table.long()].flatten(1, 2), expected)


def test_keys_and_values_in_one_tensor(seed: int) -> None:
    """A cache of both, ``[B, L, 2, Hkv, D]``, and new rows that are slices of one projection."""
    cache, new = torch.zeros(2, 9, 2, 3, 16), torch.randn(2, 4, 7, 16)
    append_kv(*cache.unbind(2), new[:, :, :3], new[:, :, 4:], cache_seqlens=5)
    assert torch.equal(cache[:, 5:, 0], new[:, :, :3])
    assert torch.equal(cache[:, 5:, 1], new[:, :, 4:])
    assert (cache[:, :5] == 0).all()


@pytest.mark.parametrize("one_position", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_queries(interleaved: bool, one_position: bool, seed: int) -> None:
    cos, sin = rope_tables(40, 32)
    lengths = torch.tensor([3, 35, 0], dtype=torch.int32)
    for shape in ((3, 5, 4, 48), (3, 0, 4, 48)):
        query = torch.randn(shape).half()
        positions = reference.positions(lengths, shape[1])
        positions = positions[:, :1].expand_as(positions) if one_position and shape[1] else positions
        exact = reference.rotate(query.double(), cos.double(), sin.double(), positions, interleaved)
        pytorch = reference.rotate(query, cos.half(), sin.half(), positions, interleaved)
        for view in (query, query.transpose(1, 2).contiguous().transpose(1, 2), query.mT.contiguous().mT):
            found = rotate_queries(
                view, cos, sin, cache_seqlens=lengths, interleaved=interleaved, one_position=one_position
            )
            assert_accurate(f"queries {shape}", found, pytorch, exact)
    assert torch.equal(
        rotate_queries(query, cos[:, :0], sin[:, :0], cache_seqlens=lengths, one_position=one_position), query
    )


def test_queries_and_keys_turn_alike(seed: int) -> None:
    cos, sin = rope_tables(9, 64)
    rows, cache = torch.randn(2, 3, 4, 64), torch.zeros(2, 9, 4, 64)
    append_kv(cache, cache.clone(), rows, rows, cache_seqlens=6, cos=cos, sin=sin)
    assert torch.equal(cache[:, 6:], rotate_queries(rows, cos, sin, cache_seqlens=6))


@pytest.mark.parametrize("place", ["batch", "numbered", "paged"])
def test_operator_keeps_pytorchs_rules(place: Any, seed: int) -> None:
    x = Case(place=place, columns=48, value_columns=17, rotary_dim=16 if place == "paged" else 0).inputs(torch.float16)
    rows = x.k_cache, x.v_cache, x.key, x.value
    torch.library.opcheck(torch.ops.mps_flash_attn.append_kv.default, (*rows, *x.options.values(), False))
    if x.cos is not None:
        arguments = x.key.mT.contiguous().mT, x.cos, x.sin, x.cache_seqlens, True, False
        torch.library.opcheck(torch.ops.mps_flash_attn.rotate_queries.default, arguments)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool, seed: int) -> None:
    def step(cache: Tensor, new: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        k_cache, v_cache = cache.unbind(2)
        append_kv(k_cache, v_cache, new, 2 * new, cache_seqlens=lengths, cos=cos, sin=sin)
        return rotate_queries(new, cos, sin, cache_seqlens=lengths) + k_cache[:, :1]

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    cos, sin = rope_tables(16, 48)
    for length in (1, 3):
        new, cache = torch.randn(2, length, 3, 48), torch.randn(2, 16, 2, 3, 48)
        other, lengths = cache.clone(), torch.tensor([4, 0], dtype=torch.int32)
        assert torch.equal(compiled(cache, new, lengths, cos, sin), step(other, new, lengths, cos, sin))
        assert torch.equal(cache, other)


def test_vmap(seed: int) -> None:
    cos, sin = rope_tables(16, 48)
    caches, new = torch.zeros(2, 3, 2, 16, 2, 48), torch.randn(2, 3, 2, 4, 2, 48)
    lengths = torch.tensor([[4, 0], [1, 12], [7, 2]], dtype=torch.int32)

    def step(k_cache: Tensor, v_cache: Tensor, key: Tensor, lengths: Tensor) -> Tensor:
        append_kv(k_cache, v_cache, key, 2 * key, cache_seqlens=lengths, cos=cos, sin=sin)
        return rotate_queries(key, cos, sin, cache_seqlens=lengths)

    expected = caches.clone()
    found = torch.vmap(step, (0, 0, 0, 0))(*caches, new[0], lengths)
    wanted = torch.stack([step(*x) for x in zip(*expected, new[0], lengths, strict=True)])
    assert torch.equal(caches, expected)
    assert torch.equal(found, wanted)
    with pytest.raises(UnsupportedError, match="vmap maps new keys and values over one cache"):
        torch.vmap(step, (None, None, 0, 0))(*caches[:, 0], new[0], lengths)


def test_gradients_are_refused_not_lost(seed: int) -> None:
    x = Case(rotary_dim=32).inputs(torch.float32)
    for name in ("k_cache", "v_cache", "key", "value", "cos", "sin"):
        given: dict[str, Any] = dict(vars(x))
        given[name] = given[name].clone().requires_grad_()
        with pytest.raises(UnsupportedError, match=f"{name} requires grad and append_kv has no gradient"):
            append_kv(**given)
        with torch.no_grad():
            append_kv(**given)
    cos, sin = rope_tables(8, 8)
    with pytest.raises(UnsupportedError, match="query requires grad and rotate_queries has no gradient"):
        rotate_queries(torch.zeros(1, 2, 3, 8, requires_grad=True), cos, sin, cache_seqlens=0)
    with pytest.raises(UnsupportedError, match="forward-mode"), forward_ad.dual_level():
        append_kv(**vars(x))


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


K = torch.zeros(3, 16, 2, 8)
V = torch.zeros(3, 16, 2, 4)
NEW_K = torch.zeros(2, 3, 2, 8)
NEW_V = torch.zeros(2, 3, 2, 4)
COS = torch.zeros(16, 4)
PAGES = torch.zeros(5, 8, 2, 8), torch.zeros(5, 8, 2, 4)
TABLE = ints(0, 1, 2, 3).view(2, 2)


def call(**changes: Any) -> Callable[[], object]:
    given = {"k_cache": K, "v_cache": V, "key": NEW_K, "value": NEW_V, "cache_seqlens": ints(4, 0), **changes}
    return lambda: append_kv(**given)


def paged(**changes: Any) -> Callable[[], object]:
    return call(**{"k_cache": PAGES[0], "v_cache": PAGES[1], "block_table": TABLE, **changes})


def turned(**changes: Any) -> Callable[[], object]:
    given = {"query": NEW_K, "cos": COS, "sin": COS, "cache_seqlens": ints(4, 0), **changes}
    return lambda: rotate_queries(**given)


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "key type": (call(key=[0.0]), TypeError, "key is a list; accepted is a Tensor"),
    "key dtype": (call(key=NEW_K.int()), TypeError, "key has dtype torch.int32; accepted are float32"),
    "key rank": (call(key=NEW_K[0]), ValueError, "key has shape (3, 2, 8); accepted are [B, L, Hkv, D]"),
    "value dtype": (call(value=NEW_V.half()), TypeError, "value has dtype torch.float16 and key torch.float32"),
    "value shape": (call(value=NEW_V[:, :2]), ValueError, "value has shape (2, 2, 2, 4); accepted is [B, L, Hkv] of"),
    "cache dtype": (call(k_cache=K.half()), TypeError, "k_cache has dtype torch.float16 and key torch.float32"),
    "cache device": (call(v_cache=V.to("meta")), ValueError, "v_cache is on meta and key on cpu"),
    "cache rank": (call(k_cache=K[0]), ValueError, "k_cache has shape (16, 2, 8); accepted are [B, L, Hkv, D], or"),
    "cache heads": (call(k_cache=K[:, :, :1]), ValueError, "k_cache has shape (3, 16, 1, 8); accepted is"),
    "cache columns": (call(v_cache=V[..., :3]), ValueError, "v_cache has shape (3, 16, 2, 3); accepted is"),
    "caches differ": (call(v_cache=V[:, :15]), ValueError, "v_cache has shape (3, 15, 2, 4); accepted is"),
    "cache strided": (
        call(k_cache=K.mT.contiguous().mT),
        ValueError,
        "k_cache has strides (256, 16, 1, 2); accepted, to be written in place, is a last one of 1 and no 0",
    ),
    "cache expanded": (call(v_cache=V[:1].expand_as(V)), ValueError, "v_cache has strides (0, 8, 4, 1); accepted"),
    "few batches": (call(k_cache=K[:1], v_cache=V[:1]), ValueError, "k_cache has shape (1, 16, 2, 8); accepted is one"),
    "lengths type": (call(cache_seqlens=1.0), TypeError, "cache_seqlens is a float; accepted are an int32 Tensor"),
    "lengths dtype": (
        call(cache_seqlens=ints(4, 0).long()),
        TypeError,
        "cache_seqlens has dtype torch.int64; accepted",
    ),
    "lengths shape": (call(cache_seqlens=ints(4)), ValueError, "cache_seqlens has shape (1,); accepted is [B], (2,)"),
    "lengths device": (call(cache_seqlens=ints(4, 0).to("meta")), ValueError, "cache_seqlens is on meta and key on"),
    "a long sequence": (
        call(cache_seqlens=ints(4, 14)),
        ValueError,
        "cache_seqlens[1] is 14; accepted are 0 to 13, so that 3 more rows fit into 16",
    ),
    "a negative length": (call(cache_seqlens=ints(-1, 0)), ValueError, "cache_seqlens[0] is -1; accepted are 0 to 13"),
    "an int too long": (call(cache_seqlens=14), ValueError, "cache_seqlens[0] is 14; accepted are 0 to 13"),
    "an int of more bits": (call(cache_seqlens=2**31), ValueError, "cache_seqlens is 2147483648; accepted are 32-bit"),
    "many rows": (
        call(key=NEW_K[:, :1].expand(2, 17, 2, 8), value=NEW_V[:, :1].expand(2, 17, 2, 4)),
        ValueError,
        "key has shape (2, 17, 2, 8); accepted are up to 16 rows, which the cache has",
    ),
    "numbers dtype": (call(cache_batch_idx=ints(0, 1).long()), TypeError, "cache_batch_idx has dtype torch.int64"),
    "numbers shape": (call(cache_batch_idx=ints(0)), ValueError, "cache_batch_idx has shape (1,); accepted is [B]"),
    "number high": (
        call(cache_batch_idx=ints(0, 3)),
        ValueError,
        "cache_batch_idx[1] is 3; accepted are 0 to 2, batches of k_cache",
    ),
    "number low": (call(cache_batch_idx=ints(-1, 1)), ValueError, "cache_batch_idx[0] is -1; accepted are 0 to 2"),
    "number twice": (
        call(cache_batch_idx=ints(2, 2)),
        ValueError,
        "cache_batch_idx[1] is 2, as cache_batch_idx[0] is; accepted are distinct ones",
    ),
    "both": (paged(cache_batch_idx=ints(0, 1)), ValueError, "cache_batch_idx and block_table are given; accepted is"),
    "table dtype": (
        paged(block_table=TABLE.long()),
        TypeError,
        "block_table has dtype torch.int64; accepted are int32",
    ),
    "table rank": (paged(block_table=ints(0, 1)), ValueError, "block_table has shape (2,); accepted is [B, max_pages]"),
    "table shape": (paged(block_table=TABLE[:1]), ValueError, "block_table has shape (1, 2); accepted is [B, max_pag"),
    "small pages": (
        paged(k_cache=PAGES[0][:, :7], v_cache=PAGES[1][:, :7]),
        ValueError,
        "k_cache has pages of 7 rows; accepted are 8 to 256",
    ),
    "page high": (
        paged(block_table=ints(0, 5, 2, 3).view(2, 2), cache_seqlens=ints(6, 0)),
        ValueError,
        "block_table[0, 1] is 5; accepted are 0 to 4, pages of k_cache",
    ),
    "page low": (paged(block_table=TABLE - 1), ValueError, "block_table[0, 0] is -1; accepted are 0 to 4"),
    "page twice": (
        paged(block_table=ints(2, 1, 2, 3).view(2, 2)),
        ValueError,
        "block_table[1, 0] is 2, as block_table[0, 0] is; accepted are distinct pages",
    ),
    "more than pages": (paged(cache_seqlens=ints(4, 14)), ValueError, "cache_seqlens[1] is 14; accepted are 0 to 13"),
    "one table": (call(cos=COS), ValueError, "sin is None; accepted are both cos and sin, or none of them"),
    "angles dtype": (call(cos=COS.int(), sin=COS.int()), TypeError, "cos has dtype torch.int32; accepted are float32"),
    "angles' dtypes": (call(cos=COS, sin=COS.half()), TypeError, "sin has dtype torch.float16 and cos torch.float32"),
    "angles device": (call(cos=COS.to("meta"), sin=COS), ValueError, "cos is on meta and key on cpu"),
    "angles rank": (call(cos=COS[0], sin=COS[0]), ValueError, "cos has shape (4,); accepted are [positions, R / 2]"),
    "angles wide": (call(cos=K[0, :, 0], sin=K[0, :, 0]), ValueError, "cos has shape (16, 8); accepted are"),
    "angles differ": (call(cos=COS, sin=COS[:8]), ValueError, "sin has shape (8, 4); accepted is the shape of cos"),
    "few angles": (call(cos=COS[:2], sin=COS[:2]), ValueError, "cos has shape (2, 4); accepted are 3 rows or more"),
    "a position without angles": (
        call(cos=COS[:6], sin=COS[:6]),
        ValueError,
        "cache_seqlens[0] is 4; accepted are 0 to 3, so that cos and sin have rows for 3 positions from there on",
    ),
    "interleaved": (call(interleaved=1), TypeError, "interleaved is a int; accepted is a bool"),
    "query rank": (turned(query=NEW_K[0]), ValueError, "query has shape (3, 2, 8); accepted are [B, L, H, D]"),
    "query type": (turned(query=None), TypeError, "query is a NoneType; accepted is a Tensor"),
    "query angles": (turned(cos=None), TypeError, "cos is a NoneType; accepted is a Tensor"),
    "query far": (turned(cache_seqlens=ints(4, 14)), ValueError, "cache_seqlens[1] is 14; accepted are 0 to 13"),
    "query at the end": (
        turned(cache_seqlens=ints(4, 16), one_position=True),
        ValueError,
        "cache_seqlens[1] is 16; accepted are 0 to 15, so that cos and sin have rows for 1 positions",
    ),
    "one_position": (turned(one_position=1), TypeError, "one_position is a int; accepted is a bool"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(assert_refused: Callable[..., None], name: str) -> None:
    assert_refused(*BAD[name])


def test_entries_that_no_row_goes_to_may_be_anything(seed: int) -> None:
    k_cache, v_cache = PAGES[0].clone(), PAGES[1].clone()
    table = ints(1, -7, 99, 3, 3, 2**31 - 1).view(2, 3)
    append_kv(k_cache, v_cache, NEW_K + 1, NEW_V + 1, cache_seqlens=ints(5, 8), block_table=table)
    assert (k_cache[1, 5:] == 1).all()
    assert (k_cache[3, :3] == 1).all()
    assert k_cache.sum() == 2 * NEW_K[0].numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_finding(dtype: torch.dtype, seed: int) -> None:
    with simulator.check():
        check(Case(rotary_dim=32, place="numbered", columns=96), dtype)
        check(Case(rotary_dim=10, place="paged", columns=17, interleaved=True, layout="sliced"), dtype)


@pytest.mark.parametrize("rotary_dim", [0, 64])
@pytest.mark.parametrize("place", ["batch", "numbered", "paged"])
def test_kernels_write_nothing_outside_the_cache(
    monkeypatch: pytest.MonkeyPatch, place: Any, rotary_dim: int, seed: int
) -> None:
    """Were the operator's reading of values not there: rows without a place or angles are left out, others are not."""
    monkeypatch.setattr(function, "require_places", lambda *arguments: None)
    monkeypatch.setattr(function, "require_positions", lambda *arguments: None)
    case = Case(batches=6, length=2, capacity=16, place=place)
    x = case.inputs(torch.float32)
    x.cache_seqlens.copy_(ints(-5, -1, 3, 15, 16, 2**31 - 1))
    tables: dict[str, Any] = {"cos": torch.ones(17, 32), "sin": torch.zeros(17, 32)} if rotary_dim else {}
    if x.cache_batch_idx is not None:
        tables["cache_batch_idx"] = x.cache_batch_idx.clone()
        tables["cache_batch_idx"][2] = 8
    if x.block_table is not None:
        tables["block_table"] = x.block_table.clone()
        tables["block_table"][2, 0] = -1
    x = dataclasses.replace(x, **tables)
    expected, expected_values = x.k_cache.clone(), x.v_cache.clone()
    for batch, i, position in ((1, 1, 0), (2, 0, 3), (2, 1, 4), (3, 0, 15)):
        where: tuple[int, int] = batch, position
        if x.cache_batch_idx is not None:
            where = int(x.cache_batch_idx[batch]), position
        if x.block_table is not None:
            where = int(x.block_table[batch, position // 8]), position % 8
        if 0 <= where[0] < len(expected):
            expected[where], expected_values[where] = x.key[batch, i], x.value[batch, i]
    with simulator.check():
        k_cache, v_cache = appended(x)
    assert torch.equal(k_cache, expected)
    assert torch.equal(v_cache, expected_values)


def test_queries_without_angles_are_left_out(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(function, "require_positions", lambda *arguments: None)
    query = torch.randn(2, 2, 2, 64)
    with simulator.check():
        found = rotate_queries(query, torch.ones(4, 32), torch.zeros(4, 32), cache_seqlens=ints(3, -1))
    assert torch.equal(found[0, 0], query[0, 0])
    assert torch.equal(found[1, 1], query[1, 1])
    assert found[0, 1].isnan().all()
    assert found[1, 0].isnan().all()


def test_each_element_moves_once(seed: int) -> None:
    x = Case(rotary_dim=64).inputs(torch.float16)
    append_kv(**vars(x))
    with simulator.profile() as counts:
        append_kv(**vars(x))
    (record,) = counts.launches
    rows, size = x.key.numel() // 64, 2 * (x.key.numel() + x.value.numel())
    assert record.counters.device_bytes_written == size
    angles = rows * 64 * 4
    assert record.counters.device_bytes_read - size - angles <= 4 * 2 * rows * 8  # lengths, which each thread reads
