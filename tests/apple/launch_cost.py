"""What a launch through the runtime ``metal`` costs, from the Python call to the encoded dispatch.

Run it in the root that has the stand-in for Metal: ``tests/apple/in_root.sh python -m tests.apple.launch_cost``. The
stand-in checks every call as Metal's validation does but executes nothing, so its own share is in the figures too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mps_flash_attn import launch
from mps_flash_attn.ops.attention import plan
from mps_flash_attn.ops.attention.function import Causal, attention_forward, describe
from mps_flash_attn.ops.dtypes import accumulator_dtype
from mps_flash_attn.runtime import base

from . import mps
from .metal import native

__all__ = ["LAUNCH", "measure"]

LAUNCH = "a cached launch of the forward kernel"

_CALLS, _ROUNDS = 200, 15

_EMPTY = "kernel void nothing(device float* x) {}"


@torch.library.custom_op("mps_flash_attn_cost::empty", mutates_args=())
def _empty_operator(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float, causal: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)


def _microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(_CALLS):
        call()
    spent = 1e6 * (time.perf_counter() - start) / _CALLS
    torch.mps.synchronize()
    return spent


def measure() -> dict[str, float]:
    """Microseconds a call in the fastest of the rounds, in which the calls take turns: other work only adds."""
    mps.load_metal()
    os.environ[base.RUNTIME_VARIABLE] = "metal"
    runtime = base.for_device("mps")
    query, key, value = (torch.randn(1, 1, 16, 64, device="mps") for _ in range(3))
    out, lse = torch.empty_like(query), torch.empty(query.shape[:3], dtype=accumulator_dtype(query.dtype), device="mps")
    problem = describe(query, key, value, None, 0.125, Causal.NONE, out=out)
    planned = plan.forward(problem, runtime.CAPABILITIES)
    bound = launch.bind(planned, runtime)
    nothing = runtime.compile_shader(_EMPTY).nothing
    operator = torch.ops.mps_flash_attn_cost.empty
    tensors = query, key, value, query, out, lse
    calls: dict[str, Callable[[], object]] = {
        "empty custom operator, allocating out and lse": lambda: operator(query, key, value, None, 0.125, 0),
        "attention_forward, operator and launch": lambda: attention_forward(query, key, value, None, 0.125, 0),
        LAUNCH: lambda: bound(*tensors),
        "a launch of an empty kernel with one buffer": lambda: nothing(query, threads=1, group_size=1),
    }
    standin = native.load().standin
    standin.standin_set_execution(0)
    try:
        rounds = [[_microseconds(call) for call in calls.values()] for _ in range(_ROUNDS + 1)][1:]
    finally:
        standin.standin_set_execution(1)
    return dict(zip(calls, map(min, zip(*rounds, strict=True)), strict=True))


if __name__ == "__main__":
    for name, microseconds in measure().items():
        print(f"{microseconds:8.2f} us  {name}")
