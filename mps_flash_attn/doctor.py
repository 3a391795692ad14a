"""Examines this machine: what is there, and whether each kernel computes here what it has to, on each runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import importlib
import itertools
import math
import os
import pkgutil
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import folders, ops, patch_check
from ._version import __version__
from .launch import Capabilities
from .runtime import base
from .self_check import Measured, SelfCheck

__all__ = [
    "SCHEMA",
    "CacheState",
    "CheckResult",
    "Report",
    "RuntimeState",
    "Verdict",
    "examine",
    "operations",
]

#: Version of `Report.as_json`; grows when a field changes its meaning or goes.
SCHEMA = 1

#: Of the random inputs: the same everywhere, so that two machines' reports can be compared.
_SEED = 0


class Verdict(enum.IntEnum):
    """How an examination ended; the value is the exit code."""

    FINE = 0
    FAILED = 1
    NOTHING_CHECKED = 2


@dataclass(frozen=True)
class RuntimeState:
    """A runtime on this machine.

    Attributes:
        name: of the module in ``mps_flash_attn.runtime``.
        device: type of the tensors that it serves.
        serves: whether the package chooses it for that device.
        unavailable: why it cannot be used, or ``None``.
    """

    name: str
    device: str
    serves: bool
    unavailable: str | None


@dataclass(frozen=True)
class CacheState:
    """A folder of files that can be made again.

    Attributes:
        problem: why nothing can be added to it, or ``None``.
    """

    name: str
    folder: str
    files: int
    bytes: int
    problem: str | None


@dataclass(frozen=True)
class CheckResult:
    """One problem by one runtime.

    Attributes:
        kernel: the kernel that ran by itself, or ``(all of them)`` for a call of PyTorch's attention that was patched.
        output: the output that was closest to its bound.
        error: largest absolute difference from the float64 reference; ``None`` if it is no number.
        bound: the largest that is allowed.
        prepare_ms: time of the first call, which compiles kernels or finds them compiled.
        launch_ms: time of a later call, waited for.
        failure: what went wrong, or ``None`` if the check passed.
    """

    operation: str
    kernel: str
    problem: str
    dtype: str
    runtime: str
    device: str
    output: str | None = None
    error: float | None = None
    bound: float | None = None
    prepare_ms: float | None = None
    launch_ms: float | None = None
    failure: str | None = None

    @property
    def passed(self) -> bool:
        return self.failure is None


@dataclass(frozen=True)
class Report:
    """What `examine` found.

    Attributes:
        environment: system, GPU and versions by name.
        compiler: what the simulator's compiler says of itself, or why there is none.
        untested: what this examination says nothing about, one sentence each.
    """

    environment: dict[str, str]
    compiler: str
    caches: tuple[CacheState, ...]
    runtimes: tuple[RuntimeState, ...]
    checks: tuple[CheckResult, ...]
    untested: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        if not self.checks:
            return Verdict.NOTHING_CHECKED
        return Verdict.FINE if all(check.passed for check in self.checks) else Verdict.FAILED

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON object: its attributes, the ``schema`` and the ``verdict`` with its ``exit_code``."""
        checks = [{**dataclasses.asdict(check), "passed": check.passed} for check in self.checks]
        verdict = {"verdict": self.verdict.name.lower(), "exit_code": int(self.verdict)}
        return {"schema": SCHEMA, **verdict, **dataclasses.asdict(self), "checks": checks}


def examine(
    devices: Iterable[str] | None = None,
    *,
    started: Callable[[Report], None] = lambda report: None,
    checked: Callable[[CheckResult], None] = lambda result: None,
) -> Report:
    """Looks at this machine and runs every operation's checks on every runtime that it has.

    Args:
        devices: types of the devices whose runtimes are tried; by default all, the GPU first.
        started: is given the report before its first check.
        checked: is given each result as it comes: the first run compiles, which takes a while.

    Raises:
        ValueError: a device type that no runtime serves.
    """
    chosen = tuple(sorted(base.RUNTIMES, key=lambda device: device == "cpu") if devices is None else devices)
    for device in chosen:
        if device not in base.RUNTIMES:
            raise ValueError(f"devices contains {device!r}; accepted: {list(base.RUNTIMES)}")
    runtimes = tuple(_runtime_state(name, device) for device in chosen for name in base.RUNTIMES[device])
    report = Report(_environment(), _compiler(), _caches(), runtimes, (), tuple(_untested(runtimes)))
    started(report)
    results = []
    for result in itertools.chain.from_iterable(map(_check_device, _by_device(runtimes))):
        checked(result)
        results.append(result)
    return dataclasses.replace(report, caches=_caches(), checks=tuple(results))


