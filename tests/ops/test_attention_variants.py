"""Windows, softcap, ALiBi, sinks, dropout and gradients of masks: alone, together, and under PyTorch's transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import flash_attention, patched, reset_stats, stats
from mps_flash_attn.ops.attention import reference
from mps_flash_attn.ops.attention.cases import Case, Inputs
from mps_flash_attn.ops.attention.problem import Causal, Modifiers
from mps_flash_attn.runtime import simulator
from tests.ops.attention import assert_as_expected, ours

D = 8

forward = torch.ops.mps_flash_attn.attention_forward.default
backward = torch.ops.mps_flash_attn.attention_backward.default

#: All at once, in shapes with which every tile has an edge.
ALL = Case(
    77,
    90,
    40,
    batch=1,
    query_heads=4,
    key_heads=2,
    mask="additive-row",
    window=(50, 20),
    softcap=3.0,
    alibi=True,
    sinks=True,
    dropout_p=0.2,
)


#: Not so few that a sum of terms that cancel is the largest there is: errors are measured by the largest value.
LENGTHS = st.one_of(st.just(0), st.integers(20, 100))


@given(
    st.builds(
        Case,
        queries=LENGTHS,
        keys=LENGTHS,
        head_size=st.just(40),
        batch=st.integers(1, 2),
        query_heads=st.just(4),
        key_heads=st.sampled_from((1, 2, 4)),
        causal=st.sampled_from(tuple(Causal)),
        layout=st.sampled_from(("contiguous", "transposed")),
        mask=st.sampled_from(("none", "additive", "additive-column", "additive-row")),
        window=st.tuples(st.sampled_from((7, 40)), st.sampled_from((-1, 0, 7, 40))),
        bottom_right=st.booleans(),
        softcap=st.sampled_from((0.0, 2.0)),
        alibi=st.just(True),
        sinks=st.booleans(),
        dropout_p=st.sampled_from((0.0, 0.3)),
    ),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    inputs = case.inputs(torch.float32)
    assert_as_expected(inputs, ours(inputs), f" of {case}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", ["additive-row", "additive-column"])
def test_no_finding(mask: Any, dtype: torch.dtype, seed: int) -> None:
    inputs = Case(**{**vars(ALL), "mask": mask}).inputs(dtype)
    with simulator.check():
        assert not any(x.isnan().any() for x in ours(inputs) if x is not None), "an element was never written"


def test_keys_outside_the_window_cost_nothing(seed: int) -> None:
    products, traffic = [], []
    for window in ((-1, -1), (64, 0)):
        inputs = Case(1024, 1024, 64, batch=1, query_heads=1, key_heads=1, window=window).inputs(torch.float16)
        with simulator.profile() as counts:
            ours(inputs)
        products.append(counts.total.matrix_products)
        traffic.append(counts.total.device_bytes_read)
    # A query sees 65 keys of 1,024; a block of 64 queries at most 4 blocks of 32, or of 16 a part of a fifth.
    assert products[1] <= 0.2 * products[0]
    assert traffic[1] <= 0.3 * traffic[0]


# --- dropout ---


def drops(inputs: Inputs) -> Tensor:
    """Which weights were dropped, ``[B, Hq, Lq, Lk]``, seen from outside: the values are the rows of a unit matrix."""
    keys = inputs.key.shape[2]
    value = torch.eye(keys, dtype=inputs.query.dtype)[:, : inputs.query.shape[3]].expand_as(inputs.key)
    out = forward(inputs.query, inputs.key, value, None, 0.0001, 0, *inputs.modifiers)[0]
    return out == 0


def test_dropout_is_philox_whatever_the_tiles(seed: int) -> None:
    for head_size in (40, 256):
        inputs = Case(70, head_size, head_size, query_heads=4, key_heads=2, dropout_p=0.3).inputs(torch.float32)
        expected = inputs.scoring().dropped
        assert expected is not None
        assert torch.equal(drops(inputs), expected)


def test_philox_gives_the_published_numbers() -> None:
    """The known answers of Random123 1.14.0, tests/kat_vectors, philox4x32 10."""
    answers = (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    )
    for counter, key, expected in answers:
        words = reference.philox(tuple(torch.tensor([word]) for word in counter), key)
        assert tuple(int(word) for word in words) == expected


def test_dropped_weights_are_as_many_as_asked_for_and_independent(seed: int) -> None:
    key = torch.randint(-(2**31), 2**31, (2,))
    for p in (0.1, 0.5):
        dropped = reference.dropped((2, 4, 256, 256), key, p).double()
        deviation = (p * (1 - p)) ** 0.5
        for mean in (
            dropped.mean(),
            *dropped.mean((2, 3)).flatten(),
            *dropped.mean((0, 1, 2)),
            *dropped.mean((0, 1, 3)),
        ):
            assert abs(mean - p) <= 6 * deviation / (256 * 8) ** 0.5
        centred = (dropped - p) / deviation
        shifts = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 8, 0), (0, 0, 8), (0, 8, 8), (0, 1, 1), (0, 16, 0), (0, 0, 16)]
        for head, row, column in shifts:
            product = centred * centred.roll((head, row, column), (1, 2, 3))
            assert abs(product.mean()) <= 6 / product.numel() ** 0.5, (head, row, column)


def test_dropout_follows_pytorchs_generator(seed: int) -> None:
    query = torch.randn(1, 2, 30, D)
    results = []
    for number in (seed, seed, seed + 1):
        torch.manual_seed(number)
        results.append(flash_attention(query, query, query, dropout_p=0.5))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[2], flash_attention(query, query, query, dropout_p=0.5)), "the state moved on"
    assert torch.equal(flash_attention(query, query, query, dropout_p=0.0), flash_attention(query, query, query))


# --- gradients ---


def tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}


QKV = {"query": (1, 4, 5, D), "key": (1, 2, 6, D), "value": (1, 2, 6, D)}
GRADIENTS: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "full bias": ({"attn_mask": (1, 4, 5, 6)}, {}),
    "bias of heads": ({"attn_mask": (4, 1, 1)}, {"is_causal": True}),
    "bias of keys": ({"attn_mask": (6,)}, {"window": (2, 1)}),
    "bias of queries and sinks": ({"attn_mask": (5, 1), "sinks": (4,)}, {"softcap": 1.5}),
    "sinks of a batch": ({"sinks": (1, 4)}, {"alibi_slopes": torch.rand(4), "causal_alignment": "bottom-right"}),
    "dropout": ({"attn_mask": (1, 4, 5, 6), "sinks": (4,)}, {"dropout_p": 0.3}),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_exact(name: str, seed: int) -> None:
    shapes, options = GRADIENTS[name]
    inputs = tensors(**QKV, **shapes)

    def attention(*args: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)  # the same weights are dropped each time
        named = dict(zip(inputs, args, strict=True))
        result: tuple[Tensor, Tensor] = flash_attention(**named, **options, enable_gqa=True, return_lse=True)
        return result

    assert torch.autograd.gradcheck(attention, tuple(inputs.values()))


def test_gradient_of_a_mask_in_its_own_dtype_and_folded(seed: int) -> None:
    query = torch.randn(2, 3, 2, 5, D)
    for shape in ((3, 1, 5, 5), (2, 1, 1, 1, 5), (2, 3, 2, 5, 5)):
        mask = torch.randn(shape, dtype=torch.float16, requires_grad=True)
        flash_attention(query, query, query, mask).square().sum().backward()
        exact = mask.detach().double().requires_grad_()
        F.scaled_dot_product_attention(*(query.double(),) * 3, exact).square().sum().backward()
        assert mask.grad is not None
        assert exact.grad is not None
        assert mask.grad.dtype == torch.float16
        assert (mask.grad - exact.grad).abs().max() <= 2e-3 * exact.grad.abs().max()


# --- PyTorch's transforms ---


def modified(dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor, Modifiers]:
    query, key, value = (torch.randn(2, heads, 6, D, dtype=dtype) for heads in (4, 2, 2))
    seed = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32)
    rows = torch.rand(2, 2, 4)
    return (
        (query, key, value),
        torch.randn(1, 4, 1, 6),
        Modifiers(
            alibi_slopes=rows[0], sinks=rows[1], seed=seed, dropout_p=0.25, softcap=2.0, window_left=3, window_right=2
        ),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_keep_pytorchs_rules(dtype: torch.dtype, seed: int) -> None:
    operands, mask, modifiers = modified(dtype)
    out, lse = forward(*operands, mask, 0.3, 0, *modifiers)
    torch.library.opcheck(backward, (torch.randn_like(out), None, *operands, mask, out, lse, True, 0.3, 0, *modifiers))
    assert modifiers.sinks is not None
    leaves = [x.requires_grad_() for x in (*operands, mask, modifiers.sinks)]
    torch.library.opcheck(forward, (*leaves[:4], 0.3, 0, *modifiers))


def test_vmap_and_batched_gradients(seed: int) -> None:
    operands, mask, modifiers = modified(torch.float32)
    mask.requires_grad_()
    sinks = torch.rand(4, requires_grad=True)

    def attention(query: Tensor, sinks: Tensor) -> Tensor:
        slopes = modifiers.alibi_slopes
        return flash_attention(
            query, *operands[1:], mask, enable_gqa=True, alibi_slopes=slopes, sinks=sinks, window=(3, 2)
        )

    queries = torch.stack([operands[0], -operands[0]])
    stacked = torch.vmap(attention, in_dims=(0, None))(queries, sinks)
    single = [attention(query, sinks) for query in queries]
    assert torch.equal(stacked, torch.stack(single))
    grads = torch.randn(3, *single[0].shape)
    batched = torch.autograd.grad(single[0], (mask, sinks), grads, is_grads_batched=True, retain_graph=True)
    for n in range(3):
        one = torch.autograd.grad(single[0], (mask, sinks), grads[n], retain_graph=True)
        assert all((b[n] - s).abs().max() <= 1e-5 for b, s in zip(batched, one, strict=True))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool, seed: int) -> None:
    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, sinks: Tensor) -> Tensor:
        modified = {"window": (3, 2), "softcap": 2.0, "alibi_slopes": torch.ones(4), "sinks": sinks}
        out: Tensor = flash_attention(query, key, value, mask, enable_gqa=True, **modified)
        return out.square().sum() + flash_attention(query, key, value, mask, 0.5, enable_gqa=True).sum() * 0

    compiled = torch.compile(attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    operands, mask, modifiers = modified(torch.float32)
    assert modifiers.sinks is not None
    plain = [x.requires_grad_() for x in (*operands, mask, modifiers.sinks[0])]
    copies = [x.detach().clone().requires_grad_() for x in plain]
    gradients = torch.autograd.grad(attention(*plain), plain)
    assert all(
        torch.equal(a, b) for a, b in zip(gradients, torch.autograd.grad(compiled(*copies), copies), strict=True)
    )


def test_the_patch_takes_bias_and_dropout(seed: int) -> None:
    query = torch.randn(1, 2, 40, 64, requires_grad=True)
    bias = torch.randn(2, 40, 40, requires_grad=True)
    expected = torch.autograd.grad(F.scaled_dot_product_attention(query, query, query, bias).square().sum(), bias)[0]
    reset_stats()
    with patched(devices=("cpu",)):
        out = F.scaled_dot_product_attention(query, query, query, bias)
        actual = torch.autograd.grad(out.square().sum(), bias)[0]
        mean = torch.stack([F.scaled_dot_product_attention(query, query, query, bias, 0.2) for _ in range(200)]).mean(0)
    assert stats().accelerated == 201
    assert not stats().reasons
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (mean - out).abs().max() <= 6 * (0.25 / 200) ** 0.5 * query.abs().max()
