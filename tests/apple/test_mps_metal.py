"""The runtime ``metal``: what it launches, what it refuses before anything is encoded, and how it fails."""

from __future__ import annotations

import functools
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mps_flash_attn import errors, flash_attention
from mps_flash_attn.ops import calls
from mps_flash_attn.runtime import base, metal

from . import launch_cost, mps
from .build import ROOT, shared_library
from .metal import native

pytestmark = pytest.mark.usefixtures("device")

TEXT = """
#include <metal_stdlib>
kernel void scale(device float* x, constant float& factor, constant long* terms,
                  uint i [[thread_position_in_grid]]) {
    x[i] = x[i] * factor + float(terms[0] - terms[1]);
}
kernel void store(device int* x, constant int& value, constant short& other) { x[0] = value; x[1] = other; }
"""


def _scale(*args: Any, **options: Any) -> None:
    metal.compile_shader(TEXT).scale(*args, **options)


def _dispatches() -> int:
    return native.load().counts()["dispatches"]


def test_arguments_reach_the_kernel(seed: int) -> None:
    whole = torch.randn(12, device="mps")
    before = whole.cpu()
    _scale(whole[4:10], 3.0, [7, 5], threads=6, group_size=4)
    assert torch.equal(whole.cpu()[4:10], before[4:10] * 3 + 2)
    assert torch.equal(whole.cpu()[:4], before[:4])
    assert torch.equal(whole.cpu()[10:], before[10:])
    stored = torch.zeros(2, dtype=torch.int32, device="mps")
    metal.compile_shader(TEXT).store(stored, 7, -5, threads=1, arg_casts={1: "int32", 2: "int16"})
    assert stored.tolist() == [7, -5]


def test_an_empty_grid_encodes_nothing() -> None:
    x, before = torch.ones(4, device="mps"), _dispatches()
    _scale(x, 2.0, [0, 0], threads=(0, 4), group_size=(1, 1))
    assert _dispatches() == before
    assert x.tolist() == [1.0] * 4


def test_launches_join_pytorchs_encoder_in_order() -> None:
    x = torch.ones(64, device="mps")
    for _ in range(3):
        _scale(x, 2.0, [1, 0], threads=64, group_size=32)
        x += 1  # PyTorch's own work on the same stream
    assert x.tolist() == [((1 * 2 + 2) * 2 + 2) * 2 + 2] * 64


def test_a_tensor_may_die_before_its_launch_runs() -> None:
    for _ in range(50):
        x = torch.ones(1 << 16, device="mps")
        _scale(x, 2.0, [0, 0], threads=1 << 16, group_size=256)
        del x
    gc.collect()
    torch.mps.synchronize()
    assert native.load().standin.standin_take_fault() is None


def _freed() -> torch.Tensor:
    x = torch.ones(4, device="mps")
    mps.free_storage(x)
    return x


_ONE: dict[str, Any] = {"threads": 1, "group_size": 1}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: _scale(torch.ones(4), 1.0, [0, 0], **_ONE), ValueError, "argument 0 .*'scale' is on cpu"),
        (lambda x: _scale(x, torch.ones(1), [0, 0], **_ONE), ValueError, "argument 1 .* is on cpu"),
        (lambda x: _scale(_freed(), 1.0, [0, 0], **_ONE), ValueError, "its memory was freed"),
        (lambda x: _scale(x, "1.0", [0, 0], **_ONE), TypeError, "argument 1 .* is or holds a str"),
        (lambda x: _scale(x, None, [0, 0], **_ONE), TypeError, "NoneType"),
        (lambda x: _scale(x, 1.0, [], **_ONE), ValueError, "takes 0 bytes"),
        (lambda x: _scale(x, 1.0, [0] * 513, **_ONE), ValueError, "takes 4104 bytes"),
        (lambda x: _scale(x, 1.0, [2**63, 0], **_ONE), OverflowError, "too big"),
        (lambda x: _scale(x, 300, [0, 0], arg_casts={1: "int8"}, **_ONE), TypeError, "300 does not fit"),
        (lambda x: _scale(x, 1.0, [0, 0], arg_casts="fp8", **_ONE), ValueError, "'fp8'; accepted are 'int8'"),
        (lambda x: _scale(*[x] * 32, **_ONE), TypeError, "32 arguments; Metal has 31"),
        (lambda x: _scale(x, 1.0, [0, 0.5], **_ONE), TypeError, "argument 2 .* holds a float"),
        (lambda x: _scale(x, 1.0, [0, 0], threads=-1, group_size=1), ValueError, "threads is -1"),
        (lambda x: _scale(x, 1.0, [0, 0], threads=1, group_size=0), ValueError, "group_size is 0"),
        (lambda x: _scale(x, 1.0, [0, 0], threads=(1, 1), group_size=1), ValueError, "equally many"),
        (lambda x: _scale(x, 1.0, [0, 0], threads=(1,) * 4, group_size=1), ValueError, "one to three ints"),
        (lambda x: _scale(1.0, 1.0, [0, 0]), ValueError, "threads is needed"),
        (lambda x: _scale(x, 1.0, [0, 0], threads=4, group_size=2048), errors.KernelLaunchError, "2048"),
    ],
)
def test_bad_input_is_refused_before_anything_is_encoded(
    call: Callable[[torch.Tensor], None], error: type[Exception], words: str
) -> None:
    x = torch.ones(4, device="mps")
    before = _dispatches()
    with pytest.raises(error, match=words):
        call(x)
    assert _dispatches() == before
    _scale(x, 2.0, [0, 0], threads=4, group_size=4)
    assert x.tolist() == [2.0] * 4


