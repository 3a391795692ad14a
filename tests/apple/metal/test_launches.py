"""Launches through the C ABI: results, order, refusals before anything is encoded, and the validation behind them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mps_flash_attn.launch import Launch as PlannedLaunch
from mps_flash_attn.ops.attention import cases, function
from mps_flash_attn.ops.calls import PreparedCalls
from tests.ops.attention import ours

from . import native
from .kernels import SCALE, distinct


def _scale(metal: native.Runtime, pointer: int, factor: float = 3.0, **changes: Any) -> native.Launch:
    settings: dict[str, Any] = {
        "kernel": metal.kernel(SCALE, "scale"),
        "buffers": [(pointer, 0)],
        "data": [struct.pack("f", factor)],
        "threads": (8, 1, 1),
        "group_size": (4, 1, 1),
    }
    return native.Launch(**{**settings, **changes})


def _floats(buffer: native.Buffer) -> list[float]:
    return np.frombuffer(buffer.read(), np.float32).tolist()


def test_a_launch_runs_when_the_encoder_ends(metal: native.Runtime) -> None:
    with metal.buffer(np.arange(8, dtype=np.float32).tobytes()) as x:
        with metal.encoder() as encoder:
            metal.encode(encoder, _scale(metal, x.pointer))
            assert _floats(x) == list(range(8))
        assert _floats(x) == [3 * i for i in range(8)]


def test_offsets_and_uneven_grids(metal: native.Runtime) -> None:
    with metal.buffer(np.ones(8, dtype=np.float32).tobytes()) as x:
        metal.run(_scale(metal, x.pointer, buffers=[(x.pointer, 8)], threads=(5, 1, 1)))
        assert _floats(x) == [1, 1, 3, 3, 3, 3, 3, 1]


def test_a_sequence_runs_in_order_with_barriers_where_asked(metal: native.Runtime) -> None:
    before = metal.counts()
    with metal.buffer(np.ones(8, dtype=np.float32).tobytes()) as x:
        metal.run(_scale(metal, x.pointer, 2.0), _scale(metal, x.pointer, 5.0, waits=True))
        assert _floats(x) == [10.0] * 8
    after = metal.counts()
    assert after["barriers"] - before["barriers"] == 1
    assert after["executed"] - before["executed"] == 2


def test_a_buffer_may_be_released_once_it_is_encoded(metal: native.Runtime) -> None:
    with metal.encoder() as encoder, metal.buffer(32) as x:
        metal.encode(encoder, _scale(metal, x.pointer))


def test_a_grid_without_threads_does_nothing(metal: native.Runtime) -> None:
    before = metal.counts()["dispatches"]
    with metal.buffer(32) as x:
        metal.run(_scale(metal, x.pointer, threads=(0, 1, 1)))
    assert metal.counts()["dispatches"] == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"indices": (31, 1)}, "buffer index 31; there are 0 to 30"),
        ({"indices": (1, 1)}, "buffer index 1 is given twice"),
        ({"data": [bytes(4097)]}, "4097 bytes for buffer 1; 1 to 4096"),
        ({"data": [b""]}, "0 bytes for buffer 1"),
        ({"group_size": (1025, 1, 1)}, "1025 x 1 x 1 threads; this kernel may have 1 to 1024"),
        ({"group_size": (2**32 - 1,) * 3}, "4294967295 x 4294967295"),
        ({"group_size": (0, 1, 1)}, "0 x 1 x 1 threads"),
        ({"buffers": [(None, 0)]}, "buffer 0 is no buffer"),
        ({"kernel": 10**9}, "no kernel number 1000000000"),
    ],
)
def test_what_metal_does_not_allow_is_refused_before_encoding(
    metal: native.Runtime, changes: dict[str, Any], words: str
) -> None:
    before = metal.counts()["dispatches"]
    with metal.buffer(np.ones(8, dtype=np.float32).tobytes()) as x:
        good, bad = _scale(metal, x.pointer), _scale(metal, x.pointer, **changes)
        with metal.encoder() as encoder, pytest.raises(native.MetalError, match=words):
            metal.encode(encoder, good, bad)
        assert metal.counts()["dispatches"] == before
        metal.run(good)
        assert _floats(x) == [3.0] * 8


def test_an_offset_beyond_the_buffer_is_refused(metal: native.Runtime) -> None:
    with (
        metal.buffer(32) as x,
        metal.encoder() as encoder,
        pytest.raises(native.MetalError, match="offset 32 of buffer 0 is beyond its 32 bytes"),
    ):
        metal.encode(encoder, _scale(metal, x.pointer, buffers=[(x.pointer, 32)]))


@pytest.mark.parametrize(
    ("offset", "indices", "words"),
    [
        (0, (0, 2), "buffer 1 is not bound"),
        (0, (2, 1), "buffer 0 is not bound"),
        (2, (0, 1), "offset 2 of buffer 0 is no multiple of 4"),
    ],
)
def test_the_validation_finds_what_only_a_kernel_knows(
    metal: native.Runtime, offset: int, indices: tuple[int, int], words: str
) -> None:
    with metal.buffer(64) as x, pytest.raises(native.MetalError, match=words):
        metal.run(_scale(metal, x.pointer, buffers=[(x.pointer, offset)], indices=indices))


@pytest.mark.parametrize(
    ("too_soon", "words"), [("encoder", "setBuffer: encoding has ended"), ("buffer", "buffer 0 was released")]
)
def test_the_validation_finds_objects_past_their_time(metal: native.Runtime, too_soon: str, words: str) -> None:
    encoder, buffer = metal.standin.standin_make_encoder(), metal.standin.standin_make_buffer(32)
    if too_soon == "encoder":
        metal.standin.standin_end_encoding(encoder)
    else:
        metal.standin.standin_release(buffer)
    metal.encode(encoder, _scale(metal, buffer))
    assert words in metal.standin.standin_end_encoding(encoder).decode()
    metal.standin.standin_release(encoder)
    if too_soon == "encoder":
        metal.standin.standin_release(buffer)


def test_too_much_threadgroup_memory_is_an_error(metal: native.Runtime) -> None:
    text = distinct("""
