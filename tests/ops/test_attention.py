"""The attention kernels against float64: every head size, dtype, mask, layout and length that the package takes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn.ops.attention import reference
from mps_flash_attn.ops.attention.cases import HEAD_SIZES, LENGTHS, Case, Inputs
from mps_flash_attn.ops.attention.function import Causal, attention_backward, attention_forward
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAMES = ("out", "lse", "dq", "dk", "dv")

#: Pairs of lengths in which each length is once a query's and once a key's, equal and not.
LENGTH_PAIRS = (*zip(LENGTHS, (*LENGTHS[3:], *LENGTHS[:3]), strict=True), (64, 64), (77, 77), (200, 200))


def ours(inputs: Inputs) -> tuple[Tensor, ...]:
    """``out lse dq dk dv`` from the kernels."""
    arguments = (inputs.query, inputs.key, inputs.value, inputs.attn_mask)
    out, lse = attention_forward(*arguments, inputs.scale, int(inputs.causal))
    gradients = attention_backward(
        inputs.grad_out, inputs.grad_lse, *arguments, out, lse, inputs.scale, int(inputs.causal)
    )
    return out, lse, *gradients


def exact(inputs: Inputs) -> tuple[Tensor, ...]:
    """The same from the reference in float64."""
    double = dataclasses.replace(
        inputs,
        **{name: getattr(inputs, name).double() for name in ("query", "key", "value", "grad_out", "grad_lse")},
    )
    arguments = (double.query, double.key, double.value, double.attn_mask)
    out, lse = reference.attention_forward(*arguments, double.scale, double.causal)
    gradients = reference.attention_backward(
        double.grad_out, double.grad_lse, *arguments, out, lse, double.scale, double.causal
    )
    return out, lse, *gradients


def pytorch(inputs: Inputs) -> tuple[Tensor, ...]:
    """The same from PyTorch in the inputs' own dtype: its attention, and for the log-sum-exp its ``logsumexp``."""
    query, key, value = (x.detach().clone().requires_grad_() for x in (inputs.query, inputs.key, inputs.value))
    dtype, (lq, lk) = query.dtype, (query.shape[2], key.shape[2])
    mask = torch.zeros(query.shape[0], query.shape[1], lq, lk, dtype=dtype)
    if inputs.attn_mask is not None and inputs.attn_mask.dtype == torch.bool:
        mask = mask.masked_fill(~inputs.attn_mask, -torch.inf)
    elif inputs.attn_mask is not None:
        mask = mask + inputs.attn_mask.to(dtype)
    if inputs.causal:
        visible = reference.causal_mask(lq, lk, bottom_right=inputs.causal == Causal.BOTTOM_RIGHT)
        mask = mask.masked_fill(~visible, -torch.inf)
    groups = query.shape[1] // key.shape[1]
    work = torch.promote_types(dtype, torch.float32)
    scores = query.to(work) @ key.to(work).repeat_interleave(groups, 1).transpose(-2, -1) * inputs.scale
    lse = torch.logsumexp(scores + mask.to(work), dim=-1)
    out = F.scaled_dot_product_attention(query, key, value, mask, scale=inputs.scale, enable_gqa=True)
    torch.autograd.backward((out, lse), (inputs.grad_out, inputs.grad_lse))
    gradients = (query.grad, key.grad, value.grad)
    return tuple(x.detach().nan_to_num(posinf=torch.inf, neginf=-torch.inf) for x in (out, lse, *gradients))


def check(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    for name, actual, baseline, expected in zip(NAMES, ours(inputs), pytorch(inputs), exact(inputs), strict=True):
        assert_accurate(f"{name} of {case} in {dtype}", actual, baseline, expected)


@pytest.mark.parametrize("causal", [Causal.NONE, Causal.TOP_LEFT])
@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_head_sizes_and_lengths(dtype: torch.dtype, head_size: int, causal: Causal, seed: int) -> None:
    layouts = itertools.cycle(("contiguous", "transposed"))
    heads = itertools.cycle(((2, 2), (4, 2), (3, 1)))
    alignments = itertools.cycle((causal, causal, Causal.BOTTOM_RIGHT if causal else causal))
    for queries, keys in LENGTH_PAIRS:
        query_heads, key_heads = next(heads)
        check(
            Case(
                queries,
                keys,
                head_size,
                batch=1,
                query_heads=query_heads,
                key_heads=key_heads,
                causal=next(alignments),
                layout=next(layouts),
            ),
            dtype,
        )


def test_same_result_in_float64(seed: int) -> None:
    for causal in Causal:
        check(Case(77, 90, 40, query_heads=4, key_heads=2, causal=causal), torch.float64)


@given(
    st.builds(
        Case,
        queries=st.integers(0, 150),
        keys=st.integers(0, 150),
        head_size=st.sampled_from((17, 40, 64)),
        batch=st.integers(1, 2),
        query_heads=st.just(4),
        key_heads=st.sampled_from((1, 2, 4)),
        causal=st.sampled_from(tuple(Causal)),
        layout=st.sampled_from(("contiguous", "transposed", "sliced", "expanded")),
        mask=st.sampled_from(("none", "boolean", "boolean-keys", "additive", "additive-head", "additive-column")),
        mask_dtype=st.sampled_from((torch.float32, torch.float16)),
        scale=st.sampled_from((None, 0.3, -0.2)),
    ),
    st.sampled_from((torch.float32, torch.bfloat16)),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    check(case, dtype)
