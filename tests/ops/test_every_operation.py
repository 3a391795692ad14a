"""What is asked of every operation alike: its checks pass and can fail, and the examples in its docstrings run."""

from __future__ import annotations

import dataclasses
import doctest
import importlib

import pytest
import torch

from mps_flash_attn import doctor
from mps_flash_attn.runtime import simulator

OPERATIONS = dict(doctor.operations())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_self_checks_pass_and_can_fail(operation: str, seed: int) -> None:
    for check in OPERATIONS[operation](simulator.CAPABILITIES):
        assert check.measure(simulator, "cpu").passed, check.problem
        for index, expected in enumerate(check.outputs):
            wrong = expected.reference.clone(memory_format=torch.contiguous_format)
            wrong.view(-1)[-1] += 1 + wrong[wrong.isfinite()].abs().max()  # more than any dtype's rounding
            faulty = dataclasses.replace(expected, reference=wrong, pytorch=wrong.to(expected.pytorch.dtype))
            outputs = (*check.outputs[:index], faulty, *check.outputs[index + 1 :])
            measured = dataclasses.replace(check, outputs=outputs).measure(simulator, "cpu")
            assert not measured.passed, f"{expected.name} of {check.problem}"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_examples_in_docstrings(operation: str) -> None:
    api = importlib.import_module(f"mps_flash_attn.ops.{operation}.api")
    results = doctest.testmod(api)
    assert results.failed == 0
    assert results.attempted > 0