_OLD_SYSTEM = """
#include "csrc/mfa.h"
extern "C" MFAStatus mfa_device_info(void*, MFADeviceInfo* info) {
    *info = MFADeviceInfo{};
    return MFA_OK;
}
"""

_LAUNCH_BFLOAT = """
from tests.apple import mps
mps.load_metal()
import torch
from mps_flash_attn.runtime import metal
store = metal.compile_shader("kernel void store(device ushort* x) { x[0] = 1; }").store
x = torch.zeros(1, dtype=torch.bfloat16, device="mps")
try:
    store(x, threads=1, group_size=1)
except TypeError as error:
    assert "argument 0 of kernel 'store' is bfloat16, which needs macOS 14" in str(error)
    assert x.item() == 0
else:
    raise AssertionError("bfloat16 was launched")
"""


def test_bfloat16_is_refused_where_the_system_has_none(tmp_path: Path) -> None:
    source = tmp_path / "old_system.cpp"
    source.write_text(_OLD_SYSTEM)
    library = shared_library("libold_system.so", [source], [ROOT / "csrc/mfa.h"], [f"-I{ROOT}"])
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    result = subprocess.run(
        [sys.executable, "-c", _LAUNCH_BFLOAT], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_running_out_of_memory_loses_nothing(seed: int) -> None:
    query = torch.randn(1, 2, 64, 32, device="mps", requires_grad=True)

    def step() -> list[torch.Tensor]:
        out = flash_attention(query, query, query)
        (gradient,) = torch.autograd.grad(out.sum(), query)
        return [out.detach().cpu(), gradient.cpu()]

    def fail_at(bytes_: int) -> None:
        mps.limit_memory(torch.mps.current_allocated_memory() + bytes_)
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            step()
        mps.limit_memory()

    of_out = query.numel() * query.element_size()
    for bytes_ in (0, of_out, 3 * of_out):  # nothing prepared yet: no room for out, for lse, for gradients
        calls.forget()
        base.for_device.cache_clear()
        metal.unavailable.cache_clear()  # so that the self-check runs out of memory first
        fail_at(bytes_)
    expected = step()
    for bytes_ in (0, of_out, 3 * of_out):
        fail_at(bytes_)
        assert all(map(torch.equal, step(), expected))


def test_compile_errors_keep_the_compilers_words() -> None:
    with pytest.raises(errors.KernelCompileError, match=r"(?s)'broken'.*not_a_type"):
        metal.compile_shader("kernel void broken(device not_a_type* x) {}").broken  # noqa: B018
    with pytest.raises(errors.KernelCompileError, match="absent"):
        metal.compile_shader(TEXT).absent  # noqa: B018
    with pytest.raises(TypeError, match="source must be a str"):
        metal.compile_shader(b"")  # type: ignore[arg-type]


def test_an_exception_on_the_queue_reaches_python_and_nothing_is_lost() -> None:
    x = torch.ones(4, device="mps")
    torch.mps.synchronize()
    torch.ops.pretend_mps.fail_next_encoder()
    with pytest.raises(errors.KernelLaunchError, match="planted: no encoder"):
        _scale(x, 2.0, [0, 0], threads=4, group_size=4)
    assert x.tolist() == [1.0] * 4
    _scale(x, 2.0, [0, 0], threads=4, group_size=4)
    assert x.tolist() == [2.0] * 4


def test_a_stream_without_an_encoder_is_told_as_such() -> None:
    x = torch.ones(4, device="mps")
    torch.mps.synchronize()
    torch.ops.pretend_mps.lose_next_encoder()
    with pytest.raises(errors.KernelLaunchError, match="no command encoder, as it does without memory"):
        _scale(x, 2.0, [0, 0], threads=4, group_size=4)
    _scale(x, 2.0, [0, 0], threads=4, group_size=4)
    assert x.tolist() == [2.0] * 4


def test_the_device_notices_an_encoder_fetched_off_its_queue() -> None:
    with pytest.raises(RuntimeError, match="off the stream's queue"):
        torch.ops.pretend_mps.encoder_off_queue()


def test_a_failing_self_check_leaves_its_place_to_torch_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = metal._SELF_CHECK.replace("* 2", "* 3")
    monkeypatch.setattr(metal, "_SELF_CHECK", wrong)
    metal.unavailable.cache_clear()
    base.for_device.cache_clear()
    with pytest.raises(ValueError, match=r"MPS_FLASH_ATTN_RUNTIME='metal' cannot be used .* wrong results"):
        base.for_device("mps")
    monkeypatch.delenv(base.RUNTIME_VARIABLE)
    assert base.for_device("mps") is base.load("torch_mps")
    monkeypatch.undo()
    metal.unavailable.cache_clear()
    base.for_device.cache_clear()
    assert base.for_device("mps") is metal


def test_threads_compile_and_launch_at_once(seed: int) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            own = metal.compile_shader(TEXT.replace("scale", f"scale_{number % 3}"))
            x = torch.full((256,), float(number), device="mps")
            for _ in range(25):
                getattr(own, f"scale_{number % 3}")(x, 1.0, [1, 0], threads=256, group_size=64)
            assert x.tolist() == [number + 25.0] * 256
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_many_launches_of_varying_shapes_leave_nothing_behind() -> None:
    standin = native.load().standin
    library = metal.compile_shader(TEXT)

    def launch(times: int) -> None:
        for i in range(times):
            x = torch.empty(1 + i % 997, device="mps")
            library.scale(x, 1.0, [0, i], threads=x.numel(), group_size=1 + i % 64)
            if i % 100 == 0:
                torch.mps.synchronize()
        torch.mps.synchronize()
        gc.collect()

    standin.standin_set_execution(0)
    try:
        launch(5000)
        pipelines, resident = metal.cache_stats()["pipelines"], _resident_bytes()
        launch(10000)
    finally:
        standin.standin_set_execution(1)
    assert metal.cache_stats()["pipelines"] == pipelines
    assert _resident_bytes() - resident <= 4 << 20


def test_texts_are_not_kept_for_good(tmp_path: Path) -> None:
    """What Python keeps of texts is bounded, and what Swift keeps follows."""
    assert metal.compile_shader.cache_info().maxsize is not None
    most = 8
    bounded = functools.lru_cache(maxsize=most)(metal.compile_shader.__wrapped__)
    metal.compile_shader.cache_clear()
    metal._metal.configure(str(tmp_path), "1.0", most, 0)
    before = metal.cache_stats()
    native.load().simulate(False)
    try:
        for i in range(100):
            bounded(f"// {i}\n{TEXT}").scale  # noqa: B018
        after = metal.cache_stats()
    finally:
        native.load().simulate(True)
        metal._configure.cache_clear()
        metal._configure()
    assert after["libraries"] - before["libraries"] == 100
    assert after["kernels"] - before["kernels"] <= most


_SECOND_PROCESS = """
import json
from tests.apple import mps
mps.load_metal()
import torch
from mps_flash_attn import flash_attention
from mps_flash_attn.runtime import metal
query = torch.ones(1, 1, 16, 16, device="mps", requires_grad=True)
flash_attention(query, query, query).sum().backward()
torch.mps.synchronize()
print(json.dumps(metal.cache_stats()))
"""


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "MPS_FLASH_ATTN_CACHE_DIR": str(tmp_path)}
    results = [
        subprocess.run([sys.executable, "-c", _SECOND_PROCESS], env=environment, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert [result.returncode for result in results] == [0, 0], results[-1].stderr
    first, second = (json.loads(result.stdout) for result in results)
    kernels = 5  # the self-check, one forward and three backward kernels
    assert (first["compiled"], first["archive_hits"], first["libraries"]) == (kernels, 0, kernels)
    assert (second["compiled"], second["archive_hits"], second["libraries"]) == (0, kernels, kernels)


def test_cached_launches_keep_their_bars() -> None:
    """15 and 20 microseconds; idle machines need a third of that, so that busy ones pass."""
    before = _dispatches()
    costs = launch_cost.measure()
    print(launch_cost.report(costs))
    assert _dispatches() - before == 5 * launch_cost.CALLS * launch_cost.ROUNDS  # what was timed was encoded
    assert costs[launch_cost.METAL] <= 15
    assert costs[launch_cost.TORCH_MPS] <= 20
