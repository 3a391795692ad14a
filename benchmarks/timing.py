"""Medians of wall-clock time, implementations interleaved so that all see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attention import IMPLEMENTATIONS, Problem
from tqdm import tqdm

__all__ = ["measure", "milliseconds"]

#: A measurement on a GPU is of as many calls as take about this long.
_MEASURED_SECONDS = 5e-3
_MOST_CALLS = 100


def _synchronize(device: str) -> None:
    if device == "mps":
        torch.mps.synchronize()


def milliseconds(call: Callable[[], object], repeat: int, device: str) -> float:
    """The median of ``repeat`` measurements after a warm-up; on a GPU each is of several calls, waited for once."""

    def sample(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if device != "cpu":
            torch.accelerator.synchronize()
        return (time.perf_counter() - start) / calls

    sample(1)
    sample(1)
    calls = 1 if device == "cpu" else max(1, min(_MOST_CALLS, round(_MEASURED_SECONDS / sample(1))))
    return 1e3 * statistics.median(sample(calls) for _ in range(repeat))


def measure(problems: Sequence[Problem], repeat: int) -> list[dict[str, Any]]:
    """One record a problem and implementation: median and fastest of ``repeat`` calls, in milliseconds.

    Each implementation first makes the very same call once, which compiles what has to be compiled.
    """
    records: list[dict[str, Any]] = []
    progress = tqdm(total=len(problems) * (repeat + 1), unit="round", leave=False)
    for problem in problems:
        inputs = problem.inputs()
        seconds: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
        for _ in range(repeat + 1):
            for name, attention in IMPLEMENTATIONS.items():
                _synchronize(problem.device)
                start = time.perf_counter()
                problem.call(attention, inputs)
                _synchronize(problem.device)
                seconds[name].append(time.perf_counter() - start)
            progress.update()
        medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
        records += [
            {
                "length": problem.length,
                "head_dim": problem.head_dim,
                "implementation": name,
                "median_ms": 1e3 * medians[name],
                "fastest_ms": 1e3 * min(seconds[name][1:]),
                "times_pytorch": medians[name] / medians["PyTorch"],
            }
            for name in IMPLEMENTATIONS
        ]
    progress.close()
    return records
