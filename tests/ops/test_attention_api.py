"""`flash_attention` as callers see it: shapes, broadcasting, masks, casting, copies, and words for bad arguments."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from mps_flash_attn import UnsupportedError, flash_attention
from mps_flash_attn.ops.attention import api

D = 8


def exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attention in float64, rows without keys 0."""
    scores = query.double() @ key.double().mT * (1 / math.sqrt(D) if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).nan_to_num(0) @ value.double()


def largest_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).abs().max()) if actual.numel() else 0.0


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every call of the forward operator, which still runs."""
    calls: list[tuple[Any, ...]] = []
    operator = api.forward_operator

    def record(*args: Any) -> Any:
        calls.append(args)
        return operator(*args)

    monkeypatch.setattr(api, "forward_operator", record)
    return calls


@pytest.mark.parametrize(
    ("q_shape", "kv_shape", "v_shape"),
    [
        ((2, 3, 7, D), (2, 3, 9, D), (2, 3, 9, D)),
        ((3, 7, D), (3, 9, D), (3, 9, D)),
        ((7, D), (9, D), (9, D)),
        ((7, D), (3, 9, D), (9, D)),
        ((3, 7, D), (9, D), (9, D)),
        ((2, 4, 3, 7, D), (2, 4, 3, 9, D), (2, 4, 3, 9, D)),
        ((2, 1, 4, 3, 7, D), (1, 2, 4, 1, 9, D), (3, 9, D)),
        ((2, 3, 7, D), (1, 3, 9, D), (2, 1, 9, D)),
        ((2, 3, 7, D), (2, 1, 9, D), (1, 1, 9, D)),
        ((2, 1, 7, D), (2, 3, 9, D), (2, 3, 9, D)),
        ((0, 3, 7, D), (0, 3, 9, D), (0, 3, 9, D)),
        ((2, 3, 0, D), (2, 3, 9, D), (2, 3, 9, D)),
    ],
    ids=str,
)
def test_leading_dimensions_broadcast_as_in_pytorch(
    seed: int, q_shape: tuple[int, ...], kv_shape: tuple[int, ...], v_shape: tuple[int, ...]
) -> None:
    query, key, value = torch.randn(q_shape), torch.randn(kv_shape), torch.randn(v_shape)
    lead = torch.broadcast_shapes(q_shape[:-2], kv_shape[:-2], v_shape[:-2])
    out, lse = flash_attention(query, key, value, return_lse=True)
    assert out.shape == (*lead, q_shape[-2], D)
    assert lse.shape == out.shape[:-1]
    assert largest_error(out, exact(query, key, value)) <= 1e-5


def test_no_keys_give_zero_and_minus_infinity() -> None:
    query, empty = torch.randn(1, 2, 7, D), torch.randn(1, 2, 0, D)
    out, lse = flash_attention(query, empty, empty, return_lse=True)
    assert torch.equal(out, torch.zeros_like(query))
    assert torch.equal(lse, torch.full((1, 2, 7), -math.inf))


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
def test_grouped_heads(seed: int, batch: tuple[int, ...], kv_heads: int) -> None:
    query, key, value = torch.randn(*batch, 6, 7, D), *torch.randn(2, *batch, kv_heads, 9, D)
    repeated = [x.repeat_interleave(6 // kv_heads, dim=-3) for x in (key, value)]
    out = flash_attention(query, key, value, enable_gqa=True)
    assert largest_error(out, exact(query, *repeated)) <= 1e-5


@pytest.mark.parametrize(
    "mask_shape", [(9,), (7, 1), (7, 9), (4, 1, 9), (2, 1, 7, 9), (1, 1, 1, 1), (2, 4, 7, 9)], ids=str
)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("rank", [4, 5])
def test_masks_broadcast(seed: int, rank: int, mask_dtype: torch.dtype, mask_shape: tuple[int, ...]) -> None:
    query, key, value = torch.randn(2, 4, 7, D), *torch.randn(2, 2, 4, 9, D)
    if rank == 5:
        query, key, value = (torch.stack([x, -x], 0) for x in (query, key, value))
    mask = torch.randn(mask_shape)
    if mask_dtype == torch.bool:
        mask = mask > -1
    assert largest_error(flash_attention(query, key, value, mask), exact(query, key, value, mask)) <= 1e-5


@given(st.data())
def test_any_strides_and_ranks_give_the_same(data: st.DataObject) -> None:
    """Folding several batch dimensions is right whatever their order in memory and whatever broadcasts."""
    torch.manual_seed(data.draw(st.integers(0, 2**31), label="seed"))
    rank = data.draw(st.integers(4, 6), label="rank")
    sizes = [data.draw(st.integers(1, 3)) for _ in range(rank - 2)]
    groups = data.draw(st.sampled_from([1, 2]), label="group size")

    def operand(lead: list[int], length: int) -> Tensor:
        lead = [data.draw(st.sampled_from([n, 1])) for n in lead[:-1]] + lead[-1:]
        order = data.draw(st.permutations(range(rank - 1)))
        shape = [*lead, length]
        packed = torch.randn(*(shape[i] for i in order), D)
        return packed.permute(*(order.index(i) for i in range(rank - 1)), rank - 1)

    query = operand([*sizes[:-1], sizes[-1] * groups], 5)
    key, value = operand(sizes, 4), operand(sizes, 4)
    lead = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    mask = torch.randn([data.draw(st.sampled_from([n, 1])) for n in (*lead, query.shape[-3], 5, 4)])
    repeated = [x.repeat_interleave(groups, dim=-3) for x in (key, value)]
    out = flash_attention(query, key, value, mask, enable_gqa=True)
    assert largest_error(out, exact(query, *repeated, mask)) <= 1e-5


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (4, 7), (7, 4)])
@pytest.mark.parametrize("alignment", ["top-left", "bottom-right"])
def test_causal_alignment(seed: int, alignment: Any, queries: int, keys: int) -> None:
    query, key, value = torch.randn(1, 2, queries, D), *torch.randn(2, 1, 2, keys, D)
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries if alignment == "bottom-right" else 0)
    expected = exact(query, key, value, visible)
    out = flash_attention(query, key, value, is_causal=True, causal_alignment=alignment)
    assert largest_error(out, expected) <= 1e-5


def test_mask_and_causal_combine(seed: int) -> None:
    query, key, value = torch.randn(3, 2, 2, 7, D)
    mask = torch.rand(2, 1, 7, 7) > 0.3
    visible = mask & torch.ones(7, 7, dtype=torch.bool).tril()
    expected = exact(query, key, value, visible)
    assert largest_error(flash_attention(query, key, value, mask, is_causal=True), expected) <= 1e-5


@pytest.mark.filterwarnings("ignore:Lower right causal bias")
@pytest.mark.parametrize(("queries", "keys"), [(4, 7), (7, 4)])
def test_causal_bias_stands_for_its_alignment(seed: int, queries: int, keys: int) -> None:
    query, key, value = torch.randn(1, 2, queries, D), *torch.randn(2, 1, 2, keys, D)
    for bias, alignment in ((causal_upper_left, "top-left"), (causal_lower_right, "bottom-right")):
        expected = flash_attention(query, key, value, is_causal=True, causal_alignment=alignment)  # type: ignore[call-overload]
        assert torch.equal(flash_attention(query, key, value, bias(queries, keys)), expected)


def test_causal_bias_that_does_not_fit() -> None:
    query = torch.randn(1, 2, 5, D)
    with pytest.raises(ValueError, match=r"attn_mask is a CausalBias of 4 queries and 5 keys; .* 5 and 5"):
        flash_attention(query, query, query, causal_upper_left(4, 5))
    with pytest.raises(ValueError, match="attn_mask is a CausalBias and is_causal is True"):
        flash_attention(query, query, query, causal_upper_left(5, 5), is_causal=True)


@pytest.mark.parametrize("scale", [0.3, -0.7, 2])
def test_scale(seed: int, scale: float) -> None:
    query, key, value = torch.randn(3, 1, 2, 7, D)
    out = flash_attention(query, key, value, scale=scale)
    assert largest_error(out, exact(query, key, value, scale=scale)) <= 1e-5


def test_log_sum_exp_is_natural(seed: int) -> None:
    query, key = torch.randn(2, 1, 2, 7, D)
    _, lse = flash_attention(query, key, key, scale=0.5, return_lse=True)
    assert largest_error(lse, (query.double() @ key.double().mT * 0.5).logsumexp(-1)) <= 1e-5


def test_common_calls_reach_the_operator_untouched(launched: list[tuple[Any, ...]]) -> None:
    """`[B, L, H, D]` seen as `[B, H, L, D]`, a slice, an expanded batch: the very tensors, not copies."""
    packed = torch.randn(2, 7, 3, 2, D)
    query, key, value = (packed[:, :, i].transpose(1, 2) for i in range(3))
    mask = torch.randn(2, 1, 1, 7).expand(2, 2, 7, 7)
    flash_attention(query, key, value, mask)
    assert all(given is sent for given, sent in zip((query, key, value, mask), launched[0], strict=False))
    shared = torch.randn(1, 2, 7, D).expand(2, 2, 7, D)
    flash_attention(query, shared, shared)
    assert launched[1][1] is shared


def test_leading_dimensions_fold_without_copies(seed: int, launched: list[tuple[Any, ...]]) -> None:
    """Where strides keep two batch dimensions apart, the second joins the heads instead."""
    query = torch.randn(3, 4, 2, 7, D).permute(2, 0, 1, 3, 4)
    mask = torch.randn(2, 1, 1, 7, 7)
    out = flash_attention(query, query, query, mask)
    assert [x.data_ptr() for x in launched[0][:4]] == [x.data_ptr() for x in (query, query, query, mask)]
    assert launched[0][3].shape == (2, 1, 7, 7)
    assert largest_error(out, exact(query, query, query, mask)) <= 1e-5


def test_only_a_strided_last_dimension_is_copied(launched: list[tuple[Any, ...]]) -> None:
    wide = torch.randn(1, 2, 7, 2 * D)
    query = torch.randn(1, 2, 7, D)
    out = flash_attention(query, wide[..., ::2], wide[..., :D])
    assert launched[0][0].data_ptr() == query.data_ptr()
    assert launched[0][1].is_contiguous()
    assert launched[0][2].data_ptr() == wide.data_ptr()
    assert largest_error(out, exact(query, wide[..., ::2], wide[..., :D])) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_as_pytorch_does(seed: int, launched: list[tuple[Any, ...]], dtype: torch.dtype) -> None:
    query, key, value = torch.randn(3, 1, 2, 7, D)
    mask = torch.randn(7, 7)
    with torch.autocast("cpu", dtype=dtype):
        out = flash_attention(query, key.to(dtype), value, mask)
        assert out.dtype == F.scaled_dot_product_attention(query, key, value).dtype == dtype
        assert flash_attention(query.double(), key.double(), value.double()).dtype == torch.float64
    assert [x.dtype for x in launched[0][:4]] == [dtype, dtype, dtype, torch.float32]
    with torch.autocast("cpu", enabled=False):
        assert flash_attention(query, key, value).dtype == torch.float32


def test_gradients_pass_through_autocast(seed: int) -> None:
    query = torch.randn(1, 2, 7, D, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flash_attention(query, query, query).float().sum().backward()
    assert query.grad is not None
    assert query.grad.dtype == torch.float32


def test_meta_tensors_have_shapes_alone() -> None:
    query = torch.randn(2, 4, 7, D, device="meta", dtype=torch.float16)
    out, lse = flash_attention(query, query[:, :2], query[:, :2], enable_gqa=True, return_lse=True)
    assert (out.shape, out.dtype, out.device.type) == ((2, 4, 7, D), torch.float16, "meta")
    assert (lse.shape, lse.dtype) == ((2, 4, 7), torch.float32)


@pytest.mark.parametrize("in_dims", [(0, 0, 0, None), (1, None, 2, 0), (None, 3, None, 2)], ids=str)
def test_vmap_is_one_launch(seed: int, launched: list[tuple[Any, ...]], in_dims: tuple[int | None, ...]) -> None:
    shapes = ((2, 4, 7, D), (2, 2, 9, D), (2, 2, 9, D), (1, 7, 9))
    tensors = [
        torch.randn(shape if dim is None else (*shape[:dim], 3, *shape[dim:]))
        for shape, dim in zip(shapes, in_dims, strict=True)
    ]

    def attention(*args: Tensor) -> Tensor:
        return flash_attention(*args, enable_gqa=True)

    out = torch.vmap(attention, in_dims)(*tensors)
    assert len(launched) == 2, "the call with mapped tensors, and the one launch that it becomes"
    for i in range(3):
        one = [x if dim is None else x.select(dim, i) for x, dim in zip(tensors, in_dims, strict=True)]
        assert largest_error(out[i], attention(*one)) <= 1e-6


def make(
    *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", requires_grad: bool = False
) -> Callable[[], Tensor]:
    return lambda: torch.zeros(shape, dtype=dtype, device=device, requires_grad=requires_grad)


GOOD = make(2, 4, 7, D)
BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "not a tensor": ({"query": [[1.0]]}, TypeError, "query is a list; accepted is a Tensor"),
    "rank": ({"value": make(D)}, ValueError, "value has shape [8]; accepted are two dimensions or more"),
    "device": (
        {"key": make(2, 4, 7, D, device="meta")},
        ValueError,
        "key is on meta and query on cpu; accepted is one",
    ),
    "integer": (
        {"query": make(2, 4, 7, D, dtype=torch.int64)},
        TypeError,
        "query has dtype torch.int64; accepted are float32",
    ),
    "complex": (
        {"value": make(2, 4, 7, D, dtype=torch.complex64)},
        TypeError,
        "value has dtype torch.complex64; accepted",
    ),
    "dtype mix": (
        {"key": make(2, 4, 7, D, dtype=torch.float16)},
        TypeError,
        "key has dtype torch.float16 and query torch.float32",
    ),
    "sparse": (
        {"key": lambda: GOOD().to_sparse()},
        UnsupportedError,
        "key is of layout torch.sparse_coo; accepted are dense",
    ),
    "nested": (
        {"query": lambda: torch.nested.nested_tensor([torch.zeros(4, 7, D)] * 2, layout=torch.jagged)},
        UnsupportedError,
        "query is nested; accepted are dense",
    ),
    "key head size": (
        {"key": make(2, 4, 7, 4)},
        ValueError,
        "key has head size 4 and query 8; accepted is one head size",
    ),
    "value head size": (
        {"value": make(2, 4, 7, 577)},
        UnsupportedError,
        "value has head size 577; accepted are 1 to 576",
    ),
    "head size 0": (
        dict.fromkeys(("query", "key", "value"), make(2, 4, 7, 0)),
        UnsupportedError,
        "query has head size 0; accepted are 1 to 576",
    ),
    "head size 577": (
        dict.fromkeys(("query", "key", "value"), make(2, 4, 7, 577)),
        UnsupportedError,
        "query has head size 577; accepted are 1 to 576",
    ),
    "lengths": ({"value": make(2, 4, 6, D)}, ValueError, "value has length 6 and key 7; accepted is one length"),
    "batches": (
        {"key": make(3, 4, 7, D)},
        ValueError,
        "shapes [2, 4, 7, 8], [3, 4, 7, 8], [2, 4, 7, 8]; accepted are equal or broad",
    ),
    "heads without enable_gqa": (
        dict.fromkeys(("key", "value"), make(2, 2, 7, D)),
        ValueError,
        "grouped heads need enable_gqa=True",
    ),
    "heads do not divide": (
        {**dict.fromkeys(("key", "value"), make(2, 3, 7, D)), "enable_gqa": True},
        ValueError,
        "query has 4 heads and key 3; accepted is a multiple",
    ),
    "no key heads": (
        dict.fromkeys(("query", "key", "value"), make(2, 0, 7, D)),
        UnsupportedError,
        "key has 0 heads; accepted are 1 or more",
    ),
    "key and value heads": (
        {"value": make(2, 2, 7, D), "enable_gqa": True},
        UnsupportedError,
        "value has 2 heads and key 4",
    ),
    "groups of two dimensions": (
        {**dict.fromkeys(("query", "key", "value"), make(7, D)), "enable_gqa": True},
        ValueError,
        "enable_gqa is True and query, key, value have (2, 2, 2) dimensions",
    ),
    "mask type": ({"attn_mask": 1.0}, TypeError, "attn_mask is a float; accepted is a Tensor or None"),
    "mask dtype": (
        {"attn_mask": make(7, 7, dtype=torch.int32)},
        TypeError,
        "attn_mask has dtype torch.int32; accepted are bool",
    ),
    "mask device": ({"attn_mask": make(7, 7, device="meta")}, ValueError, "attn_mask is on meta and query on cpu"),
    "mask shape": (
        {"attn_mask": make(3, 1, 7)},
        ValueError,
        "attn_mask has shape [3, 1, 7]; accepted is what broadcasts to [2, 4, 7, 7]",
    ),
    "mask rank": ({"attn_mask": make(1, 2, 4, 7, 7)}, ValueError, "attn_mask has shape [1, 2, 4, 7, 7]"),
    "dropout of all": ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0; accepted are 0 and more, below 1"),
    "dropout nan": ({"dropout_p": math.nan}, ValueError, "dropout_p is nan; accepted"),
    "dropout type": ({"dropout_p": "0"}, TypeError, "dropout_p is a str; accepted is a number"),
    "softcap negative": ({"softcap": -1.0}, ValueError, "softcap is -1.0; accepted are finite numbers from 0"),
    "softcap inf": ({"softcap": math.inf}, ValueError, "softcap is inf; accepted"),
    "window below": ({"window": (-2, 0)}, ValueError, "window is (-2, 0); accepted are 0 and more, or -1"),
    "window type": ({"window": 5}, TypeError, "window is 5; accepted are two ints (left, right)"),
    "window of floats": ({"window": (1.0, 2)}, TypeError, "window is (1.0, 2); accepted are two ints"),
    "slopes shape": (
        {"alibi_slopes": make(3)},
        ValueError,
        "alibi_slopes has shape [3]; accepted is a value for each",
    ),
    "slopes rank": ({"alibi_slopes": make(1, 2, 4)}, ValueError, "alibi_slopes has shape [1, 2, 4]"),
    "slopes gradient": (
        {"alibi_slopes": make(4, requires_grad=True)},
        UnsupportedError,
        "alibi_slopes requires grad and its gradient is not implemented",
    ),
    "sinks type": ({"sinks": 1.0}, TypeError, "sinks is a float; accepted is a Tensor"),
    "sinks dtype": ({"sinks": make(4, dtype=torch.int32)}, TypeError, "sinks has dtype torch.int32; accepted are"),
    "sinks device": ({"sinks": make(4, device="meta")}, ValueError, "sinks is on meta and query on cpu"),
    "sparse mask": ({"attn_mask": lambda: torch.eye(7).to_sparse()}, UnsupportedError, "attn_mask is sparse or nested"),
    "scale 0": ({"scale": 0.0}, ValueError, "scale is 0.0; accepted are finite numbers other than 0"),
    "scale nan": ({"scale": math.nan}, ValueError, "scale is nan; accepted are finite"),
    "scale inf": ({"scale": -math.inf}, ValueError, "scale is -inf; accepted are finite"),
    "scale type": ({"scale": "1"}, TypeError, "scale is a str; accepted are a float or None"),
    "scale bool": ({"scale": True}, TypeError, "scale is a bool; accepted are a float or None"),
    "alignment": (
        {"causal_alignment": "top"},
        ValueError,
        "causal_alignment is 'top'; accepted are 'top-left' and 'bottom-right'",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_named(name: str, assert_refused: Callable[..., None]) -> None:
    changes, error, message = BAD_ARGUMENTS[name]
    arguments: dict[str, Any] = {"query": GOOD, "key": GOOD, "value": GOOD} | changes
    made = {name: value() if callable(value) else value for name, value in arguments.items()}
    assert_refused(lambda: flash_attention(**made), error, message)


def test_docstring_example() -> None:
    example = doctest.DocTestFinder(recurse=False).find(flash_attention, "flash_attention", globs={})
    results = [doctest.DocTestRunner().run(test) for test in example]
    assert [result.failed for result in results] == [0]
    assert results[0].attempted >= 6
