"""The tuner: what may win, what is dropped and why, and where the choice is kept."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mps_flash_attn import cli, folders, launch, tune
from mps_flash_attn.errors import UnsupportedError
from mps_flash_attn.launch import BoundLaunch, Launch, Runtime
from mps_flash_attn.ops.attention import plan
from mps_flash_attn.ops.attention.cases import Case
from mps_flash_attn.ops.attention.operands import operands, problem
from mps_flash_attn.runtime import simulator
from mps_flash_attn.tune import Choice, Key, Outcome, Subject, store, tuner
from mps_flash_attn.tune.tuner import MILLISECONDS, MODEL_CYCLES


@dataclass(frozen=True)
class Tiling:
    """A toy's: of all that attention's plan decides, only whether rows are held in registers, which is cheaper."""

    hold: bool
    simdgroups: int = 4


HELD, READ_AGAIN = Tiling(hold=True), Tiling(hold=False)
CASE = Case(70, 70, 64, batch=1, query_heads=1, key_heads=1)
CPU = torch.device("cpu")
KEY = Key("simulator", "attention_forward", "toys", "float32")


def toy_plan(tiling: Tiling | None) -> Launch:
    tiling = tiling or HELD
    if tiling.simdgroups != 4:
        raise UnsupportedError(f"{tiling.simdgroups} simdgroups")
    right = plan.forward(problem(CASE.inputs(torch.float32, "meta")), simulator.CAPABILITIES)
    defines = tuple((name, int(tiling.hold) if name == "HOLD" else value) for name, value in right.defines)
    return dataclasses.replace(right, defines=defines)


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own for each test, in which only compiled kernels are those of all; tilings are used."""
    compiled = folders.cache_root() / "simulator"
    compiled.mkdir(parents=True, exist_ok=True)
    (tmp_path / "simulator").symlink_to(compiled)
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.delenv(tune.VARIABLE, raising=False)
    store.warn_once.cache_clear()
    return tune.path()


@pytest.fixture
def subject() -> Subject:
    """The toy, with the dearer of its two tilings as the default."""
    return Subject(
        kernel=KEY.kernel,
        shape_class=KEY.shape_class,
        dtype=torch.float32,
        problem="70 x 70",
        default=READ_AGAIN,
        tilings=(HELD,),
        prepare=lambda tiling, runtime: launch.bind(toy_plan(tiling), runtime),
        operands=lambda: operands(CASE.inputs(torch.float32))[KEY.kernel],
    )


def chosen() -> Tiling | None:
    return tune.chosen(KEY.kernel, KEY.shape_class, torch.float32, CPU, Tiling)


def planned() -> Launch:
    return tune.planned(KEY.kernel, KEY.shape_class, torch.float32, CPU, Tiling, toy_plan)


def choice(tiling: Tiling, cost: float = 1.0) -> Choice:
    return Choice(dataclasses.asdict(tiling), cost, None, MILLISECONDS)


def planted(subject: Subject, which: Tiling, fault: Callable[[Launch], Launch]) -> Subject:
    """The subject with a fault in the launch of one tiling."""

    def prepare(tiling: Tiling, runtime: Runtime) -> BoundLaunch:
        right = toy_plan(tiling)
        return launch.bind(fault(right) if tiling == which else right, runtime)

    return dataclasses.replace(subject, prepare=prepare)


def outcomes(result: tune.Result) -> dict[Tiling, Outcome]:
    return {trial.tiling: trial.outcome for trial in result.trials}


def test_the_cheapest_wins(subject: Subject) -> None:
    result = tune.search(subject, "cpu")
    assert outcomes(result) == {READ_AGAIN: Outcome.RAN, HELD: Outcome.RAN}
    assert result.best is not None
    assert result.best.tiling == HELD
    assert result.unit == MODEL_CYCLES
    assert 0 < result.best.cost < result.default.cost


