"""GEMM's tilings: what the tuner tries gives right results, split or not, and the next product uses what it chose."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mps_flash_attn import launch, tune
from mps_flash_attn.launch import BoundLaunch, Launch, Runtime
from mps_flash_attn.ops.gemm.function import gemm
from mps_flash_attn.runtime import simulator
from mps_flash_attn.tune import Choice, Key, Outcome, Subject


def deep() -> Subject:
    """A product so deep for its size that its default tiling splits it."""
    offered = [subject for operation, subject in tune.subjects(simulator.CAPABILITIES, "cpu") if operation == "gemm"]
    return next(x for x in offered if x.shape_class.startswith("32x32x512-nn") and x.dtype == torch.float32)


def test_split_and_whole_products_are_right() -> None:
    subject = deep()
    whole = dataclasses.replace(subject.default, splits=1)
    impossible = dataclasses.replace(subject.default, BM=48)
    result = tune.search(dataclasses.replace(subject, tilings=(whole, impossible)), "cpu")
    assert subject.default.splits > 1
    assert [x.outcome for x in result.trials] == [Outcome.RAN, Outcome.RAN, Outcome.CANNOT_RUN]
    assert "not made of 16 x 16 tiles" in result.trials[2].reason


@pytest.mark.usefixtures("own_store")
def test_a_stored_choice_is_used_by_the_next_product(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, seen, bind = deep(), [], launch.bind

    def bind_and_tell(which: Launch, runtime: Runtime) -> BoundLaunch:
        seen.append(which.kernel)
        return bind(which, runtime)

    monkeypatch.setattr(launch, "bind", bind_and_tell)
    a, b = torch.randn(30, 512), torch.randn(512, 20)
    expected = (a.double() @ b.double()).float()
    torch.testing.assert_close(gemm(a, b, None, 0, False)[0], expected, rtol=1e-4, atol=1e-4)
    assert seen == ["gemm", "gemm_reduce"]

    whole = dataclasses.replace(subject.default, splits=1)
    key = Key("simulator", subject.kernel, subject.shape_class, subject.dtype_name)
    tune.put({key: Choice(dataclasses.asdict(whole), 1.0, None, "ms")})
    torch.testing.assert_close(gemm(a, b, None, 0, False)[0], expected, rtol=1e-4, atol=1e-4)
    assert seen == ["gemm", "gemm_reduce", "gemm"]
