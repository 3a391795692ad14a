"""What a launch costs, from the Python call to the encoded dispatch, and what takes that time.

Run it in the root that has the stand-in for Metal::

    tests/apple/in_root.sh .venv/bin/python -m tests.apple.launch_cost

Nothing is executed, so these are costs of the CPU alone. Three things are not in the figures, because they exist on
macOS alone: Metal's own encoding, in whose place the stand-in checks every call; PyTorch's allocator, in whose place
the pretend device maps pages anew; and for ``torch_mps`` PyTorch's half of ``torch.mps.compile_shader``. In the place
of the last stands the launch of the extension, which does the same: arguments, queue, encoder, dispatch. That is a
model of it, not a measurement.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mps_flash_attn import launch
from mps_flash_attn.ops import calls as prepared_calls
from mps_flash_attn.ops.attention import plan
from mps_flash_attn.ops.attention.function import attention_forward
from mps_flash_attn.ops.attention.problem import Options, describe
from mps_flash_attn.ops.dtypes import accumulator_dtype
from mps_flash_attn.runtime import base, torch_mps

from . import mps
from .build import HERE, ROOT, shared_library
from .metal import native

__all__ = ["CALLS", "METAL", "ROUNDS", "TORCH_MPS", "measure", "report"]

CALLS, ROUNDS = 200, 16

METAL = "runtime metal: a cached launch of the forward kernel"
TORCH_MPS = "runtime torch_mps: the same, with the extension's launch in the place of PyTorch's"
_TORCH_MPS_ALONE = "runtime torch_mps: without any launch"
_EXTENSION = "the extension's kernel, called directly"
_SWIFT = "mfa_encode from C++"
_IDLE = "mfa_encode from C++ on an encoder that does nothing"
_EMPTY = "an empty custom operator with the arguments of attention_forward"
_ALLOCATING = "the same, allocating out and lse"
_ATTENTION = "attention_forward: the custom operator with its cached plan, and the launch through metal"


@torch.library.custom_op("mps_flash_attn_cost::empty", mutates_args=())
def _empty(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float, causal: int) -> None: ...


@torch.library.custom_op("mps_flash_attn_cost::allocating", mutates_args=())
def _allocating(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float, causal: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)


class _Nothing:
    """A library whose kernels take the arguments of a launch and do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        def kernel(*args: Any, threads: Any, group_size: Any) -> None: ...

        return kernel


def _bind_for_torch_mps(planned: launch.Launch, compile_shader: Callable[[str], Any]) -> launch.BoundLaunch:
    """A launch through ``torch_mps`` with another function in the place of ``torch.mps.compile_shader``."""
    theirs = torch.mps.compile_shader
    vars(torch.mps)["compile_shader"] = compile_shader
    torch_mps.compile_shader.cache_clear()
    try:
        return launch.bind(planned, torch_mps)
    finally:
        vars(torch.mps)["compile_shader"] = theirs
        torch_mps.compile_shader.cache_clear()