#include <metal_stdlib>
using namespace metal;
kernel void greedy(device float* x [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
    threadgroup float shared[8193];
    shared[i] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    x[i] = shared[i];
}
""")
    with metal.buffer(64) as x, pytest.raises(native.MetalError, match=r"32772|32768"):
        metal.run(native.Launch(metal.kernel(text, "greedy"), [(x.pointer, 0)], (), (4, 1, 1), (4, 1, 1)))


def _bytes_of(tensor: torch.Tensor) -> bytes:
    """The whole storage."""
    return bytes(tensor.untyped_storage())


def _launch_natively(metal: native.Runtime, launch: PlannedLaunch, tensors: list[torch.Tensor]) -> list[bytes]:
    """Runs a planned launch through the C ABI on copies of the tensors' storages; returns these afterwards."""
    stack = [metal.buffer(_bytes_of(tensor)) for tensor in tensors]
    buffers = [context.__enter__() for context in stack]
    words = struct.pack(f"{len(launch.words)}q", *launch.words)
    offsets = [tensor.storage_offset() * tensor.element_size() for tensor in tensors]
    metal.run(
        native.Launch(
            metal.kernel(launch.text, launch.kernel),
            [(buffer.pointer, offset) for buffer, offset in zip(buffers, offsets, strict=True)],
            [words],
            launch.threads,
            launch.group_size,
        )
    )
    results = [buffer.read() for buffer in buffers]
    for context in stack:
        context.__exit__(None, None, None)
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "case",
    [
        cases.Case(queries=33, keys=40, head_size=32, mask="additive", query_heads=4),
        cases.Case(queries=40, keys=33, head_size=64, layout="sliced"),
    ],
    ids=str,
)
def test_attention_gives_the_simulators_bits(
    metal: native.Runtime, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, case: cases.Case, seed: int
) -> None:
    """Every launch of a forward and a backward pass, repeated through Swift on the memory it found."""
    compared = []

    def bind(launch: PlannedLaunch, runtime: Any) -> Callable[..., None]:
        kernel = getattr(runtime.compile_shader(launch.text), launch.kernel)

        def run(*tensors: torch.Tensor) -> None:
            natively = _launch_natively(metal, launch, list(tensors))
            kernel(*tensors, list(launch.words), threads=launch.threads, group_size=launch.group_size)
            assert natively == [_bytes_of(tensor) for tensor in tensors]
            compared.append(launch.kernel)

        return run

    monkeypatch.setattr(function.launch, "bind", bind)
    monkeypatch.setattr(function, "_forward_calls", PreparedCalls())
    monkeypatch.setattr(function, "_backward_calls", PreparedCalls())
    inputs = case.inputs(dtype)
    ours(inputs)
    names = ["forward", "backward_delta", "backward_dq", "backward_dkv"]
    names += ["backward_dmask"] if inputs.mask_gradient else []
    assert compared == [f"attention_{name}" for name in names]
