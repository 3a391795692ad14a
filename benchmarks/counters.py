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
    """One record a problem and count, of whole calls: ours, that of PyTorch's Metal kernel, and their ratio.

    Matrix products are 8 x 8 x 8, a simdgroup each; exponentials and bytes are of single lanes. PyTorch's kernel has no
    backward pass, no float64 and seven head sizes; elsewhere its column is empty.
    """
    records: list[dict[str, Any]] = []
    for problem in tqdm(problems, unit="problem", leave=False):
        inputs = problem.inputs()
        with simulator.profile() as profile:
            problem.call(IMPLEMENTATIONS["ours"], inputs)
        ours = _totals(profile)
        theirs: dict[str, int] = {}
        if problem.head_dim in PREFILL_HEAD_SIZES and problem.dtype != "float64" and not problem.backward:
            with simulator.profile() as profile:
                problem.call(_pytorch_metal, inputs)
            theirs = _totals(profile)
        records += [
            {
                "length": problem.length,
                "head_dim": problem.head_dim,
                "count": name.replace("_", " "),
                "ours": ours[name],
                "pytorch_metal": theirs.get(name),
                "ratio": ours[name] / theirs[name] if theirs.get(name) else None,
            }
            for name in SUMMED
        ]
    return records
