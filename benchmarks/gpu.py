"""Attention on an NVIDIA GPU beside PyTorch's own backends: forward and backward apart, by the device's events."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from attention import Problem
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import mps_flash_attn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["measure", "median_ms", "plot"]

_Attention = Callable[[Tensor, Tensor, Tensor, bool], Tensor]

_WARM_UPS = 2
#: A measurement of less than this is one of several calls.
_SHORTEST_MS = 2.0
#: No more measurements than fit in this, but for the first three.
_LONGEST_MS = 400.0


def _pytorch(backend: SDPBackend) -> _Attention:
    def attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)

    return attention


def _ours(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    return mps_flash_attn.flash_attention(query, key, value, is_causal=is_causal)


IMPLEMENTATIONS: Mapping[str, _Attention] = {
    "ours": _ours,
    "FLASH": _pytorch(SDPBackend.FLASH_ATTENTION),
    "CUDNN": _pytorch(SDPBackend.CUDNN_ATTENTION),
    "EFFICIENT": _pytorch(SDPBackend.EFFICIENT_ATTENTION),
    "MATH": _pytorch(SDPBackend.MATH),
}


def _elapsed_ms(call: Callable[[], object], calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def median_ms(call: Callable[[], object], repeat: int) -> float:
    """The median of at most ``repeat`` measurements, after warm-ups with the same call."""
    for _ in range(_WARM_UPS):
        call()
    calls = max(1, round(_SHORTEST_MS / _elapsed_ms(call, 1)))
    times: list[float] = []
    while len(times) < 3 or (len(times) < repeat and sum(times) * calls < _LONGEST_MS):
        times.append(_elapsed_ms(call, calls))
    return statistics.median(times)


def _peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that tensors took at once during a call, beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _measure_one(problem: Problem, attention: _Attention, repeat: int) -> dict[str, Any]:
    """Times and memory of one implementation; ``None`` where it does not take the problem."""
    inputs = problem.inputs()
    flops = 4 * problem.batch * problem.heads * problem.length**2 * problem.head_dim / (2 if problem.causal else 1)
    record: dict[str, Any] = dict.fromkeys(
        ("forward_ms", "forward_tflops", "backward_ms", "backward_tflops", "peak_mib"), None
    )
    try:
        with torch.no_grad():
            record["forward_ms"] = median_ms(lambda: attention(*inputs, problem.causal), repeat)
        record["forward_tflops"] = flops / record["forward_ms"] / 1e9
        if problem.backward:
            output = attention(*inputs, problem.causal)
            gradient = torch.randn_like(output)
            backward = lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True)
            record["backward_ms"] = median_ms(backward, repeat)
            record["backward_tflops"] = 2.5 * flops / record["backward_ms"] / 1e9
            del output, gradient, backward
            record["peak_mib"] = _peak_bytes(lambda: problem.call(attention, inputs)) / 2**20
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
    return record


def measure(problems: Sequence[Problem], repeat: int) -> list[dict[str, Any]]:
    """One record a problem and implementation, in this order: milliseconds, TFLOP/s, and times ours is as fast.

    Arithmetic is counted as papers do: 4 B H N^2 D for the forward pass, 2.5 times that for the backward pass, half of
    both where causal. ``peak_mib`` is the memory of a forward and backward pass together, beyond the inputs.
    """
    records: list[dict[str, Any]] = []
    for problem in tqdm(problems, unit="problem", leave=False):
        results = {name: _measure_one(problem, attention, repeat) for name, attention in IMPLEMENTATIONS.items()}
        for name, result in results.items():
            ratios = {
                f"ours_is_faster_{way}": result[f"{way}_ms"] / results["ours"][f"{way}_ms"]
                if result[f"{way}_ms"] and results["ours"][f"{way}_ms"]
                else None
                for way in ("forward", "backward")
            }
            records.append(
                {
                    "length": problem.length,
                    "head_dim": problem.head_dim,
                    "batch": problem.batch,
                    "heads": problem.heads,
                    "implementation": name,
                    **result,
                    **ratios,
                }
            )
    return records


def plot(lines: Path, file: Path) -> None:
    """Draws TFLOP/s against the length from JSON lines of `measure`: a row a dtype and pass, a column a D."""
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    rows = [
        (dtype, way)
        for dtype in sorted({r["dtype"] for r in records}, key=lambda dtype: (dtype == "float32", dtype))
        for way in ("forward", "backward")
    ]
    columns = sorted({(r["head_dim"], r["causal"]) for r in records})
    figure, grid = plt.subplots(
        len(rows), len(columns), figsize=(3 * len(columns), 2.4 * len(rows)), layout="constrained", squeeze=False
    )
    for (dtype, way), line in zip(rows, grid, strict=True):
        for (head_dim, causal), axes in zip(columns, line, strict=True):
            own = [r for r in records if (r["dtype"], r["head_dim"], r["causal"]) == (dtype, head_dim, causal)]
            axes.set_visible(bool(own))
            _draw(axes, own, f"{way}_tflops")
            axes.set_title(f"{way}, {dtype}, D {head_dim}{', causal' if causal else ''}", fontsize=9)
        line[0].set_ylabel("TFLOP/s")
    for axes in grid[-1]:
        axes.set_xlabel("sequence length N")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90)
    plt.close(figure)


_COLOURS = {"ours": "#fb8500", "FLASH": "#023047", "CUDNN": "#219ebc", "EFFICIENT": "#8ecae6", "MATH": "#adb5bd"}


def _draw(axes: Any, records: Sequence[Mapping[str, Any]], figure: str) -> None:
    """One panel: a line for each implementation."""
    for name, colour in _COLOURS.items():
        points = sorted((r["length"], r[figure]) for r in records if r["implementation"] == name and r[figure])
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
