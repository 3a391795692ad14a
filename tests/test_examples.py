"""The demo, end to end in a tiny configuration, the faults that it must not overlook, and the README's code."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import classifier
import gpt_mini
import mlp
import pytest
import torch
import training
import transformer_block
from matplotlib import image
from torch import Tensor
from torch.nn import functional

import mps_flash_attn

TINY = ("--device=cpu", "--steps=4", "--layers=1", "--heads=2", "--width=32", "--context=40", "--batch=2", "--sample=6")


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[str, ...]:
    text = tmp_path / "text.txt"
    text.write_text("def square(x):\n    return x * x\n\n" * 40, encoding="utf-8")
    return (*TINY, f"--text={text}", f"--out={tmp_path / 'plots' / 'losses.png'}")


def with_fault(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """Puts ``fault(output)`` behind attention while the patch is on."""
    original_attention, original_patched = functional.scaled_dot_product_attention, mps_flash_attn.patched
    on = [False]

    @contextlib.contextmanager
    def patched(devices: Iterable[str]) -> Iterator[None]:
        with original_patched(devices):
            on[0] = True
            yield
            on[0] = False

    def attention(*args: Any, **kwargs: Any) -> Tensor:
        output = original_attention(*args, **kwargs)
        return fault(output) if on[0] else output

    monkeypatch.setattr(mps_flash_attn, "patched", patched)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)


@pytest.mark.parametrize("options", [(), ("--all-kernels",)], ids=["attention", "all-kernels"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_demo_trains_compares_and_plots(
    arguments: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    dtype: str,
) -> None:
    assert gpt_mini.main((*arguments, *options, f"--dtype={dtype}")) == 0
    printed = capsys.readouterr().out
    assert "OK: every attention call was accelerated" in printed
    assert "0 passed on" in printed
    assert_is_a_plot(tmp_path / "plots" / "losses.png")


def assert_is_a_plot(file: Path) -> None:
    pixels = image.imread(file)
    assert min(pixels.shape[:2]) > 500
    assert pixels[..., :3].std() > 0.05


DIGITS = (mlp, classifier, transformer_block)


@pytest.mark.parametrize("example", DIGITS, ids=lambda example: example.__name__)
def test_examples_on_digits_train_compare_and_plot(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "losses.png"
    assert example.main(("--device=cpu", "--steps=12", "--batch=32", f"--out={file}")) == 0
    printed = capsys.readouterr().out
    assert "OK: the model learnt from our kernels alone" in printed
    for words in ("median step", "peak memory", "held-out accuracy"):
        assert words in printed
    assert_is_a_plot(file)


@pytest.mark.parametrize("example", DIGITS, ids=lambda example: example.__name__)
def test_a_layer_that_is_wrong_fails_the_example(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = mps_flash_attn.nn.Linear.forward
    monkeypatch.setattr(mps_flash_attn.nn.Linear, "forward", lambda self, x: 1.01 * right(self, x))
    assert example.main(("--device=cpu", "--steps=2", "--batch=32", f"--out={tmp_path / 'losses.png'}")) == 1
    assert "FAILED: the two trainings disagree" in capsys.readouterr().out


@pytest.mark.parametrize("example", [gpt_mini, *DIGITS], ids=lambda example: example.__name__)
def test_examples_explain_themselves(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        example.main(("--help",))
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for words in ("--device", "--steps", "--out", "examples:", "Exit code 0"):
        assert words in printed


def test_wrong_outputs_fail_the_demo(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_fault(monkeypatch, lambda output: output * 1.5)
    assert gpt_mini.main(arguments) == 1
    assert "FAILED: the two trainings disagree" in capsys.readouterr().out


def test_wrong_gradients_alone_fail_the_demo(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scale_gradient(output: Tensor) -> Tensor:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * 1.01)
        return output

    with_fault(monkeypatch, scale_gradient)
    assert gpt_mini.main((*arguments, "--steps=1")) == 1
    assert "FAILED: the two trainings disagree" in capsys.readouterr().out


def test_attention_that_is_not_accelerated_fails_the_demo(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mps_flash_attn, "patched", lambda devices: contextlib.nullcontext())
    assert gpt_mini.main(arguments) == 1
    assert "FAILED: not every attention call was accelerated" in capsys.readouterr().out


@pytest.mark.parametrize("losses", [[1.0, math.nan], [math.nan, 1.0]])
def test_nan_never_agrees(losses: list[float]) -> None:
    model = torch.nn.Linear(1, 1)
    gradients = {"weight": torch.ones(1)}
    theirs = training.Run("theirs", model, [1.0, 1.0], first_gradients=gradients)
    assert training.Comparison.of(theirs, theirs, "float32").agrees
    assert not training.Comparison.of(
        training.Run("ours", model, losses, first_gradients=gradients), theirs, "float32"
    ).agrees
    assert not training.Comparison.of(
        training.Run("ours", model, [1.0, 1.0], first_gradients={"weight": torch.tensor([math.nan])}), theirs, "float32"
    ).agrees


def test_the_default_text_is_python_source_of_useful_length() -> None:
    text = gpt_mini.standard_library_text()
    assert len(text) > 300_000
    assert text.count("\ndef ") > 100


def test_a_text_that_is_too_short_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "short.txt"
    text.write_text("short", encoding="utf-8")
    assert gpt_mini.main((*TINY, f"--text={text}")) == 1
    assert "5 characters, too few for a context of 40" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [("--width=30", "--heads=4"), ("--text=/nonexistent",), ("--steps=0",)])
def test_bad_arguments_are_named(wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpt_mini.main(wrong)
    assert stop.value.code == 2
    assert wrong[0].partition("=")[0] in capsys.readouterr().err


def readme_code() -> list[str]:
    readme = Path(__file__).parents[1] / "README.md"
    return re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readmes_code_runs() -> None:
    key = torch.randn(1, 2, 16, 64)
    names: dict[str, Any] = {"query": torch.randn(1, 4, 16, 64), "key": key, "value": key.clone(), "attn_mask": None}
    names |= {"slopes": torch.rand(4), "sinks": torch.randn(4)}
    code = readme_code()
    assert len(code) >= 4
    try:
        for block in code:
            exec(block, names)
    finally:
        mps_flash_attn.unpatch()
    assert names["out"].shape == names["query"].shape
    assert names["x"].tolist()[0] == 63.0


def test_the_readmes_kernel_without_its_barrier_is_found_out() -> None:
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    block = readme_code()[-1]
    assert barrier in block
    with pytest.raises(mps_flash_attn.KernelCheckError, match=r"data race.*threadgroup array 'copy'.*thread"):
        exec(block.replace(barrier, ""), {})