def _environment() -> dict[str, str]:
    return {
        "package": f"mps-flash-attn {__version__}",
        "system": platform.platform(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "GPU": _gpu(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
    }


def _gpu() -> str:
    if not torch.backends.mps.is_available():
        return "no Apple GPU"
    if base.why_not("metal") is None:
        info = importlib.import_module(f"{base.__package__}.metal").device_info()
        memory = f"{info['recommended_working_set_bytes'] / 2**30:.1f} GiB"
        return f"{info['name']}, family Apple {info['gpu_family']}, {info['gpu_cores']} cores, {memory} to work with"
    try:
        return f"{torch.backends.mps.get_name()}, {torch.backends.mps.get_core_count()} cores"
    except AttributeError:  # older PyTorch cannot tell
        return "an Apple GPU"


def _compiler() -> str:
    try:
        from .runtime.translation.host_compiler import find_compiler

        compiler = find_compiler()
    except Exception as error:
        return f"none: {error}"
    return f"{' '.join(compiler.command)}: {compiler.version.splitlines()[0]}"


def _caches() -> tuple[CacheState, ...]:
    """The folders that runtimes keep, or the folder in which they will be made."""
    root = folders.cache_root()
    kept = [root / name for names in base.RUNTIMES.values() for name in names]
    return tuple(_cache_state(folder) for folder in [folder for folder in kept if folder.is_dir()] or [root])


def _cache_state(folder: Path) -> CacheState:
    sizes = []
    for path in folder.rglob("*") if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # other processes may delete files meanwhile
            if path.is_file():
                sizes.append(path.stat().st_size)
    return CacheState(folder.name, str(folder), len(sizes), sum(sizes), _obstacle(folder))


def _obstacle(folder: Path) -> str | None:
    """What keeps files from being made in a folder, which itself may have to be made first."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is not a folder"
    return None if os.access(existing, os.W_OK | os.X_OK) else f"{existing} cannot be written to"


def _runtime_state(name: str, device: str) -> RuntimeState:
    unavailable = base.why_not(name)
    try:
        serves = unavailable is None and base.for_device(device) is base.load(name)
    except ValueError:  # the environment forces a runtime that cannot serve
        serves = False
    return RuntimeState(name, device, serves, unavailable)


def _by_device(runtimes: Sequence[RuntimeState]) -> list[list[RuntimeState]]:
    """The runtimes that can be used, those of one device together."""
    usable = [state for state in runtimes if state.unavailable is None]
    return [list(states) for _, states in itertools.groupby(usable, key=lambda state: state.device)]


def _forced_elsewhere(device: str) -> bool:
    """Whether the environment forces a runtime of another device, so that calls on this one are not wanted."""
    forced = os.environ.get(base.RUNTIME_VARIABLE)
    return any(forced in names for other, names in base.RUNTIMES.items() if other != device)


def _untested(runtimes: Sequence[RuntimeState]) -> Iterator[str]:
    for state in runtimes:
        if state.unavailable is not None:
            yield f"Runtime {state.name} ({state.device} tensors): {state.unavailable}."
    for device in dict.fromkeys(state.device for state in runtimes):
        if _forced_elsewhere(device):
            forced = os.environ[base.RUNTIME_VARIABLE]
            yield f"Calls on {device} tensors: {base.RUNTIME_VARIABLE}={forced!r} forces another device's runtime."
    if not any(state.device == "mps" and state.unavailable is None for state in runtimes):
        yield (
            "No Apple GPU took part: Apple's compiler has not seen the kernels, nothing has run through Metal, and no "
            "time in this report says anything about a GPU."
        )


def operations() -> Iterator[tuple[str, Callable[[Capabilities], Iterable[SelfCheck]]]]:
    """The name of each operation, and what makes its checks."""
    for module in pkgutil.iter_modules(ops.__path__):
        if module.ispkg:
            yield module.name, importlib.import_module(f"{ops.__name__}.{module.name}.self_checks").self_checks


def _check_device(states: Sequence[RuntimeState]) -> Iterator[CheckResult]:
    """Every kernel by itself on each runtime of a device, and a whole call on the one that the package chooses."""
    for state in states:
        yield from _check_kernels(state)
    device = states[0].device
    if not _forced_elsewhere(device):
        serving = next((state.name for state in states if state.serves), os.environ.get(base.RUNTIME_VARIABLE, ""))
        result = _result("attention", "(all of them)", patch_check.PROBLEM, torch.float32, serving, device)
        with _seeded():
            yield _judged(result, functools.partial(patch_check.measure_patched, device))


def _check_kernels(state: RuntimeState) -> Iterator[CheckResult]:
    runtime = base.load(state.name)
    for operation, self_checks in operations():
        with _seeded():
            checks = list(self_checks(runtime.CAPABILITIES))
        for check in checks:
            result = _result(operation, check.launch.kernel, check.problem, check.dtype, state.name, state.device)
            yield _judged(result, functools.partial(check.measure, runtime, state.device))


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Random numbers that are the same in each examination; the caller's generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


def _result(operation: str, kernel: str, problem: str, dtype: torch.dtype, runtime: str, device: str) -> CheckResult:
    return CheckResult(operation, kernel, problem, str(dtype).removeprefix("torch."), runtime, device)


def _judged(result: CheckResult, measure: Callable[[], Measured]) -> CheckResult:
    try:
        measured = measure()
    except Exception as error:  # whatever a driver raises is this check's failure, not the end of the examination
        return dataclasses.replace(result, failure=f"{type(error).__name__}: {error}")
    values: dict[str, Any] = dataclasses.asdict(measured)
    if not math.isfinite(measured.error):
        values["error"] = None
    if not measured.passed:
        values["failure"] = f"{measured.output} differs by {measured.error:.2e}; allowed: {measured.bound:.2e}"
    return dataclasses.replace(result, **values)
