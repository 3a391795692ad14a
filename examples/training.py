"""What the examples share: a training loop with a progress bar, timings and memory, and the comparison of two runs."""

from __future__ import annotations

import argparse
import contextlib
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

__all__ = ["Comparison", "PeakMemory", "Run", "add_common_arguments", "conclude", "fit", "plot", "positive", "report"]

# Largest difference between two loss curves of the same training, in the loss's own unit. Two implementations round
# differently, and training amplifies rounding from step to step.
TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}
# Largest |difference| / |PyTorch's gradient| (2-norms over one parameter) on the first batch, before any update.
GRADIENT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def positive(text: str) -> int:
    """An argument's integer from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def add_common_arguments(parser: argparse.ArgumentParser, *, steps: int, out: str) -> None:
    """Adds ``--steps``, ``--seed``, ``--device`` and ``--out``, with these defaults."""
    parser.add_argument("--steps", type=positive, default=steps, help="updates per model (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")
    parser.add_argument(
        "--device",
        choices=("mps", "cpu"),
        default="mps" if torch.backends.mps.is_available() else "cpu",
        help="cpu is the simulator (default: mps if there is one)",
    )
    parser.add_argument("--out", type=Path, default=Path(out), help="the plot (default %(default)s)")


class PeakMemory:
    """The most memory in use since ``reset()``, in bytes.

    On ``mps`` what the driver holds for PyTorch, sampled by ``sample()``. Elsewhere the resident set of this
    process, from the kernel's own high-water mark where it can be reset (Linux).
    """

    def __init__(self, device: torch.device) -> None:
        self._on_mps = device.type == "mps"
        self._peak = 0

    def reset(self) -> None:
        self._peak = 0
        if self._on_mps:
            torch.mps.empty_cache()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def sample(self) -> int:
        if self._on_mps:
            now = torch.mps.driver_allocated_memory()
        else:
            try:
                status = Path("/proc/self/status").read_text()
                now = int(status.split("VmHWM:")[1].split()[0]) * 1024
            except OSError:
                unit = 1 if sys.platform == "darwin" else 1024
                now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        self._peak = max(self._peak, now)
        return self._peak


@dataclass
class Run:
    """What one training produced. Times are in seconds, memory in bytes.

    Attributes:
        name: whose kernels trained it.
        model: the trained model.
        results: what an example measures at the end, by name, ready to print.
    """

    name: str
    model: nn.Module
    losses: list[float] = field(default_factory=list)
    first_gradients: dict[str, Tensor] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    peak_memory: int = 0
    results: dict[str, str] = field(default_factory=dict)


def fit(
    run: Run,
    batches: Iterable[Any],
    steps: int,
    loss: Callable[[Any], Tensor],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    *,
    per_step: tuple[int, str],
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    autocast: contextlib.AbstractContextManager[Any] | None = None,
    clip: float = math.inf,
) -> None:
    """Trains ``run.model`` and fills in the run.

    Args:
        batches: yields ``steps`` batches, each of which goes to ``loss``.
        per_step: how many of what a batch has, for the rate: ``(1024, "tokens")``.
        clip: largest norm of the gradient.
    """
    memory = PeakMemory(device)
    memory.reset()
    autocast = autocast or contextlib.nullcontext()
    count, unit = per_step
    progress = tqdm(batches, run.name, steps, unit="step")
    for step, batch in enumerate(progress):
        start = time.perf_counter()
        with autocast:
            value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        if step == 0:
            run.first_gradients = {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}
        nn.utils.clip_grad_norm_(run.model.parameters(), clip)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        run.losses.append(value.item())  # waits for the device
        run.step_seconds.append(time.perf_counter() - start)
        run.peak_memory = memory.sample()
        progress.set_postfix_str(f"loss {run.losses[-1]:.3f}, {count / run.step_seconds[-1]:,.0f} {unit}/s")


@dataclass(frozen=True)
class Comparison:
    """How far two runs are apart. Every check is written so that NaN fails it."""

    loss_differences: list[float]
    gradient_error: float
    tolerance: float
    gradient_tolerance: float

    @classmethod
    def of(cls, ours: Run, theirs: Run, dtype: str) -> Comparison:
        differences = [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
        errors = [
            float((ours.first_gradients[name] - gradient).norm() / gradient.norm().clamp_min(1e-12))
            for name, gradient in theirs.first_gradients.items()
        ]
        worst = math.nan if any(math.isnan(error) for error in errors) else max(errors)
        return cls(differences, worst, TOLERANCE[dtype], GRADIENT_TOLERANCE[dtype])

    @property
    def largest(self) -> float:
        differences = self.loss_differences
        return math.nan if any(math.isnan(difference) for difference in differences) else max(differences)

    @property
    def agrees(self) -> bool:
        return self.largest <= self.tolerance and self.gradient_error <= self.gradient_tolerance


def plot(ours: Run, theirs: Run, comparison: Comparison, title: str, unit: str, file: Path) -> None:
    """Draws both loss curves, and their difference below."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 6.5), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    steps = range(1, len(ours.losses) + 1)
    above.plot(steps, ours.losses, color="#8ecae6", linewidth=5, solid_capstyle="round", label=ours.name)
    above.plot(steps, theirs.losses, color="#023047", linewidth=1.2, linestyle=(0, (4, 2)), label=theirs.name)
    above.set(title=title, ylabel=f"training loss ({unit})")
    above.legend(frameon=False)
    # Equal losses have no logarithm: those steps stay without a point.
    different = [(step, d) for step, d in zip(steps, comparison.loss_differences, strict=True) if d > 0]
    below.plot(
        [step for step, _ in different],
        [difference for _, difference in different],
        ".",
        color="#fb8500",
        label="|difference| (no point: equal)",
    )
    below.set_yscale("log")
    below.axhline(comparison.tolerance, color="#9b2226", linewidth=1, label=f"tolerance {comparison.tolerance:g}")
    below.set(xlabel="step", ylabel="difference of the losses", xlim=(0, len(steps) + 1))
    below.set_ylim(top=10 * max([comparison.tolerance, *(difference for _, difference in different)]))
    below.legend(frameon=False, loc="upper right", ncols=2)
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def report(console: Console, ours: Run, theirs: Run, per_step: tuple[int, str]) -> None:
    """Prints time, memory, losses and results of both runs side by side."""
    table = Table(title="Two trainings, one seed, the same batches", title_justify="left")
    table.add_column("")
    for run in (ours, theirs):
        table.add_column(run.name, justify="right")
    count, unit = per_step
    rows: Sequence[tuple[str, Callable[[Run], str]]] = (
        ("time, all steps", lambda run: f"{sum(run.step_seconds):.1f} s"),
        ("first step (compiles the kernels)", lambda run: f"{run.step_seconds[0]:.2f} s"),
        ("median step", lambda run: f"{1e3 * statistics.median(run.step_seconds):.0f} ms"),
        (f"{unit} per second", lambda run: f"{count / statistics.median(run.step_seconds):,.0f}"),
        ("peak memory of the process", lambda run: f"{run.peak_memory / 2**20:,.0f} MiB"),
        ("first training loss", lambda run: f"{run.losses[0]:.4f}"),
        ("last training loss", lambda run: f"{run.losses[-1]:.4f}"),
        *((name, lambda run, name=name: run.results[name]) for name in ours.results),
    )
    for label, cell in rows:
        table.add_row(label, cell(ours), cell(theirs))
    console.print(table)


def conclude(console: Console, comparison: Comparison, success: str, failures: Sequence[str] = ()) -> int:
    """Prints how far the runs are apart and the verdict; returns the exit code.

    Args:
        success: what is said, beside that both trainings agree, when nothing failed.
        failures: of the example's own checks.
    """
    console.print(
        f"Loss curves differ by at most {comparison.largest:.2e} (tolerance {comparison.tolerance:g}), "
        f"{statistics.fmean(comparison.loss_differences):.2e} on average."
    )
    console.print(
        f"Gradients of the first batch differ by at most {comparison.gradient_error:.2e} relative "
        f"(tolerance {comparison.gradient_tolerance:g})."
    )
    found = [*failures, *([] if comparison.agrees else ["the two trainings disagree"])]
    for failure in found:
        console.print(f"[bold red]FAILED[/]: {failure}")
    if not found:
        console.print(f"[bold green]OK[/]: {success}, and both trainings agree.")
    return 1 if found else 0
