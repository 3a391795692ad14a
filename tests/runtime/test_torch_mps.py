"""The runtime torch_mps on CPU tensors: the simulator stands for ``torch.mps.compile_shader``, whose face it has."""

from __future__ import annotations

import functools
import importlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mps_flash_attn import launch
from mps_flash_attn.errors import KernelCompileError
from mps_flash_attn.ops.attention.self_checks import self_checks
from mps_flash_attn.runtime import simulator, torch_mps
from mps_flash_attn.self_check import SelfCheck

SCALE = """
struct Args { long offset; long count[2]; alignas(8) float scale; };
static_assert(sizeof(Args) == 32);
kernel void scale(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                  constant Args& args [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    y[i] = x[i + args.offset] * args.scale + float(args.count[0] - args.count[1]);
}
"""


@dataclass
class StandIn:
    """What was asked of ``torch.mps.compile_shader``: texts, and the arguments of launches by kernel."""

    texts: list[str] = field(default_factory=list)
    launches: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def compile_shader(self, source: str) -> Any:
        self.texts.append(source)
        return _Recording(self, simulator.compile_shader(source))


class _Recording:
    def __init__(self, stand_in: StandIn, library: simulator.ShaderLibrary) -> None:
        self._stand_in = stand_in
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._launch, name)

    def _launch(self, name: str, *args: Any, **options: Any) -> None:
        self._stand_in.launches.append((name, args, options))
        getattr(self._library, name)(*args, **options)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn()
    monkeypatch.setattr(torch.mps, "compile_shader", stand_in.compile_shader)
    torch_mps.compile_shader.cache_clear()
    yield stand_in
    torch_mps.compile_shader.cache_clear()


@pytest.mark.parametrize(("available", "cores"), [(True, 40), (False, 8)])
def test_cores_are_those_that_pytorch_counts(monkeypatch: pytest.MonkeyPatch, available: bool, cores: int) -> None:
    monkeypatch.setattr(torch._C, "_mps_get_core_count", lambda: 40, raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available)
    assert torch_mps.capabilities() == launch.Capabilities(cores=cores)


def checks() -> list[SelfCheck]:
    """Each attention kernel once, on a problem with a mask and grouped heads."""
    return [check for check in self_checks(torch_mps.CAPABILITIES) if check.dtype == torch.float32][-4:]


def test_kernels_launched_through_it_are_accurate(stand_in: StandIn, seed: int) -> None:
    for check in checks():
        measured = check.measure(torch_mps, "cpu")
        assert measured.passed, f"{check.launch.kernel}: {measured}"
    assert {name for name, _, _ in stand_in.launches} == {check.launch.kernel for check in checks()}


def test_a_launch_is_the_plans(stand_in: StandIn, seed: int) -> None:
    for check in checks():
        outputs = [torch.empty_like(output.pytorch) for output in check.outputs]
        launch.bind(check.launch, torch_mps)(*check.inputs, *outputs)
        name, args, options = stand_in.launches[-1]
        assert name == check.launch.kernel
        assert all(given is passed for given, passed in zip((*check.inputs, *outputs), args, strict=False))
        assert len(args) == len(check.inputs) + len(outputs) + 1
        assert options == {"threads": check.launch.threads, "group_size": check.launch.group_size}
        assert stand_in.texts[-1] == check.launch.text


def test_params_are_a_list_of_int64_words(stand_in: StandIn, seed: int) -> None:
    """PyTorch passes a list of ints as int64s, refuses other sequences of numbers, and takes the type of the first."""
    for check in checks():
        check.measure(torch_mps, "cpu")
        words = stand_in.launches[-1][1][-1]
        assert type(words) is list
        assert all(type(word) is int and -(2**63) <= word < 2**63 for word in words)
        assert 0 < 8 * len(words) <= launch.MAX_PARAM_BYTES
        assert tuple(words) == check.launch.words


def test_a_struct_arrives_as_it_was_packed(stand_in: StandIn) -> None:
    words = list(struct.unpack("<4q", struct.pack("<3qf4x", 3, 2**40, 2**40 - 5, -0.75)))
    x, y = torch.arange(16.0), torch.full((13,), torch.nan)
    torch_mps.compile_shader(SCALE).scale(x, y, words, threads=(13, 1, 1), group_size=(4, 1, 1))
    assert torch.equal(y, x[3:] * -0.75 + 5)


def test_a_text_is_compiled_once(stand_in: StandIn) -> None:
    assert torch_mps.compile_shader(SCALE) is torch_mps.compile_shader(SCALE)
    torch_mps.compile_shader(SCALE + "\n")
    assert stand_in.texts == [SCALE, SCALE + "\n"]


def test_the_compilers_words_are_kept(stand_in: StandIn) -> None:
    with pytest.raises(KernelCompileError, match=r"not_a_type"):
        torch_mps.compile_shader("kernel void broken(device not_a_type* x) {}")


@pytest.mark.parametrize("kind", [RuntimeError, SyntaxError])
def test_errors_as_pytorch_raises_them_become_the_packages(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, stand_in: StandIn
) -> None:
    words = "Failed to create metal library, error: program_source:3:9: error: unknown type name 'planted'"
    planted = kind(words)

    def fail(source: str) -> Any:
        raise planted

    with monkeypatch.context() as broken:
        broken.setattr(torch.mps, "compile_shader", fail)
        with pytest.raises(KernelCompileError) as raised:
            torch_mps.compile_shader(SCALE)
        assert str(raised.value) == words
        assert raised.value.__cause__ is planted
    torch_mps.compile_shader(SCALE)  # a failure is not remembered
    assert stand_in.texts == [SCALE]


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
    def interrupt(source: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.mps, "compile_shader", interrupt)
    with pytest.raises(KeyboardInterrupt):
        torch_mps.compile_shader(SCALE)


@pytest.mark.parametrize(
    ("built", "available", "words"),
    [
        (True, True, None),
        (True, False, "needs macOS 14 or newer on Apple silicon"),
        (False, False, "was built without the mps device"),
    ],
)
def test_why_it_cannot_be_used(
    built: bool, available: bool, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available)
    reason = torch_mps.unavailable()
    assert reason is None if words is None else words in str(reason)


def test_the_private_name_of_pytorch_2_6_is_found(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
    with monkeypatch.context() as older:
        older.delattr(torch.mps, "compile_shader")
        older.setattr(torch.mps, "_compile_shader", stand_in.compile_shader, raising=False)
        importlib.reload(torch_mps)
        torch_mps.compile_shader(SCALE)
    importlib.reload(torch_mps)
    assert stand_in.texts == [SCALE]
