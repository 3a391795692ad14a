"""Each mode of the benchmarks in a tiny configuration: it runs, and its figures mean what they say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu
import memory
import operations
import pytest
import run
import torch
from attention import Problem
from matplotlib import image
from variants import VARIANTS, Variant

import mps_flash_attn
from mps_flash_attn import launch
from mps_flash_attn.ops import calls

operations_timed = operations._timed


def measure(tmp_path: Path, *arguments: str, op: str = "attention") -> list[dict[str, Any]]:
    file = tmp_path / "results" / "out.jsonl"
    run.main([f"--op={op}", "--device=cpu", f"--json={file}", *arguments])
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_time_compares_all_implementations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = measure(tmp_path, "--length", "16", "40", "--heads=1", "--head-dim=16", "--repeat=2", "--backward")
    assert [(r["length"], r["implementation"]) for r in results] == [
        (length, name) for length in (16, 40) for name in ("ours", "PyTorch", "naive")
    ]
    assert all(0 < r["fastest_ms"] <= r["median_ms"] for r in results)
    assert all(r["times_pytorch"] == 1 for r in results if r["implementation"] == "PyTorch")
    assert {"date", "torch", "processor", "system"} <= results[0].keys()
    assert "Time of attention" in capsys.readouterr().out


def test_memory_of_ours_grows_with_the_length_and_of_the_formula_with_its_square(tmp_path: Path) -> None:
    plot = tmp_path / "memory.png"
    results = measure(tmp_path, "--memory", "--length", "256", "512", "--head-dim=16", f"--plot={plot}")
    peaks = {(r["implementation"], r["length"]): r["tensor_bytes"] for r in results}
    assert 1.9 <= peaks["ours", 512] / peaks["ours", 256] <= 2.1
    assert 3 <= peaks["naive", 512] / peaks["naive", 256] <= 4
    assert peaks["naive", 512] >= 512 * 512 * 4
    # Output, log-sum-exp, its gradient's delta, the incoming gradient and three gradients.
    assert peaks["ours", 512] <= 512 * (5 * 16 + 2) * 4 + 4096
    assert image.imread(plot)[..., :3].std() > 0.02


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Launches that are planned, and neither compiled nor run."""
    calls.forget()
    monkeypatch.setattr(launch, "bind", lambda launch, runtime: lambda *tensors: None)
    yield
    calls.forget()


def grows_with_the_length(variant: Variant) -> bool:
    """Whether twice the length takes at most twice the memory, but for what does not grow."""
    problem = Problem(2, 2, 128, 16, "float32", causal=False, backward=True, device="cpu")
    small, large = (memory.tensor_bytes(variant, dataclasses.replace(problem, length=n)) for n in (512, 1024))
    assert small > 2 * 2 * 16 * 4 * (1 if variant.cached else 512)  # one result at least
    return large <= 2 * small + 4096


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("name", VARIANTS)
def test_memory_of_every_variant_grows_with_the_length(name: str) -> None:
    assert grows_with_the_length(VARIANTS[name])


@pytest.mark.usefixtures("without_kernels")
def test_memory_that_grows_with_the_square_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def square(problem: Problem) -> dict[str, torch.Tensor]:
        return {"attn_mask": torch.ones(problem.length, problem.length)}

    assert not grows_with_the_length(Variant(tensors=square))  # its gradient
    copied = mps_flash_attn.flash_attention

    def with_scores(query: torch.Tensor, key: torch.Tensor, *others: Any, **options: Any) -> Any:
        scores = query.detach() @ key.detach().mT
        return copied(query + 0 * scores.sum(), key, *others, **options)

    monkeypatch.setattr(mps_flash_attn, "flash_attention", with_scores)
    assert not grows_with_the_length(VARIANTS["plain"])


def test_memory_of_variants_is_recorded_and_drawn(tmp_path: Path) -> None:
    plot = tmp_path / "memory.png"
    sizes = ("--length", "64", "128", "--head-dim=16", f"--plot={plot}")
    results = measure(tmp_path, "--memory", "--variants=causal,bias", *sizes)
    assert [(r["variant"], r["length"]) for r in results] == [
        (name, length) for name in ("causal", "bias") for length in (64, 128)
    ]
    assert image.imread(plot)[..., :3].std() > 0.02