def _python_round(call: Callable[[], object]) -> Callable[[], float]:
    """Times calls from Python: microseconds of one."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        spent = 1e6 * (time.perf_counter() - start) / CALLS
        torch.mps.synchronize()
        return spent

    return run


def _native_round(record: native.LaunchRecord, *, idle: bool) -> Callable[[], float]:
    """Times `encode_loop` on a new encoder: microseconds of one call."""
    flags = [f"-I{ROOT}", f"-L{native.LIB}", "-lMetalRuntime", f"-Wl,-rpath,{native.LIB}"]
    library = shared_library("libencode_loop.so", [HERE / "encode_loop.cpp"], [ROOT / "csrc/mfa.h"], flags)
    loop = ctypes.CDLL(str(library)).encode_loop
    loop.argtypes = (ctypes.c_void_p, ctypes.POINTER(native.LaunchRecord), ctypes.c_int)
    loop.restype = ctypes.c_double
    standin = native.load().standin

    def run() -> float:
        encoder = standin.standin_make_idle_encoder() if idle else standin.standin_make_encoder()
        spent = float(loop(encoder, record, CALLS))
        if not idle:
            assert standin.standin_end_encoding(encoder) is None
        standin.standin_release(encoder)
        assert spent >= 0, native.load().mfa.mfa_last_error()
        return spent

    return run


def measure() -> dict[str, float]:
    """Microseconds a call in the fastest of the rounds, in which the calls take turns: other work only adds."""
    mps.load_metal()
    metal = base.load("metal")
    os.environ[base.RUNTIME_VARIABLE] = "metal"
    base.for_device.cache_clear()
    base.for_device("mps")  # which checks itself, so while kernels are executed
    prepared_calls.forget()
    query, key, value = (torch.randn(1, 1, 16, 64, device="mps") for _ in range(3))
    out, lse = torch.empty_like(query), torch.empty(query.shape[:3], dtype=accumulator_dtype(query.dtype), device="mps")
    problem = describe(query, key, value, None, Options(0.125), out=out)
    planned = plan.forward(problem, metal.CAPABILITIES)
    unused = (query,) * 10  # in the place of a mask, tables, caches and all that modifies scores
    tensors = query, key, value, *unused, out, lse
    words, threads, group_size = list(planned.words), planned.threads, planned.group_size

    kernel = getattr(metal.compile_shader(planned.text), planned.kernel)
    record = native.Launch(
        native.load().kernel(planned.text, planned.kernel),
        [(tensor.untyped_storage().data_ptr(), 0) for tensor in tensors],
        [struct.pack(f"{len(words)}q", *words)],
        threads,
        group_size,
    ).record()
    bound = launch.bind(planned, metal)
    through_torch_mps = _bind_for_torch_mps(planned, metal.compile_shader)
    without_launch = _bind_for_torch_mps(planned, lambda source: _Nothing())
    arguments = query, key, value, None, 0.125, 0
    operators = torch.ops.mps_flash_attn_cost
    rounds = {
        METAL: _python_round(lambda: bound(*tensors)),
        _EXTENSION: _python_round(lambda: kernel(*tensors, words, threads=threads, group_size=group_size)),
        _SWIFT: _native_round(record, idle=False),
        _IDLE: _native_round(record, idle=True),
        TORCH_MPS: _python_round(lambda: through_torch_mps(*tensors)),
        _TORCH_MPS_ALONE: _python_round(lambda: without_launch(*tensors)),
        _EMPTY: _python_round(lambda: operators.empty(*arguments)),
        _ALLOCATING: _python_round(lambda: operators.allocating(*arguments)),
        _ATTENTION: _python_round(lambda: attention_forward(*arguments)),
    }
    standin = native.load().standin
    standin.standin_set_execution(0)
    try:
        times = [[run() for run in rounds.values()] for _ in range(ROUNDS)]
    finally:
        standin.standin_set_execution(1)
    return dict(zip(rounds, map(min, zip(*times, strict=True)), strict=True))


def report(costs: dict[str, float]) -> str:
    """The costs and their breakdown, one line each."""
    lines = [
        (0, METAL, costs[METAL]),
        (1, "Python: the bound launch", costs[METAL] - costs[_EXTENSION]),
        (1, "C++: arguments, the stream's queue and encoder (torch_mps.mm)", costs[_EXTENSION] - costs[_SWIFT]),
        (1, "Swift: checks and the calls of the encoder", costs[_IDLE]),
        (1, "the stand-in for Metal, in the place of Metal's own encoding", costs[_SWIFT] - costs[_IDLE]),
        (0, TORCH_MPS, costs[TORCH_MPS]),
        (1, "Python: the bound launch, all of it that is this package's", costs[_TORCH_MPS_ALONE]),
        *((0, name, costs[name]) for name in (_EMPTY, _ALLOCATING, _ATTENTION)),
    ]
    return "\n".join(f"{'    ' * depth}{cost:8.2f} us  {name}" for depth, name, cost in lines)


if __name__ == "__main__":
    print(report(measure()))
