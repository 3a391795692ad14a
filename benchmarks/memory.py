"""Peak extra memory of one attention call against the sequence length, each point in a process of its own."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from attention import IMPLEMENTATIONS, Problem
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["measure", "plot"]

WARM_UP_LENGTH = 64  # compiles kernels and starts threads without touching memory that the real call would need


def _peak_tensor_bytes(call: Callable[[], None]) -> int:
    """The most bytes that tensors created during ``call`` held at once, after PyTorch's CPU allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def _resident_bytes(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def _peak_resident_bytes(call: Callable[[], None]) -> int | None:
    """How far the resident set of this process rose during ``call``; none where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = _resident_bytes("VmRSS")
    except OSError:
        return None
    call()
    return _resident_bytes("VmHWM") - before


def _measure_point(problem: Problem, name: str) -> dict[str, Any]:
    attention = IMPLEMENTATIONS[name]
    warm_up = dataclasses.replace(problem, length=WARM_UP_LENGTH)
    warm_up.call(attention, warm_up.inputs())
    inputs = problem.inputs()

    def call() -> None:
        problem.call(attention, inputs)

    resident: int | None = None
    if problem.device == "mps":
        torch.mps.synchronize()
        torch.mps.empty_cache()
        before = torch.mps.driver_allocated_memory()
        call()
        torch.mps.synchronize()
        tensors = torch.mps.driver_allocated_memory() - before  # the driver keeps what was freed until it is emptied
    else:
        resident = _peak_resident_bytes(call)
        tensors = _peak_tensor_bytes(call)
    return {
        "length": problem.length,
        "head_dim": problem.head_dim,
        "implementation": name,
        "tensor_bytes": tensors,
        "resident_bytes": resident,
    }


def measure(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """One record a problem and implementation. Bytes beyond inputs: outputs, gradients and scratch.

    ``tensor_bytes`` is what the call needs on a GPU. ``resident_bytes`` (CPU on Linux) adds what tensors do not show,
    such as the simulator's stacks; freed pages that the allocator reuses can hide in it.
    """
    points = [(problem, name) for problem in problems for name in IMPLEMENTATIONS]
    # A server that has imported what takes long, and computed nothing, forks a process for each point.
    context = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")
    context.set_forkserver_preload(["torch", "matplotlib.pyplot", "mps_flash_attn"])
    records = []
    for problem, name in tqdm(points, unit="point", leave=False):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as process:
            records.append(process.submit(_measure_point, problem, name).result())
    return records


def plot(records: Sequence[dict[str, Any]], title: str, file: Path) -> None:
    """Draws peak extra memory against length, both logarithmic, one line an implementation."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    styles = {"ours": ("#fb8500", "o"), "PyTorch": ("#023047", "s"), "naive": ("#8ecae6", "^")}
    for name, (color, marker) in styles.items():
        points = sorted((r["length"], r["tensor_bytes"] / 2**20) for r in records if r["implementation"] == name)
        lengths, mebibytes = zip(*points, strict=True)
        axes.plot(lengths, mebibytes, color=color, marker=marker, label=name)
        axes.annotate(
            f"{mebibytes[-1]:,.3g} MiB", (lengths[-1], mebibytes[-1]), (8, 0), textcoords="offset points", va="center"
        )
    ticks = sorted({record["length"] for record in records})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{length:,}" for length in ticks])
    axes.set(title=title, xlabel="sequence length N", ylabel="peak extra memory (MiB)")
    axes.margins(x=0.15)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
