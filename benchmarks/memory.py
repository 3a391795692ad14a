"""Peak extra memory of one attention call against the sequence length, each point in a process of its own."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from attention import IMPLEMENTATIONS, Attention, Problem
from matplotlib.figure import Figure
from tqdm import tqdm
from variants import VARIANTS, Variant

from mps_flash_attn import launch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["measure", "plot", "plot_variants", "tensor_bytes"]

WARM_UP_LENGTH = 64  # compiles kernels and starts threads without touching memory that the real call would need


def _peak_tensor_bytes(call: Callable[[], object]) -> int:
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


def _peak_resident_bytes(call: Callable[[], object]) -> int | None:
    """How far the resident set of this process rose during ``call``; none where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = _resident_bytes("VmRSS")
    except OSError:
        return None
    call()
    return _resident_bytes("VmHWM") - before


def tensor_bytes(variant: Variant, problem: Problem) -> int:
    """The most bytes of tensors beyond its inputs that a variant's call holds, by PyTorch's CPU allocator.

    Launches return before their kernels run, which allocate nothing.
    """
    with launch.dry_run():
        variant.prepare(dataclasses.replace(problem, length=WARM_UP_LENGTH))()
        return _peak_tensor_bytes(variant.prepare(problem))


def _measure_point(problem: Problem, name: str) -> dict[str, Any]:
    point: dict[str, Any] = {"length": problem.length, "head_dim": problem.head_dim}
    if name in VARIANTS:
        point |= {"implementation": "ours", "variant": name}
        if problem.device == "cpu":
            return {**point, "tensor_bytes": tensor_bytes(VARIANTS[name], problem), "resident_bytes": None}
        prepare = VARIANTS[name].prepare
    else:
        point |= {"implementation": name, "variant": "causal" if problem.causal else "plain"}
        prepare = functools.partial(_prepare, IMPLEMENTATIONS[name])
    prepare(dataclasses.replace(problem, length=WARM_UP_LENGTH))()
    call = prepare(problem)
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
    return {**point, "tensor_bytes": tensors, "resident_bytes": resident}


def _prepare(attention: Attention, problem: Problem) -> Callable[[], object]:
    inputs = problem.inputs()
    return lambda: problem.call(attention, inputs)


def measure(problems: Sequence[Problem], variants: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One record a problem and implementation, or one a problem and variant of ours, where variants are named.

    Bytes are those beyond inputs: outputs, gradients and scratch. ``tensor_bytes`` is what the call needs on a GPU.
    ``resident_bytes`` (CPU on Linux, without variants) adds what tensors do not show, such as the simulator's stacks;
    freed pages that the allocator reuses can hide in it.
    """
    points = [(problem, name) for name in variants or IMPLEMENTATIONS for problem in problems]
    # A server that has imported what takes long, and computed nothing, forks a process for each point.
    context = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")
    context.set_forkserver_preload(["torch", "matplotlib.pyplot", "mps_flash_attn"])
    records = []
    for problem, name in tqdm(points, unit="point", leave=False):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as process:
            records.append(process.submit(_measure_point, problem, name).result())
    return records


def plot_variants(records: Sequence[dict[str, Any]], title: str, file: Path) -> None:
    """Draws a panel for each variant: peak extra memory against length, beside lines of linear and quadratic growth."""
    names = list(dict.fromkeys(record["variant"] for record in records))
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.8 * columns, 2.1 * rows + 0.6), layout="constrained", sharex=True, sharey="row",
        squeeze=False,
    )  # fmt: skip
    ticks = sorted({record["length"] for record in records})
    for axes, name in zip(grid.flat, names, strict=False):
        points = sorted((r["length"], r["tensor_bytes"] / 2**20) for r in records if r["variant"] == name)
        (first, least), (last, most) = points[0], points[-1]
        line, square = ([least * (length / first) ** power for length in ticks] for power in (1, 2))
        axes.plot(ticks, square, color="#868e96", linestyle="dotted", label="if it grew with N²")
        axes.plot(ticks, line, color="#8ecae6", linewidth=4, label="if it grew with N")
        axes.plot(*zip(*points, strict=True), color="#fb8500", marker="o", markersize=4, label="measured")
        axes.set_title(name, fontsize=10)
        label = f"{most:,.3g} MiB" if most > 0.1 else f"{1024 * most:,.3g} KiB"
        axes.annotate(label, (last, most), (5, -20), textcoords="offset points", ha="right", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    grid[0, 0].set_xscale("log", base=2)
    for row in grid:
        row[0].set_yscale("log")
        row[0].minorticks_off()
    grid[0, 0].set_xticks(ticks, [f"{length:,}" for length in ticks], rotation=45, fontsize=8)
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.supxlabel("sequence length N")
    figure.supylabel("peak extra memory (MiB)")
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


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
    _save(figure, file)
