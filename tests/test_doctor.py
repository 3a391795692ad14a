"""The doctor: what it says of a healthy machine, and that it notices every kind of sick one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mps_flash_attn import cli, doctor, patch_check, source
from mps_flash_attn.launch import Capabilities
from mps_flash_attn.ops.attention import function
from mps_flash_attn.ops.calls import PreparedCalls
from mps_flash_attn.runtime import base, simulator
from mps_flash_attn.self_check import SelfCheck

ON_A_MAC = torch.backends.mps.is_available()

#: Each key of a check and the types of its value.
NUMBER, MAYBE_NUMBER, MAYBE_TEXT = (int, float), (int, float, type(None)), (str, type(None))
CHECK = {
    **dict.fromkeys(("operation", "kernel", "problem", "dtype", "runtime", "device"), str),
    **dict.fromkeys(("error", "bound", "prepare_ms", "launch_ms"), MAYBE_NUMBER),
    **dict.fromkeys(("output", "failure"), MAYBE_TEXT),
    "passed": bool,
}
RUNTIME = {"name": str, "device": str, "serves": bool, "unavailable": MAYBE_TEXT}
CACHE = {"name": str, "folder": str, "files": int, "bytes": int, "problem": MAYBE_TEXT}
ENVIRONMENT = dict.fromkeys(("package", "system", "machine", "GPU", "Python", "PyTorch"), str)
REPORT = {
    "schema": int,
    "verdict": str,
    "exit_code": int,
    "environment": dict,
    "compiler": str,
    "caches": list,
    "runtimes": list,
    "checks": list,
    "untested": list,
}


def assert_shape(value: dict[str, Any], shape: dict[str, Any]) -> None:
    assert value.keys() == shape.keys()
    for key, kind in shape.items():
        assert isinstance(value[key], kind), f"{key} is {value[key]!r}"


def assert_schema(report: dict[str, Any]) -> None:
    assert_shape(report, REPORT)
    assert_shape(report["environment"], ENVIRONMENT)
    for entries, shape in (("caches", CACHE), ("runtimes", RUNTIME), ("checks", CHECK)):
        for entry in report[entries]:
            assert_shape(entry, shape)
    assert all(isinstance(text, str) for text in report["untested"])


@pytest.fixture
def one_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves of each operation's checks the first for each kernel."""
    operations = doctor.operations

    def shortened(self_checks: Callable[[Capabilities], Iterator[SelfCheck]]) -> Any:
        def first(capabilities: Capabilities) -> list[SelfCheck]:
            kernels: dict[str, SelfCheck] = {}
            for check in self_checks(capabilities):
                kernels.setdefault(check.launch.kernel, check)
            return list(kernels.values())

        return first

    monkeypatch.setattr(doctor, "operations", lambda: ((name, shortened(make)) for name, make in operations()))


