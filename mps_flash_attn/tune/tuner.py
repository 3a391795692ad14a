"""The search: drops what cannot run, measures the rest, and lets nothing win whose results are wrong."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import importlib.util
import math
import pkgutil
import random
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops, tolerance
from ..errors import UnsupportedError
from ..launch import BoundLaunch, Capabilities, Runtime
from ..runtime import base
from ..self_check import Expected
from .store import Choice, Key, device_name, put

__all__ = ["Outcome", "Result", "Subject", "Trial", "best_device", "candidates", "run", "search", "subjects"]

#: Units of costs.
MILLISECONDS, MODEL_CYCLES = "ms", "model cycles"

#: Of the random inputs and of the order that a limit asks for.
_SEED = 0
_SAMPLES = 5
#: Launches are timed in batches of about this length, so that waiting for the device counts for little.
_BATCH_SECONDS = 5e-3
_MOST_LAUNCHES = 100
#: The fastest tilings are timed again, in turns, so that none owes its place to a quiet moment of the machine.
_FINALISTS = 4
_ROUNDS = 7


@dataclass(frozen=True)
class Subject:
    """A kernel on one class of problems: what the search needs to know of an operation.

    Attributes:
        kernel: its name, as calls will ask for it.
        shape_class: the class of problems, as calls will ask for it.
        dtype: of the problem.
        problem: the problem that stands for its class, in a few words.
        default: the tiling that is used where nothing is stored.
        tilings: those to try.
        prepare: plans and compiles a tiling for a runtime; raises `UnsupportedError` for one that cannot run. What it
            returns is called with the tensors that are read and those that are written.
        operands: makes what is read, CPU tensors, and what has to be written; both as `prepare` expects them.
    """

    kernel: str
    shape_class: str
    dtype: torch.dtype
    problem: str
    default: Any
    tilings: tuple[Any, ...]
    prepare: Callable[[Any, Runtime], BoundLaunch]
    operands: Callable[[], tuple[tuple[Tensor, ...], tuple[Expected, ...]]]

    @property
    def name(self) -> str:
        """Kernel, class and dtype."""
        return f"{self.kernel} {self.shape_class} {self.dtype_name}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


class Outcome(enum.Enum):
    """How a trial ended."""

    RAN = "ran"
    CANNOT_RUN = "cannot run"
    FAILED = "failed"
    WRONG = "wrong"


@dataclass(frozen=True)
class Trial:
    """One tiling, and its cost or the reason why it has none."""

    tiling: Any
    outcome: Outcome
    cost: float = math.inf
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """What the search found for a subject.

    Attributes:
        device: name of the device.
        unit: of the costs.
        trials: in their order, the default tiling first.
        best: the cheapest of those that ran and were right, or ``None`` where there is none.
    """

    subject: Subject
    device: str
    unit: str
    trials: tuple[Trial, ...]
    best: Trial | None

    @property
    def default(self) -> Trial:
        """The trial of the default tiling, which is the first."""
        return self.trials[0]

    @property
    def entry(self) -> tuple[Key, Choice] | None:
        """What there is to store."""
        if self.best is None:
            return None
        default_cost = self.default.cost if self.default.outcome is Outcome.RAN else None
        key = Key(self.device, self.subject.kernel, self.subject.shape_class, self.subject.dtype_name)
        return key, Choice(dataclasses.asdict(self.best.tiling), self.best.cost, default_cost, self.unit)

    def as_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        entry = self.entry
        return {
            "kernel": self.subject.kernel,
            "shape_class": self.subject.shape_class,
            "dtype": self.subject.dtype_name,
            "problem": self.subject.problem,
            "device": self.device,
            "unit": self.unit,
            "best": None if entry is None else dataclasses.asdict(entry[1]),
            "trials": [
                {
                    "tiling": dataclasses.asdict(trial.tiling),
                    "outcome": trial.outcome.value,
                    "cost": trial.cost if math.isfinite(trial.cost) else None,
                    "reason": trial.reason,
                }
                for trial in self.trials
            ],
        }


def subjects(capabilities: Capabilities, device: str) -> Iterator[tuple[str, Subject]]:
    """What can be tuned, with the name of its operation: all that the modules ``ops/<op>/tuning.py`` offer.

    Args:
        device: type of the device; problems for the simulator, ``cpu``, are smaller.
    """
    for module in pkgutil.iter_modules(ops.__path__):
        name = f"{ops.__name__}.{module.name}.tuning"
        if module.ispkg and importlib.util.find_spec(name) is not None:
            for subject in importlib.import_module(name).subjects(capabilities, device):
                yield module.name, subject


def best_device() -> str | None:
    """Type of the device to tune: that of a GPU that can be used, else the simulator's, else ``None``."""
    usable = (device for device in sorted(base.RUNTIMES, key=lambda device: device == "cpu") if _usable(device))
    return next(usable, None)


