"""The doctor's report in words and columns."""

from __future__ import annotations

import textwrap
from collections import Counter

from .doctor import CheckResult, Report, Verdict

__all__ = ["header", "line", "summary"]

_COLUMNS = "{:<6}  {:<10} {:<24}  {:<8}  {:<48}  {:>8}  {:>8}  {:>10}  {:>9}"

#: Over what `line` returns.
_TITLES = _COLUMNS.format("", "runtime", "kernel", "dtype", "problem", "error", "bound", "prepare ms", "launch ms")


def header(report: Report) -> str:
    """What was found, and the titles over the checks where there will be any."""
    facts = dict(report.environment)
    facts["compiler"] = report.compiler
    for cache in report.caches:
        size = f"{cache.files} files, {cache.bytes / 2**20:.1f} MiB"
        facts[f"cache {cache.name}"] = f"{cache.folder} ({size}{f'; {cache.problem}' if cache.problem else ''})"
    for state in report.runtimes:
        usable = "usable" if state.unavailable is None else f"not usable: {state.unavailable}"
        chosen = f", serves {state.device} tensors" if state.serves else ""
        facts[f"runtime {state.name}"] = usable + chosen
    width = max(map(len, facts))
    lines = [f"{name:{width}}  {value}" for name, value in facts.items()]
    if any(state.unavailable is None for state in report.runtimes):
        lines += ["", _TITLES]
    return "\n".join(lines)


def line(check: CheckResult) -> str:
    """One check, in columns."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return _COLUMNS.format(
        "ok" if check.passed else "FAILED",
        check.runtime,
        check.kernel,
        check.dtype,
        check.problem,
        number(check.error, ".1e"),
        number(check.bound, ".1e"),
        number(check.prepare_ms, ".1f"),
        number(check.launch_ms, ".2f"),
    )


def summary(report: Report) -> str:
    """What was not tested, what went wrong, and the verdict."""
    parts = []
    failures = Counter(check.failure for check in report.checks if check.failure is not None)
    if failures:
        parts += ["Failures:", *(_indented(f"{count} x {text}") for text, count in failures.items()), ""]
    if report.untested:
        parts += ["Not tested:", *map(_indented, report.untested), ""]
    return "\n".join([*parts, _verdict(report)])


def _indented(text: str) -> str:
    return textwrap.indent(text, "  ")


def _verdict(report: Report) -> str:
    if report.verdict is Verdict.NOTHING_CHECKED:
        return "NOTHING CHECKED: no runtime can be used on this machine; the reasons are above."
    names = ", ".join(dict.fromkeys(check.runtime for check in report.checks))
    if report.verdict is Verdict.FAILED:
        failed = sum(not check.passed for check in report.checks)
        return f"FAILED: {failed} of {len(report.checks)} checks, runtimes: {names}."
    return f"OK: {len(report.checks)} checks passed, runtimes: {names}."
