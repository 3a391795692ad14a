"""The attention operators on tensors of the pretend ``mps`` device: every dtype, head size, layout, mask and length."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from mps_flash_attn.ops.attention.cases import HEAD_SIZES, LENGTHS, Case, Inputs
from mps_flash_attn.ops.attention.expected import NAMES, exact, pytorch
from mps_flash_attn.ops.attention.function import Causal, attention_backward, attention_forward
from tests.tolerance import assert_accurate

pytestmark = pytest.mark.usefixtures("device")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _on_cpu(inputs: Inputs) -> Inputs:
    tensors = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return replace(inputs, **{name: x.cpu() for name, x in tensors.items() if isinstance(x, Tensor)})


def _ours(inputs: Inputs) -> tuple[Tensor, ...]:
    arguments = (inputs.query, inputs.key, inputs.value, inputs.attn_mask)
    out, lse = attention_forward(*arguments, inputs.scale, int(inputs.causal))
    gradients = attention_backward(
        inputs.grad_out, inputs.grad_lse, *arguments, out, lse, inputs.scale, int(inputs.causal)
    )
    return out, lse, *gradients


def _check(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype, "mps")
    on_cpu = _on_cpu(inputs)
    results = _ours(inputs)
    for name, actual, baseline, expected in zip(NAMES, results, pytorch(on_cpu), exact(on_cpu), strict=True):
        assert actual.is_mps
        assert_accurate(f"{name} of {case} in {dtype}", actual.cpu(), baseline, expected)


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