def _usable(device: str) -> bool:
    return any(base.why_not(name) is None for name in base.RUNTIMES[device])


def candidates(subject: Subject, limit: int | None = None) -> list[Any]:
    """The tilings in the order of their trials, the default first.

    Args:
        limit: the most that `search` measures; the others come in a random order then, the same every time.
    """
    others = [tiling for tiling in subject.tilings if tiling != subject.default]
    if limit is not None:
        random.Random(_SEED).shuffle(others)
    return [subject.default, *others]


def search(
    subject: Subject,
    device: str,
    *,
    limit: int | None = None,
    tried: Callable[[Trial], None] = lambda trial: None,
) -> Result:
    """Tries a subject's tilings.

    Args:
        device: type of the device.
        limit: the most tilings to measure, the default included; those that cannot run do not count.
        tried: is given each trial as it ends.
    """
    runtime = base.for_device(device)
    meter: Counted | Timed = Counted() if device == "cpu" else Timed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        read, expected = subject.operands()
    inputs = [x.to(device) for x in read]
    trials: dict[Any, Trial] = {}
    calls: dict[Any, Callable[[], None]] = {}
    measured = 0
    for tiling in candidates(subject, limit):
        outputs = [torch.full_like(x.pytorch, torch.nan, device=device) for x in expected]  # NaN, if never written
        call = _LazyCall(subject, tiling, runtime, (*inputs, *outputs))
        trial = trials[tiling] = _try(tiling, call, meter, outputs, expected)
        if trial.outcome is Outcome.RAN:
            calls[tiling] = call
        tried(trial)
        measured += trial.outcome is not Outcome.CANNOT_RUN
        if measured == limit:
            break
    ranking = _ranking(calls, trials, subject.default, meter)
    trials.update(ranking)
    best = next(iter(ranking.values()), None)
    return Result(subject, device_name(device), meter.unit, tuple(trials.values()), best)


def run(
    chosen: Sequence[Subject],
    device: str,
    *,
    limit: int | None = None,
    store: bool = True,
    tried: Callable[[Subject, Trial], None] = lambda subject, trial: None,
) -> Iterator[Result]:
    """Searches one subject after the other, and stores what each search found as soon as it ends.

    Args:
        device: type of the device.
        limit: as for `search`.
        store: whether later calls are to use what is found.
        tried: is given each trial as it ends.

    Raises:
        CacheError: the folder for what is found cannot be used.
    """
    for subject in chosen:
        result = search(subject, device, limit=limit, tried=lambda trial, of=subject: tried(of, trial))  # type: ignore[misc]
        if store and result.entry is not None:
            put(dict([result.entry]))
        yield result


class _LazyCall:
    """A tiling's launches on their tensors; planned and compiled by the first call."""

    def __init__(self, subject: Subject, tiling: Any, runtime: Runtime, tensors: Collection[Tensor]) -> None:
        self._bound = functools.cache(lambda: subject.prepare(tiling, runtime))
        self._tensors = tensors

    def __call__(self) -> None:
        self._bound()(*self._tensors)


