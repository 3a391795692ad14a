"""The attention kernels against float64: every head size, dtype, mask, layout and length that the package takes."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mps_flash_attn.ops.attention.cases import HEAD_SIZES, LENGTHS, Case, MaskName
from mps_flash_attn.ops.attention.problem import Causal
from tests.ops.attention import assert_as_expected, ours

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: Pairs of lengths in which each length is once a query's and once a key's, equal and not.
LENGTH_PAIRS = (*zip(LENGTHS, (*LENGTHS[3:], *LENGTHS[:3]), strict=True), (64, 64), (77, 77), (200, 200))


def check(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    assert_as_expected(inputs, ours(inputs), f" of {case} in {dtype}")


@pytest.mark.parametrize("causal", [Causal.NONE, Causal.TOP_LEFT])
@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_head_sizes_and_lengths(dtype: torch.dtype, head_size: int, causal: Causal, seed: int) -> None:
    layouts = itertools.cycle(("contiguous", "transposed"))
    heads = itertools.cycle(((2, 2), (4, 2), (3, 1)))
    alignments = itertools.cycle((causal, causal, Causal.BOTTOM_RIGHT if causal else causal))
    for queries, keys in LENGTH_PAIRS:
        query_heads, key_heads = next(heads)
        few = 0 < min(queries, keys) * head_size < 64  # numbers in a gradient: too few to measure it by their largest
        check(
            Case(
                queries,
                keys,
                head_size,
                batch=8 if few else 1,
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
    "additive": ("additive", "additive-head", "additive-column", "additive-row"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_combinations(kind: str, seed: int) -> None:
    """What else shapes a text, dtypes and the head size, is drawn once in a run, so that few are compiled."""
    generator = random.Random(seed)
    dtype = generator.choice((torch.float32, torch.bfloat16))
    mask_dtype = generator.choice((torch.float32, torch.float16))
    head_size = generator.choice((17, 40, 64))
    # A mask's gradient is measured by its largest value: not by one element that may be a sum of terms that cancel.
    lengths = st.integers(0, 150) if kind != "additive" else st.one_of(st.just(0), st.integers(20, 150))

    @settings(max_examples=40)
    @given(
        st.builds(
            Case,
            queries=lengths,
            keys=lengths,
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


MODIFIED = {
    "narrow-values": Case(77, 90, 192, batch=1, query_heads=4, key_heads=2, value_head_size=128, layout="transposed"),
    "wide-values": Case(77, 90, 17, value_head_size=264, causal=Causal.BOTTOM_RIGHT, mask="additive-row"),
    "latent": Case(20, 40, 576, batch=1, query_heads=4, key_heads=1, value_head_size=512, causal=Causal.BOTTOM_RIGHT),
    "window": Case(150, 150, 40, query_heads=4, window=(20, 9)),
    "window-causal": Case(77, 130, 40, causal=Causal.BOTTOM_RIGHT, window=(30, -1)),
    "window-right": Case(130, 77, 40, window=(-1, 3), bottom_right=True),
    "window-nothing-seen": Case(130, 40, 40, window=(5, 5)),
    "softcap": Case(77, 90, 40, softcap=2.0, causal=Causal.TOP_LEFT),
    "alibi": Case(77, 90, 40, query_heads=4, key_heads=2, alibi=True, bottom_right=True),
    "sinks": Case(77, 90, 40, query_heads=4, key_heads=2, sinks=True, mask="boolean-keys"),
    "sinks-no-keys": Case(7, 0, 40, sinks=True),
    "dropout": Case(77, 90, 40, query_heads=4, key_heads=2, dropout_p=0.3, causal=Causal.TOP_LEFT),
    "bias-per-key": Case(150, 90, 40, mask="additive-row", mask_dtype=torch.float16),
    "bias-per-query": Case(150, 90, 40, query_heads=4, key_heads=1, mask="additive-column"),
    "one-query": Case(
        1, 600, 40, batch=4, query_heads=8, key_heads=2, causal=Causal.BOTTOM_RIGHT, window=(400, -1), sinks=True
    ),
    "bias-and-all": Case(
        90,
        77,
        40,
        query_heads=4,
        key_heads=2,
        causal=Causal.TOP_LEFT,
        mask="additive",
        window=(50, -1),
        softcap=3.0,
        alibi=True,
        sinks=True,
        dropout_p=0.2,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODIFIED)
def test_modified_shapes_scores_and_weights(name: str, dtype: torch.dtype, seed: int) -> None:
    check(MODIFIED[name], dtype)


#: Each with lengths, heads and a layout of its own; texts do not depend on them but for the number of parts. Few
#: queries have many heads: the error of a gradient is measured by its largest value, not by a few that are all small.
REGIMES: dict[str, dict[str, Any]] = {
    "one query": {"queries": 1, "keys": 300, "batch": 4, "query_heads": 8, "key_heads": 2},
    "few queries": {"queries": 5, "keys": 290, "layout": "sliced"},
    "more queries than keys": {"queries": 140, "keys": 45, "query_heads": 3, "key_heads": 3},
    "blocks without a rest": {"queries": 128, "keys": 64, "query_heads": 4, "key_heads": 2, "layout": "transposed"},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name, case in MODIFIED.items() if case.head_size == 40 and case.keys > 0])
def test_every_variant_in_every_regime(name: str, dtype: torch.dtype, seed: int) -> None:
    """With the last query at the last key, so that few queries see more than the first few keys."""
    case = dataclasses.replace(MODIFIED[name], bottom_right=True)
    if case.causal:
        case = dataclasses.replace(case, causal=Causal.BOTTOM_RIGHT)
    for regime in REGIMES.values():
        check(dataclasses.replace(case, **regime), dtype)
