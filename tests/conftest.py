"""Fixtures that all tests share, and the choice of the runtime that CPU tensors are computed by."""

from __future__ import annotations

import importlib
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest
import torch

from mps_flash_attn import launch, tune
from mps_flash_attn.ops import calls
from mps_flash_attn.runtime import base, simulator
from tests import on_gpu

# A first example compiles kernels, so no deadline; hypothesis prints the example and how to run it again.
hypothesis.settings.register_profile("package", deadline=None, print_blob=True)
hypothesis.settings.load_profile("package")

# What somebody tuned on this machine is not what tests expect.
os.environ[tune.VARIABLE] = "0"

#: Set it to the seed that a failure printed, to see that failure again.
SEED_VARIABLE = "MPS_FLASH_ATTN_TEST_SEED"


@pytest.fixture
def seed() -> int:
    """A fresh seed, given to PyTorch's generator too; pytest prints it with a failure."""
    value = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"{SEED_VARIABLE}={value}")
    torch.manual_seed(value)
    return value


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--runtime",
        choices=("simulator", *on_gpu.RUNTIMES),
        default="simulator",
        help="what computes the operations' tests; others than the simulator copy their CPU tensors to a GPU and back",
    )


def _on_gpu(config: pytest.Config) -> bool:
    return bool(config.getoption("--runtime") != "simulator")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what the runtime at hand cannot do, each with its reason."""
    reason = base.why_not("cuda")
    no_gpu = pytest.mark.skip(reason=f"needs an NVIDIA GPU: {reason}")
    no_simulator = pytest.mark.skip(reason=_PUT_ASIDE)
    too_large = pytest.mark.skip(reason="--runtime would copy gigabytes that are only mapped")
    for item in items:
        if reason is not None and item.get_closest_marker("cuda"):
            item.add_marker(no_gpu)
        if _on_gpu(config) and _asks_simulator(item):
            item.add_marker(no_simulator)
        if _on_gpu(config) and item.path.stem == "test_huge":
            item.add_marker(too_large)


_PUT_ASIDE = "looks into the simulator, which --runtime puts aside"


def _asks_simulator(item: pytest.Item) -> bool:
    """Whether a test is about the simulator, the tilings that it has by default, or runtimes themselves."""
    folder, name = item.path.relative_to(Path(__file__).parent).parts[0], item.path.stem
    return folder in ("apple", "simulator", "runtime") or name.endswith(("_checks", "_counters", "_tilings"))


def _no_simulator(*args: object, **options: object) -> NoReturn:
    pytest.skip(_PUT_ASIDE)


@pytest.fixture(scope="session", autouse=True)
def _runtime(request: pytest.FixtureRequest) -> Iterator[None]:
    """With ``--runtime``, CPU tensors are computed on a GPU."""
    if not _on_gpu(request.config):
        yield
        return
    name = request.config.getoption("--runtime")
    if os.environ.get("MPS_FLASH_ATTN_CHECK_APPLE") in ("metal", "torch_mps"):
        importlib.import_module("tests.apple.mps").pretend(name)
    gpu, load = on_gpu.OnGpu(name), base.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulator, "check", _no_simulator)
        patch.setattr(simulator, "profile", _no_simulator)
        patch.setattr(base, "load", lambda name: gpu if name == "simulator" else load(name))
        base.for_device.cache_clear()
        calls.forget()
        yield
    base.for_device.cache_clear()
    calls.forget()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No graphs of other tests, and none left for them."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def assert_refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object], type[Exception], str], None]:
    """Asserts that a call raises an error of just this type, in whose message are these words, and launches nothing."""

    def no_launch(*arguments: object) -> NoReturn:
        raise AssertionError("a kernel is prepared")

    def check(call: Callable[[], object], error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=re.escape(words)) as caught:
            call()
        assert type(caught.value) is error

    calls.forget()
    monkeypatch.setattr(launch, "bind", no_launch)
    return check
