"""The doctor on a machine with an ``mps`` device: every kernel through every runtime that can be used there."""

from __future__ import annotations

import json
import os

import pytest

from mps_flash_attn import cli
from mps_flash_attn.runtime import base


@pytest.mark.usefixtures("device")
def test_every_kernel_passes_on_every_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    preferred = os.environ[base.RUNTIME_VARIABLE]
    code = cli.main(["doctor", "--json", "--device", "mps"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0, [check for check in report["checks"] if not check["passed"]]
    assert [state["name"] for state in report["runtimes"] if state["serves"]] == [preferred]
    assert {check["runtime"] for check in report["checks"]} == {preferred, "torch_mps"}
    assert {check["device"] for check in report["checks"]} == {"mps"}
    assert report["environment"]["GPU"].startswith(
        "Simulated GPU, family Apple" if preferred == "metal" else "an Apple"
    )
    assert "No Apple GPU took part" not in "".join(report["untested"])
