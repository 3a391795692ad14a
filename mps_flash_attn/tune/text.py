"""The search's progress, and what it found, in words and columns."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .tuner import MILLISECONDS, MODEL_CYCLES, Outcome, Result, Subject, Trial, candidates

__all__ = ["Progress", "header", "table"]

#: What costs in a unit are.
_UNITS = {
    MILLISECONDS: "milliseconds of a launch, medians.",
    MODEL_CYCLES: "cycles of a GPU core in a model of an Apple GPU, made from counted work. They are no measurement.",
}

_COLUMNS = "{:<24}  {:<40}  {:<8}  {:>10}  {:>10}  {:>6}  {:>7}  {}"


def header(device: str, kernels: int, stored: Path | None) -> str:
    """What is about to be done; ``stored`` is the file for the results, if any."""
    return f"tuning {kernels} kernels and classes of problems on: {device}\n" + (
        f"results go to {stored}" if stored else "results are not stored"
    )


class Progress:
    """A progress bar over tilings where tqdm is installed, and a line for each subject where it is not."""

    def __init__(self, subjects: Sequence[Subject], limit: int | None) -> None:
        self._limit = limit
        self._bar: Any = None
        total = sum(min(len(candidates(subject)), limit or sys.maxsize) for subject in subjects)
        self._subject: Subject | None = None
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="tiling", file=sys.stderr, dynamic_ncols=True, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def tried(self, subject: Subject, trial: Trial) -> None:
        """Tells of a trial that has ended."""
        if self._bar is None and subject is not self._subject:
            print(subject.name, file=sys.stderr, flush=True)
        elif self._bar is not None:
            self._bar.set_description(subject.name, refresh=False)
            self._bar.update(self._limit is None or trial.outcome is not Outcome.CANNOT_RUN)
        self._subject = subject


def table(results: Sequence[Result]) -> str:
    """A line for each result, why tilings were dropped, and what the costs are."""
    lines = [
        "",
        _COLUMNS.format("kernel", "class", "dtype", "default", "best", "gain", "ran", "best tiling"),
    ]
    lines += [_line(result) for result in results]
    reasons = Counter(
        (trial.outcome, _general(trial.reason))
        for result in results
        for trial in result.trials
        if trial.outcome is not Outcome.RAN
    )
    if reasons:
        lines += ["", "Dropped:"]
        for (outcome, reason), count in reasons.most_common():
            lines.append(textwrap.indent(f"{count} x {outcome.value}: {reason}", "  "))
    return "\n".join([*lines, "", f"Default and best are {_UNITS[results[0].unit]}"])


def _line(result: Result) -> str:
    subject, best, default = result.subject, result.best, result.default
    ran = sum(trial.outcome is Outcome.RAN for trial in result.trials)
    counts = f"{ran}/{len(result.trials)}"
    known = default.outcome is Outcome.RAN
    cells = [f"{default.cost:,.5g}" if known else "-", "-", "-", counts, f"NONE WAS RIGHT: {_general(default.reason)}"]
    if best is not None:
        gain = f"{default.cost / best.cost:.2f}x" if known else "-"
        words = "the default" if best.tiling == subject.default else _words(best.tiling)
        cells[1:3], cells[4] = [f"{best.cost:,.5g}", gain], words
    return _COLUMNS.format(subject.kernel, subject.shape_class, subject.dtype_name, *cells)


def _words(tiling: Any) -> str:
    """A tiling in a few words: its numbers by name, and the names of what is true."""
    values = dataclasses.asdict(tiling).items()
    return ", ".join(name if value is True else f"{name} {value}" for name, value in values if value is not False)


def _general(reason: str) -> str:
    """The first line of a reason: a compiler's has many."""
    return reason.splitlines()[0] if reason else ""