@pytest.fixture
def wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants a fault in one kernel: the dQ kernel takes lse for delta."""
    specialise = source.specialise

    def with_fault(path: str, defines: tuple[source.Define, ...]) -> str:
        text = specialise(path, defines)
        if not path.endswith("backward_dq.metal"):
            return text
        assert text.count("lse_rows[r], delta_rows[r]") == 1
        return text.replace("lse_rows[r], delta_rows[r]", "lse_rows[r], lse_rows[r]")

    monkeypatch.setattr(source, "specialise", with_fault)
    monkeypatch.setattr(function, "_backward_calls", {})


def test_every_kernel_of_the_package_is_checked_in_each_dtype() -> None:
    checked = {
        (check.launch.file, check.dtype)
        for _, self_checks in doctor.operations()
        for check in self_checks(Capabilities())
    }
    dtypes = torch.float32, torch.float16, torch.bfloat16
    assert checked == {(file, dtype) for file in source.kernel_files() for dtype in dtypes}


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "FAILED" not in printed
    for file in source.kernel_files():
        assert Path(file).stem in printed
    assert str(torch.__version__) in printed
    assert printed.rstrip().splitlines()[-1].startswith("OK: ")


@pytest.mark.skipif(ON_A_MAC, reason="this machine has an Apple GPU")
@pytest.mark.usefixtures("one_problem")
def test_without_an_apple_gpu_it_says_what_was_not_tested(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    untested = capsys.readouterr().out.split("Not tested:")[1]
    assert "No Apple GPU took part: Apple's compiler has not seen the kernels" in untested
    for name in base.RUNTIMES["mps"]:
        assert f"Runtime {name} (mps tensors): " in untested


@pytest.mark.skipif(ON_A_MAC, reason="this machine has an Apple GPU")
def test_nothing_to_check_has_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "mps"]) == 2
    assert "NOTHING CHECKED" in capsys.readouterr().out


@pytest.mark.usefixtures("one_problem", "wrong_kernel")
def test_a_wrong_kernel_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    failed = {line.split()[2] for line in printed.splitlines() if line.startswith("FAILED ")}
    assert failed == {"attention_backward_dq", "(all"}
    assert "dq differs by" in printed
    assert "FAILED: 2 of" in printed


@pytest.mark.usefixtures("one_problem")
def test_an_output_never_written_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mps_flash_attn.self_check.bind", lambda launch, runtime: lambda *tensors: None)
    report = doctor.examine(["cpu"])
    assert report.verdict is doctor.Verdict.FAILED
    alone = [check for check in report.checks if check.kernel != "(all of them)"]
    assert all(check.error is None and "differs by nan" in str(check.failure) for check in alone)
    assert_schema(json.loads(json.dumps(report.as_json(), allow_nan=False)))


@pytest.mark.usefixtures("one_problem")
def test_a_call_that_is_not_accelerated_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_check, "patched", lambda devices: contextlib.nullcontext())
    (failed,) = (check for check in doctor.examine(["cpu"]).checks if not check.passed)
    assert failed.kernel == "(all of them)"
    assert "the patch left the call to PyTorch" in str(failed.failure)


@pytest.mark.usefixtures("one_problem")
def test_a_kernel_that_does_not_compile_shows_the_compilers_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    specialise = source.specialise
    monkeypatch.setattr(source, "specialise", lambda *args: specialise(*args) + "\nnot_a_type planted;\n")
    assert cli.main(["doctor", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "error: " in printed
    assert "'not_a_type'" in printed


def test_without_a_compiler_nothing_is_checked_and_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPS_FLASH_ATTN_CXX", "no-such-compiler")
    assert cli.main(["doctor", "--device", "cpu"]) == 2
    printed = capsys.readouterr().out
    assert "the C++ compiler 'no-such-compiler'" in printed.split("Not tested:")[1]
    assert printed.rstrip().splitlines()[-1].startswith("NOTHING CHECKED: ")


@pytest.mark.usefixtures("one_problem")
def test_a_cache_that_cannot_be_used_fails_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    monkeypatch.setenv("MPS_FLASH_ATTN_CACHE_DIR", str(in_the_way))
    assert cli.main(["doctor", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert f"{in_the_way} is not a folder" in printed.split("Failures:")[0]
    assert "CacheError: cannot keep compiled kernels" in printed


def test_a_runtime_that_was_not_built_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "RUNTIMES", {"cpu": ("missing",)})
    report = doctor.examine()
    assert report.verdict is doctor.Verdict.NOTHING_CHECKED
    assert "it was not built" in str(report.runtimes[0].unavailable)


@pytest.fixture
def forced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forces the runtime that the test is parametrized with."""
    monkeypatch.setenv(base.RUNTIME_VARIABLE, request.param)
    monkeypatch.setattr(function, "_forward_calls", PreparedCalls())
    base.for_device.cache_clear()
    yield
    base.for_device.cache_clear()


@pytest.mark.usefixtures("one_problem", "forced")
@pytest.mark.parametrize("forced", ["no-such-runtime"], indirect=True)
def test_a_runtime_that_is_forced_and_missing_fails_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "cpu"]) == 1
    failures = capsys.readouterr().out.split("Failures:")[1]
    assert "1 x ValueError: MPS_FLASH_ATTN_RUNTIME='no-such-runtime' does not run 'cpu' tensors" in failures


@pytest.mark.usefixtures("one_problem", "forced")
@pytest.mark.parametrize("forced", ["torch_mps"], indirect=True)
def test_calls_on_a_device_whose_runtime_is_not_wanted_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "(all of them)" not in printed
    assert "Calls on cpu tensors: MPS_FLASH_ATTN_RUNTIME='torch_mps' forces" in printed.split("Not tested:")[1]


@pytest.mark.usefixtures("one_problem")
def test_json_is_one_object_of_a_fixed_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert_schema(report)
    assert (report["schema"], report["verdict"], report["exit_code"]) == (doctor.SCHEMA, "fine", 0)
    assert [runtime["name"] for runtime in report["runtimes"]] == ["simulator"]
    assert all(check["passed"] and check["error"] <= check["bound"] for check in report["checks"])


@pytest.mark.usefixtures("one_problem")
def test_two_examinations_see_the_same_numbers_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = ([check.error for check in doctor.examine(["cpu"]).checks] for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"devices contains 'xpu'; accepted: \['cpu', 'cuda', 'mps'\]"):
        doctor.examine(["xpu"])


def test_the_verdict_follows_from_the_checks() -> None:
    passed = doctor.CheckResult("op", "kernel", "problem", "float32", "simulator", "cpu")
    failed = dataclasses.replace(passed, failure="planted")
    report = doctor.Report({}, "", (), (), (passed, failed), ())
    assert report.verdict is doctor.Verdict.FAILED
    assert dataclasses.replace(report, checks=(passed,)).verdict is doctor.Verdict.FINE
    assert dataclasses.replace(report, checks=()).verdict is doctor.Verdict.NOTHING_CHECKED


def test_the_simulator_can_be_used_here() -> None:
    assert simulator.unavailable() is None


def test_python_m_shows_its_commands_and_exit_codes() -> None:
    for arguments, words in ((["--help"], "patch()"), (["doctor", "--help"], "a check failed")):
        command = [sys.executable, "-m", "mps_flash_attn", *arguments]
        assert words in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_reader_that_stops_reading_is_no_error() -> None:
    command = [sys.executable, "-m", "mps_flash_attn", "doctor", "--device", "mps"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