def half_the_grid(right: Launch) -> Launch:
    return dataclasses.replace(right, threads=(right.threads[0] // 2, *right.threads[1:]))


def slightly_wrong_scale(right: Launch) -> Launch:
    which = next(n for n, word in enumerate(right.words) if word == 0x3E000000)  # 0.125, the scale for D = 64
    return dataclasses.replace(right, words=(*right.words[:which], 0x3E008000, *right.words[which + 1 :]))


@pytest.mark.parametrize("fault", [half_the_grid, slightly_wrong_scale])
def test_what_is_wrong_never_wins(subject: Subject, fault: Callable[[Launch], Launch]) -> None:
    """Not even where it is the cheapest, the default, or the only one."""
    result = tune.search(planted(subject, HELD, fault), "cpu")
    assert outcomes(result) == {READ_AGAIN: Outcome.RAN, HELD: Outcome.WRONG}
    assert result.best is not None
    assert result.best.tiling == READ_AGAIN
    assert "differs by" in result.trials[1].reason

    wrong_default = planted(dataclasses.replace(subject, default=HELD, tilings=(READ_AGAIN,)), HELD, fault)
    best = tune.search(wrong_default, "cpu").best
    assert best is not None
    assert best.tiling == READ_AGAIN

    (alone,) = tune.run([dataclasses.replace(wrong_default, tilings=())], "cpu")
    assert alone.best is None
    assert tune.read() == {}


def test_what_cannot_run_is_dropped_with_its_reason(subject: Subject) -> None:
    impossible = {
        Tiling(hold=True, simdgroups=64): "64 simdgroups",
        Tiling(hold=False, simdgroups=0): "0 simdgroups",
    }
    result = tune.search(dataclasses.replace(subject, tilings=tuple(impossible)), "cpu")
    assert outcomes(result) == {READ_AGAIN: Outcome.RAN, **dict.fromkeys(impossible, Outcome.CANNOT_RUN)}
    for trial in result.trials[1:]:
        assert impossible[trial.tiling] in trial.reason


def not_metal(right: Launch) -> Launch:
    return dataclasses.replace(right, defines=(*right.defines, ("BK", "no number")))


def out_of_memory(right: Launch) -> Launch:
    raise torch.OutOfMemoryError("no memory is left")


@pytest.mark.parametrize("broken", [not_metal, out_of_memory])
def test_what_fails_is_dropped(subject: Subject, broken: Callable[[Launch], Launch]) -> None:
    result = tune.search(planted(subject, HELD, broken), "cpu")
    assert outcomes(result)[HELD] is Outcome.FAILED
    assert result.best is not None
    assert result.best.tiling == READ_AGAIN


def test_a_limit_leaves_the_default_and_the_same_sample_of_what_can_run(subject: Subject) -> None:
    impossible = [Tiling(hold=True, simdgroups=n) for n in range(5, 25)]
    many = dataclasses.replace(subject, tilings=(*impossible, HELD))
    order = tune.candidates(many, 2)
    assert order[0] == READ_AGAIN
    assert set(order) == {READ_AGAIN, *many.tilings}
    for limit in (1, 2, 3):
        result = tune.search(many, "cpu", limit=limit)
        assert [x.tiling for x in result.trials] == order[: len(result.trials)]
        assert list(outcomes(result).values()).count(Outcome.RAN) == min(limit, 2)


def test_by_time_the_faster_wins_and_is_timed_on_its_own_launches(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulator's wall clock in the place of a GPU's: a launch that was slowed down loses."""
    launches = {READ_AGAIN: 0, HELD: 0}

    def slowed(tiling: Tiling, runtime: Runtime) -> BoundLaunch:
        kernel = launch.bind(toy_plan(tiling), runtime)

        def run(*tensors: torch.Tensor) -> None:
            launches[tiling] += 1
            time.sleep(0.1 if tiling == HELD else 0)
            kernel(*tensors)

        return run

    monkeypatch.setattr(tuner, "Counted", tuner.Timed)
    monkeypatch.setattr(tuner, "_wait", lambda: None)
    result = tune.search(dataclasses.replace(subject, prepare=slowed), "cpu")
    assert result.unit == MILLISECONDS
    assert result.best is not None
    assert result.best.tiling == READ_AGAIN
    assert result.trials[1].cost >= 100
    assert min(launches.values()) > 10


def test_what_is_stored_is_read_again(own_store: Path) -> None:
    other = dataclasses.replace(KEY, dtype="float16")
    tune.put({KEY: choice(HELD, 1.5)})
    tune.put({other: choice(HELD)})
    assert tune.read() == {KEY: choice(HELD, 1.5), other: choice(HELD)}
    tune.put({KEY: choice(READ_AGAIN)})
    assert tune.read() == {KEY: choice(READ_AGAIN), other: choice(HELD)}
    assert list(own_store.parent.glob(".tilings-*")) == []
    tune.clear()
    assert tune.read() == {}


def put_many(name: str) -> None:
    for n in range(20):
        tune.put({Key(name, str(n), "", ""): Choice({}, n, None, MILLISECONDS)})


def test_processes_that_write_at_once_lose_nothing() -> None:
    names = ["one", "two", "three"]
    with concurrent.futures.ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(put_many, names))
    assert {(key.device, key.kernel) for key in tune.read()} == {(name, str(n)) for name in names for n in range(20)}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"format": "mps-flash-attn tilings 1", "entr',
        b"\xff\xfe\x00",
        b"[]",
        b'{"format": "of another program", "entries": []}',
        b'{"format": "mps-flash-attn tilings 1"}',
        b'{"format": "mps-flash-attn tilings 1", "entries": [{"key": {"device": "x"}, "choice": {}}]}',
        b'{"format": "mps-flash-attn tilings 1", "entries": [7]}',
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_with_a_warning_and_written_anew(own_store: Path, damage: bytes) -> None:
    own_store.write_bytes(damage)
    with pytest.warns(UserWarning, match=r"tilings\.json"):
        assert tune.read() == {}
    store.warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"tilings\.json"):
        assert chosen() is None
    store.warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"tilings\.json"):
        tune.put({KEY: choice(READ_AGAIN)})
    assert tune.read() == {KEY: choice(READ_AGAIN)}
    assert chosen() == READ_AGAIN


def test_a_stored_choice_is_planned_with(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned() == toy_plan(None) == toy_plan(HELD)
    tune.put({KEY: choice(READ_AGAIN)})
    assert planned() == toy_plan(READ_AGAIN) != toy_plan(None)

    own_store.write_text(own_store.read_text().replace('"hold": false', '"hold": true'))  # as another process would
    assert chosen() == HELD

    tune.put({KEY: choice(READ_AGAIN)})
    monkeypatch.setenv(tune.VARIABLE, "0")
    assert chosen() is None
    assert planned() == toy_plan(None)


@pytest.mark.parametrize("change", [{"version": "0.0.0"}, {"device": "Apple M2"}, {"dtype": "float16"}])
def test_entries_of_another_version_or_device_are_kept_and_not_used(change: dict[str, str]) -> None:
    other = dataclasses.replace(KEY, **change)
    tune.put({other: choice(READ_AGAIN)})
    assert chosen() is None
    assert list(tune.read()) == [other]


@pytest.mark.parametrize(
    "stored",
    [
        {"hold": True, "simdgroups": 5},
        {"hold": True, "simdgroups": "4"},
        {"hold": True, "simdgroups": True},
        {"hold": 1, "simdgroups": 4},
        {"hold": True},
        {},
    ],
)
def test_a_stored_tiling_that_no_longer_plans_gives_way_to_the_default_with_one_warning(stored: Any) -> None:
    tune.put({KEY: Choice(stored, 1.0, None, MILLISECONDS)})
    with pytest.warns(UserWarning, match="the default is used") as warned:
        assert planned() == toy_plan(None)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert planned() == toy_plan(None)


def test_the_search_stores_the_winner_unless_told_not_to(subject: Subject) -> None:
    list(tune.run([subject], "cpu", store=False))
    assert chosen() is None
    list(tune.run([subject], "cpu"))
    assert chosen() == HELD


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["tune", "--device", "cpu", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def offered(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy in the place of the package's operations."""
    other = dataclasses.replace(subject, shape_class="other toys")
    monkeypatch.setattr(tune, "subjects", lambda capabilities, device: [("attention", subject), ("other", other)])


@pytest.mark.usefixtures("offered")
def test_the_command_line_end_to_end(capsys: pytest.CaptureFixture[str], own_store: Path) -> None:
    only = ("--op", "attention", "--only", "forward toys", "--dtype", "float32", "--limit", "2")
    code, out, _ = command(capsys, *only, "--list")
    assert (code, out.count("\n")) == (0, 1)
    assert KEY.kernel in out

    code, out, _ = command(capsys, *only, "--dry-run")
    assert code == 0
    assert KEY.shape_class in out
    assert "They are no measurement" in out
    assert not own_store.exists()

    code, out, _ = command(capsys, *only, "--json")
    (found,) = json.loads(out)["results"]
    assert code == 0
    assert [trial["outcome"] for trial in found["trials"]] == ["ran", "ran"]
    assert dataclasses.asdict(tune.read()[KEY]) == found["best"]

    code, out, _ = command(capsys, "--clear")
    assert code == 0
    assert tune.read() == {}


@pytest.mark.usefixtures("offered")
def test_the_command_line_says_when_there_is_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = command(capsys, "--only", "no such kernel")
    assert code == 2
    assert "NOTHING TUNED" in err
    with pytest.raises(SystemExit, match="2"):
        command(capsys, "--limit", "0")
    assert "'0'; accepted is a number from 1" in capsys.readouterr().err


def test_what_was_tuned_before_an_interruption_is_kept(
    capsys: pytest.CaptureFixture[str], subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tiling: Tiling, runtime: Runtime) -> BoundLaunch:
        raise KeyboardInterrupt

    endless = dataclasses.replace(subject, shape_class="endless", prepare=interrupted)
    offered = [("attention", subject), ("attention", endless)]
    monkeypatch.setattr(tune, "subjects", lambda capabilities, device: offered)
    code, out, err = command(capsys)
    assert code == 130
    assert "INTERRUPTED: 1 of 2" in err
    assert "endless" not in out
    assert chosen() == HELD


def test_the_command_line_fails_when_no_result_is_right(
    capsys: pytest.CaptureFixture[str], subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = planted(dataclasses.replace(subject, tilings=()), READ_AGAIN, half_the_grid)
    monkeypatch.setattr(tune, "subjects", lambda capabilities, device: [("attention", wrong)])
    code, out, _ = command(capsys)
    assert code == 1
    assert "NONE WAS RIGHT" in out
    assert "1 x wrong" in out
