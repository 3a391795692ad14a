"""The attention kernels against float64: every head size, dtype, mask, layout and length that the package takes."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn.ops.attention.cases import HEAD_SIZES, LENGTHS, Case, Inputs, MaskName
from mps_flash_attn.ops.attention.expected import NAMES, exact, pytorch
from mps_flash_attn.ops.attention.function import Causal, attention_backward, attention_forward
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

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


#: The masks of each way through the kernels' text.
MASKS: dict[str, tuple[MaskName, ...]] = {
    "none": ("none",),
    "boolean": ("boolean", "boolean-keys"),
    "additive": ("additive", "additive-head", "additive-column"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_combinations(kind: str, seed: int) -> None:
    """What else shapes a text, dtypes and the head size, is drawn once in a run, so that few are compiled."""
    generator = random.Random(seed)
    dtype = generator.choice((torch.float32, torch.bfloat16))
    mask_dtype = generator.choice((torch.float32, torch.float16))
    head_size = generator.choice((17, 40, 64))

    @settings(max_examples=40)
    @given(
        st.builds(
            Case,
            queries=st.integers(0, 150),
            keys=st.integers(0, 150),
            head_size=st.just(head_size),
            batch=st.integers(1, 2),
            query_heads=st.just(4),
            key_heads=st.sampled_from((1, 2, 4)),
            causal=st.sampled_from(tuple(Causal)),
            layout=st.sampled_from(("contiguous", "transposed", "sliced", "expanded")),
            mask=st.sampled_from(MASKS[kind]),
            mask_dtype=st.just(mask_dtype),
            scale=st.sampled_from((None, 0.3, -0.2)),
        ),
        st.integers(0, 2**31),
    )
    def combinations(case: Case, values: int) -> None:
        torch.manual_seed(values)
        check(case, dtype)

    combinations()