def _try(
    tiling: Any,
    call: Callable[[], None],
    meter: Counted | Timed,
    outputs: Sequence[Tensor],
    expected: Sequence[Expected],
) -> Trial:
    try:
        cost = meter.cost(call)
    except UnsupportedError as error:
        return Trial(tiling, Outcome.CANNOT_RUN, reason=str(error))
    except RuntimeError as error:  # compilers and drivers have many ways to refuse, memory can run out
        return Trial(tiling, Outcome.FAILED, reason=str(error))
    wrong = _wrong([x.cpu() for x in outputs], expected)
    return Trial(tiling, Outcome.WRONG, reason=wrong) if wrong else Trial(tiling, Outcome.RAN, cost)


def _wrong(found: Sequence[Tensor], expected: Sequence[Expected]) -> str:
    """Which result breaks the tolerance rule; nothing where all keep it."""
    for output, actual in zip(expected, found, strict=True):
        error = tolerance.error(actual, output.reference)
        bound = tolerance.bound(output.pytorch, output.reference)
        if not error <= bound:  # an error that is NaN too
            return f"{output.name} differs by {error:.2e}; allowed: {bound:.2e}"
    return ""


def _ranking(
    calls: dict[Any, Callable[[], None]], trials: dict[Any, Trial], default: Any, meter: Counted | Timed
) -> dict[Any, Trial]:
    """The trials that may win, the winner first: the default unless another is better by more than chance."""
    fastest = sorted(calls, key=lambda tiling: trials[tiling].cost)[:_FINALISTS]
    if default in calls and default not in fastest:
        fastest.append(default)
    costs = meter.play_off({tiling: calls[tiling] for tiling in fastest}, {x: trials[x].cost for x in fastest})
    handicap = {tiling: cost * (1 - meter.margin if tiling == default else 1) for tiling, cost in costs.items()}
    ordered = sorted(fastest, key=lambda tiling: (handicap[tiling], tiling != default))
    return {tiling: dataclasses.replace(trials[tiling], cost=costs[tiling]) for tiling in ordered}


class Counted:
    """The simulator's model of what was counted, which is the same every time."""

    unit = MODEL_CYCLES
    margin = 0.0

    def cost(self, call: Callable[[], None]) -> float:
        from ..runtime.simulator.cost import model_cycles

        return model_cycles(call)

    def play_off(self, calls: dict[Any, Callable[[], None]], costs: dict[Any, float]) -> dict[Any, float]:
        return costs


class Timed:
    """Medians of wall-clock time on a GPU, after a first launch of the same kernel on the same tensors."""

    unit = MILLISECONDS
    margin = 0.02

    def cost(self, call: Callable[[], None]) -> float:
        call()
        _wait()
        return statistics.median(self._sample(call, self._launches(call)) for _ in range(_SAMPLES))

    def play_off(self, calls: dict[Any, Callable[[], None]], costs: dict[Any, float]) -> dict[Any, float]:
        launches = {tiling: self._launches(call) for tiling, call in calls.items()}
        rounds = [
            {tiling: self._sample(call, launches[tiling]) for tiling, call in calls.items()} for _ in range(_ROUNDS)
        ]
        return {tiling: statistics.median(times[tiling] for times in rounds) for tiling in calls}

    def _launches(self, call: Callable[[], None]) -> int:
        """How many launches a batch has."""
        seconds = self._sample(call, 1) / 1e3
        return min(max(math.ceil(_BATCH_SECONDS / seconds), 1), _MOST_LAUNCHES)

    def _sample(self, call: Callable[[], None], launches: int) -> float:
        """Milliseconds of a launch."""
        start = time.perf_counter()
        for _ in range(launches):
            call()
        _wait()
        return 1e3 * (time.perf_counter() - start) / launches


def _wait() -> None:
    torch.accelerator.synchronize()