def test_counters_put_pytorchs_kernel_beside_ours(tmp_path: Path) -> None:
    results = measure(tmp_path, "--counters", "--length=64", "--head-dim=64")
    counts = {r["count"]: r for r in results}
    products = 2 * (64 // 8) ** 2 * (64 // 8)
    assert counts["matrix products"]["ours"] == counts["matrix products"]["pytorch_metal"] == products
    assert counts["exponentials"]["ours"] >= 64 * 64
    for name in ("device bytes", "threadgroup bytes"):
        assert counts[name]["pytorch_metal"] >= 4 * 64 * 64 * 4
        assert counts[name]["ratio"] == counts[name]["ours"] / counts[name]["pytorch_metal"]


def test_overhead_is_that_of_a_call_without_its_launch(tmp_path: Path) -> None:
    (result,) = measure(tmp_path, "--overhead", "--repeat=2")
    assert result["empty_op_us"] > 0
    assert result["difference_us"] == result["flash_attention_us"] - result["empty_op_us"]
    # A real launch of this size takes the simulator milliseconds.
    assert result["flash_attention_us"] < 1000
    assert result["new_length_us"] > 1.2 * result["known_length_us"] > 0


def test_time_of_gemm_is_measured_beside_pytorch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = measure(tmp_path, "--size", "40", "20x30x10", "--repeat=2", op="gemm")
    sizes = ("40 x 40 x 40", "20 x 30 x 10")
    assert [(r["size"], r["implementation"]) for r in results] == [(x, n) for x in sizes for n in ("ours", "PyTorch")]
    assert all(r["tflops"] == pytest.approx(2e-9 * 40**3 / r["median_ms"]) for r in results[:2])
    assert results[1]["times_pytorch"] == 1
    assert "Time of matmul on the simulator" in capsys.readouterr().out


def test_ladder_shows_what_each_rung_gains(tmp_path: Path) -> None:
    plot = tmp_path / "ladder.png"
    results = measure(tmp_path, "--ladder", "--size=128x128x64", "--limit=1", f"--plot={plot}", op="gemm")
    assert [r["rung"] for r in results] == list(range(1, 11))
    naive, coalesced, tiles = results[:3]
    assert coalesced["segments"] * 10 < naive["segments"]
    assert tiles["device_bytes"] * 10 < coalesced["device_bytes"] == naive["device_bytes"]
    assert [r["matrix_products"] for r in results] == [0] * 9 + [1]
    assert image.imread(plot)[..., :3].std() > 0.02


@pytest.mark.parametrize("op", operations.OPERATIONS)
def test_operations_are_counted_against_the_bytes_that_they_need(op: str, tmp_path: Path) -> None:
    results = measure(tmp_path, "--size=64x768", "--backward", op=op)
    # Every thread asks for its row's statistics and its columns' parameters. The gradients of a norm are two kernels,
    # and both read its input and the result's gradient.
    most = {"softmax": 1.01, "elementwise": 1.01, "cross_entropy": 1.8, "norm": 2.9}
    passes = {(r["function"], r["pass"]): r for r in results}
    assert {name for name, _ in passes} == set(operations.OPERATIONS[op])
    for (name, direction), record in passes.items():
        entry = operations.OPERATIONS[op][name]
        moved = entry.moved if direction == "forward" else entry.moved_backward
        assert record["floor_bytes"] == moved * 64 * 768 * 4
        assert record["times_floor"] == record["device_bytes"] / record["floor_bytes"]
        assert 1 <= record["times_floor"] <= most[op], (name, direction)


def test_times_of_operations_are_put_beside_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_counted", None)
    calls: list[tuple[Any, Any]] = []
    timed = lambda ours, theirs, *_: calls.append((ours, theirs)) or {}
    monkeypatch.setattr(operations, "_timed", timed)
    monkeypatch.setattr(operations.Entry, "inputs", lambda self, _: [torch.randn(4, 8, requires_grad=True)])
    operations.measure("softmax", operations.Problem(4, 8, "float32", "mps"), 1, backward=True)
    assert len(calls) == 4
    for ours, theirs in calls:
        found, expected = (x if isinstance(x, tuple) else (x,) for x in (ours(), theirs()))
        assert all(x.shape == y.shape for x, y in zip(found, expected, strict=True))
    record = operations_timed(lambda: None, lambda: None, 10**6, "cpu", 3)
    assert record["ours_is_faster"] == record["pytorch_ms"] / record["ours_ms"]
    assert record["floor_gb_per_s"] == pytest.approx(1 / record["ours_ms"])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(("--size=64",), "--size"), (("--size=0x4",), "--size"), (("--repeat=0",), "--repeat"), (("--op=sum",), "--op")],
)
def test_bad_arguments_of_operations_are_named(
    wrong: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        operations.main(["--op=norm", *wrong])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "words"), [(("--plot=x.png",), "--plot"), (("--size=4x4",), "--size"), (("--repeat=0",), "--repeat")]
)
def test_bad_arguments_of_gemm_are_named(
    wrong: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(["--op=gemm", *wrong])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ("--counters", "--device=mps"),
        ("--plot=x.png",),
        ("--memory", "--counters"),
        ("--variants=plain,colour", "--memory"),
        ("--variants=plain",),
    ],
)
def test_bad_arguments_are_named(wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.parse_arguments(["--op=attention", *wrong])
    assert stop.value.code == 2
    assert wrong[0].partition("=")[0] in capsys.readouterr().err


def test_tokens_and_width_shape_the_problems() -> None:
    sizes = ["--tokens", "16384", "--width", "2048", "--length", "512", "4096", "--head-dim", "64", "128"]
    args = run.parse_arguments(["--op", "attention", "--device", "cuda", *sizes])
    shapes = [(problem.batch, problem.heads, problem.length, problem.head_dim) for problem in run.problems(args)]
    assert shapes == [(32, 32, 512, 64), (4, 32, 4096, 64), (32, 16, 512, 128), (4, 16, 4096, 128)]


def test_the_committed_results_can_be_drawn(tmp_path: Path) -> None:
    (lines,) = (Path(__file__).parent.parent / "docs" / "results").glob("*-attention.jsonl")
    gpu.plot(lines, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
