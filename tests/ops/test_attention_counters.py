"""The counters show what the plan promised: tiles skipped, bytes moved."""

from __future__ import annotations

import pytest
import torch

from mps_flash_attn.ops.attention import function, plan
from mps_flash_attn.ops.attention.cases import Case
from mps_flash_attn.ops.attention.problem import Causal, describe
from mps_flash_attn.runtime import simulator
from tests.ops.attention import ours


def profile(case: Case, dtype: torch.dtype) -> tuple[simulator.Profile, plan.Problem]:
    inputs = case.inputs(dtype)
    arguments = (inputs.query, inputs.key, inputs.value, inputs.attn_mask)
    with simulator.profile() as counts:
        out, _, dq, dk, dv, *_ = ours(inputs)
    options = inputs.modifiers.options(inputs.query, inputs.key, inputs.value, inputs.scale, int(inputs.causal))
    outputs = {"out": out, "grad_out": inputs.grad_out, "dq": dq, "dk": dk, "dv": dv}
    return counts, describe(*arguments, options, **outputs)


def test_causal_skips_nearly_half_the_products(seed: int) -> None:
    products = []
    for causal in (Causal.NONE, Causal.TOP_LEFT):
        inputs = Case(1024, 1024, 64, batch=1, query_heads=1, key_heads=1, causal=causal).inputs(torch.float16)
        with simulator.profile() as counts:
            function.attention_forward(inputs.query, inputs.key, inputs.value, None, inputs.scale, int(causal))
        products.append(counts.total.matrix_products)
    assert products[0] == 2 * (1024 // 8) ** 2 * (64 // 8)
    assert products[1] <= 0.56 * products[0]


@pytest.mark.parametrize(
    "case",
    [
        Case(128, 96, 64, batch=1, query_heads=2, key_heads=1),
        Case(150, 150, 128, batch=1, query_heads=1, key_heads=1, causal=Causal.TOP_LEFT),
        Case(100, 130, 40, batch=2, causal=Causal.BOTTOM_RIGHT, mask="boolean"),
        Case(90, 40, 17, batch=1, mask="additive"),
        Case(300, 333, 64, batch=1, query_heads=2, key_heads=1, window=(40, 20), mask="additive-row"),
        Case(64, 64, 256, batch=1, query_heads=1, key_heads=1),
        Case(70, 64, 320, batch=1, query_heads=1, key_heads=1, value_head_size=40),
    ],
    ids=lambda case: f"{case.queries}x{case.keys}x{case.head_size}-{case.mask}",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_device_bytes_are_those_the_plan_predicts(case: Case, dtype: torch.dtype, seed: int) -> None:
    counts, problem = profile(case, dtype)
    capabilities = simulator.CAPABILITIES
    with_mask = case.mask.startswith("additive")
    launches = (plan.forward(problem, capabilities), *plan.backward(problem, capabilities, True, with_mask))
    assert [x.kernel for x in counts.launches] == [x.kernel for x in launches]
    for record, launch in zip(counts.launches, launches, strict=True):
        predicted = plan.predicted_traffic(launch, problem)
        for counted, expected in (
            (record.counters.device_bytes_read, predicted.read),
            (record.counters.device_bytes_written, predicted.written),
        ):
            assert abs(counted - expected) <= 0.1 * expected, f"{launch.kernel}: {counted} bytes, predicted {expected}"


def test_counts_are_the_same_on_every_run(seed: int) -> None:
    case = Case(90, 90, 64, causal=Causal.TOP_LEFT)
    first, second = (profile(case, torch.float16)[0] for _ in range(2))
    assert [x.counters for x in first.launches] == [x.counters for x in second.launches]
