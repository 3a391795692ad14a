"""Plans: within Metal's limits for every problem, the same for the same problem, and refused with a reason."""

from __future__ import annotations

import pytest
import torch

from mps_flash_attn.errors import UnsupportedError
from mps_flash_attn.launch import Capabilities, Launch
from mps_flash_attn.ops.attention import plan

METAL = Capabilities()


def problem(**changes: object) -> plan.Problem:
    values: dict[str, object] = {
        "dtype": torch.float16,
        "batch": 2,
        "query_heads": 4,
        "key_heads": 2,
        "queries": 100,
        "keys": 130,
        "head_size": 64,
        "value_head_size": 64,
        "scale": 0.125,
        "causal_offset": None,
        "mask": None,
        "layouts": (plan.Layout((4 * 100 * 64, 100 * 64, 64), aligned=True),) * 8,
    }
    return plan.Problem(**{**values, **changes})  # type: ignore[arg-type]


def launches(which: plan.Problem, capabilities: Capabilities = METAL) -> tuple[Launch, ...]:
    return (plan.forward(which, capabilities), *plan.backward(which, capabilities, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_head_size_fits_metal(dtype: torch.dtype) -> None:
    for head_size in range(1, plan.MAX_HEAD_SIZE + 1):
        for launch in launches(problem(dtype=dtype, head_size=head_size)):
            assert launch.threadgroup_bytes <= METAL.threadgroup_bytes
            assert launch.group_size[0] <= METAL.max_threads
            assert len(launch.words) * 8 <= 4096


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_size": 577}, r"head size 577 is not in 1\.\.576"),
        ({"value_head_size": 577}, r"head size 577 is not in 1\.\.576"),
        ({"head_size": 0}, r"head size 0 is not in 1\.\.576"),
        ({"dtype": torch.float64}, r"float64 has no kernel on this device"),
        ({"dtype": torch.int32}, r"int32 has no kernel on this device"),
        ({"keys": 2**31}, r"do not fit in 32 bits"),
    ],
)
def test_refused_with_a_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        launches(problem(**changes))


def test_new_lengths_compile_nothing() -> None:
    for causal_offset in (None, 0):
        texts = {
            tuple(x.text for x in launches(problem(queries=n, keys=m, scale=s, causal_offset=causal_offset)))
            for n, m, s in ((1, 1, 0.1), (64, 64, 0.2), (513, 2, 0.3), (4096, 100_000, 0.4))
        }
        assert len(texts) == 1


def test_threadgroup_memory_of_a_smaller_device_is_respected() -> None:
    small = Capabilities(threadgroup_bytes=16 * 1024)
    assert all(x.threadgroup_bytes <= 16 * 1024 for x in launches(problem(), small))
    wide = launches(problem(head_size=256, dtype=torch.float32), small)
    assert all(x.threadgroup_bytes == 0 for x in wide), "then nothing is staged"
