"""The attention operators on tensors of the pretend ``mps`` device: every dtype, head size, layout, mask and length."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from mps_flash_attn.ops.attention.cases import HEAD_SIZES, LENGTHS, Case, Inputs
from mps_flash_attn.ops.attention.problem import Causal
from tests.ops.attention import assert_as_expected, ours

pytestmark = pytest.mark.usefixtures("device")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _on_cpu(inputs: Inputs) -> Inputs:
    tensors = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return replace(inputs, **{name: x.cpu() for name, x in tensors.items() if isinstance(x, Tensor)})


def _check(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype, "mps")
    results = ours(inputs)
    assert all(x is None or x.is_mps for x in results)
    assert_as_expected(_on_cpu(inputs), tuple(x if x is None else x.cpu() for x in results), f" of {case} in {dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_head_sizes(seed: int, head_size: int, dtype: torch.dtype) -> None:
    _check(Case(77, 64, head_size, causal=Causal.TOP_LEFT), dtype)


@pytest.mark.parametrize(("queries", "keys"), [*itertools.pairwise(LENGTHS), (513, 77)])
def test_lengths(seed: int, queries: int, keys: int) -> None:
    _check(Case(queries, keys, 64, batch=1, causal=Causal.BOTTOM_RIGHT), torch.float32)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(seed: int, layout: str, dtype: torch.dtype) -> None:
    _check(Case(64, 77, 40, query_heads=4, layout=layout), dtype)


@pytest.mark.parametrize("mask", ["boolean", "boolean-keys", "additive", "additive-head", "additive-column"])
@pytest.mark.parametrize("causal", [Causal.NONE, Causal.TOP_LEFT])
def test_masks(seed: int, mask: str, causal: Causal) -> None:
    _check(Case(31, 64, 32, mask=mask, mask_dtype=torch.float16, causal=causal), torch.float16)
