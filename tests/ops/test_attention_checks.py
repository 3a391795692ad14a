"""The attention kernels under the simulator's checks, and with each of their barriers taken away."""

from __future__ import annotations

import pytest
import torch

from mps_flash_attn.errors import KernelCheckError
from mps_flash_attn.ops.attention.cases import Case
from mps_flash_attn.ops.attention.problem import Causal
from mps_flash_attn.runtime import simulator
from tests.ops.attention import ours
from tests.ops.barriers import barriers, without_barrier

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def run(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    assert not any(x.isnan().any() for x in ours(inputs) if x is not None), "an element was never written"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(70, 50, 40, batch=1, query_heads=2, key_heads=1, causal=Causal.TOP_LEFT),
        Case(50, 70, 40, batch=1, causal=Causal.BOTTOM_RIGHT, layout="sliced", mask="boolean"),
        Case(33, 65, 40, batch=1, query_heads=2, key_heads=1, layout="transposed", mask="additive"),
        Case(20, 36, 288, batch=1, query_heads=1, key_heads=1, value_head_size=264),
    ],
    ids=lambda case: f"{case.queries}x{case.keys}x{case.head_size}-{case.layout}-{case.mask}",
)
def test_no_finding(case: Case, dtype: torch.dtype, seed: int) -> None:
    with simulator.check():
        run(case, dtype)


@pytest.mark.parametrize(("path", "number"), barriers("ops/attention/"))
def test_each_barrier_is_missed(path: str, number: int, seed: int) -> None:
    with pytest.raises(KernelCheckError), without_barrier(path, number), simulator.check():
        run(Case(130, 130, 64, batch=1, query_heads=1, key_heads=1, mask="additive-row"), torch.float32)
