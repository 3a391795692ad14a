"""What attention kernels do, counted by the simulator: ours beside the Metal kernel that PyTorch ships."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attention import IMPLEMENTATIONS, Problem
from baselines import PREFILL_HEAD_SIZES, pytorch_prefill
from torch import Tensor
from tqdm import tqdm

from mps_flash_attn.runtime import simulator

__all__ = ["measure"]

SUMMED = {
    "matrix_products": ("matrix_products",),
    "exponentials": ("exponentials",),
    "threadgroup_barriers": ("threadgroup_barriers",),
    "simdgroup_barriers": ("simdgroup_barriers",),
    "device_bytes": ("device_bytes_read", "device_bytes_written"),
    "threadgroup_bytes": ("threadgroup_bytes_read", "threadgroup_bytes_written"),
}


def _pytorch_metal(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    return pytorch_prefill(query, key, value, is_causal=is_causal)


def _totals(profile: simulator.Profile) -> dict[str, int]:
    return {name: sum(getattr(profile.total, part) for part in parts) for name, parts in SUMMED.items()}


def measure(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Records of whole calls, all launches added up: ours, PyTorch's Metal kernel, and ours divided by PyTorch's.

    Matrix products are 8 x 8 x 8, a simdgroup each; exponentials and bytes are of single lanes. PyTorch's kernel has no
    backward pass and seven head sizes; beyond those there are records of ours alone.
    """
    records: list[dict[str, Any]] = []
    for problem in tqdm(problems, unit="problem", leave=False):
        inputs = problem.inputs()
        sizes = {"length": problem.length, "head_dim": problem.head_dim}
        with simulator.profile() as ours:
            problem.call(IMPLEMENTATIONS["ours"], inputs)
        records.append({**sizes, "implementation": "ours", **_totals(ours)})
        if problem.backward or problem.head_dim not in PREFILL_HEAD_SIZES or problem.dtype == "float64":
            continue
        with simulator.profile() as theirs:
            problem.call(_pytorch_metal, inputs)
        records.append({**sizes, "implementation": "PyTorch Metal", **_totals(theirs)})
        pairs = ((name, records[-2][name], records[-1][name]) for name in SUMMED)
        ratios = {name: a / b if b else (1.0 if a == b else float("inf")) for name, a, b in pairs}
        records.append({**sizes, "implementation": "ours / PyTorch", **ratios})
    return records
