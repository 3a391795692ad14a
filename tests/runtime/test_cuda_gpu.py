"""The runtime cuda on a GPU: kernels against float64, launches, streams, graphs, threads, and what it refuses."""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mps_flash_attn
from mps_flash_attn import ops
from mps_flash_attn.errors import KernelLaunchError
from mps_flash_attn.ops.attention.cases import Case, Inputs
from mps_flash_attn.ops.attention.problem import Causal
from mps_flash_attn.runtime.base import for_device
from mps_flash_attn.self_check import SelfCheck
from tests.ops.attention import assert_as_expected, ours

pytestmark = pytest.mark.cuda

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def kernel(text: str, name: str = "f") -> Any:
    return getattr(for_device("cuda").compile_shader(HEADER + text), name)


def operations() -> Iterator[Any]:
    """The modules ``ops.<op>.self_checks``."""
    for module in pkgutil.iter_modules(ops.__path__):
        if module.ispkg:
            yield importlib.import_module(f"{ops.__name__}.{module.name}.self_checks")


@pytest.mark.parametrize("module", operations(), ids=lambda module: module.__name__.split(".")[-2])
def test_self_checks(module: Any, seed: int) -> None:
    runtime = for_device("cuda")
    checks: list[SelfCheck] = list(module.self_checks(runtime.CAPABILITIES))
    assert checks
    failed = [
        f"{check.launch.kernel} {check.problem} {check.dtype}: {measured.output} {measured.error} > {measured.bound}"
        for check in checks
        if not (measured := check.measure(runtime, "cuda")).passed
    ]
    assert not failed, "\n".join(failed)


def on_cpu(inputs: Inputs) -> Inputs:
    return Inputs(**{name: x.cpu() if isinstance(x, Tensor) else x for name, x in vars(inputs).items()})


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
@pytest.mark.parametrize("head_size", [17, 64, 128, 256])
def test_attention_on_cuda_tensors(head_size: int, layout: Any, dtype: torch.dtype, seed: int) -> None:
    if dtype == torch.float64 and head_size == 256:
        pytest.skip("float64 exists for checks; its tiles do not fit with this head size")
    for queries, keys, causal in ((1, 1, Causal.NONE), (200, 333, Causal.BOTTOM_RIGHT), (257, 130, Causal.TOP_LEFT)):
        case = Case(queries, keys, head_size, query_heads=4, key_heads=2, causal=causal, layout=layout)
        inputs = case.inputs(dtype, "cuda")
        results = tuple(x if x is None else x.cpu() for x in ours(inputs))
        assert_as_expected(on_cpu(inputs), results, f" of {case} in {dtype}")


def test_gradients_flow(seed: int) -> None:
    query, key, value = (torch.randn(2, 4, 100, 64, device="cuda", requires_grad=True) for _ in range(3))
    out = mps_flash_attn.flash_attention(query, key, value, is_causal=True)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    gradient = torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, (query, key, value), gradient),
        torch.autograd.grad(expected, (query, key, value), gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_patch_leaves_cuda_alone_unless_asked(seed: int) -> None:
    query = torch.randn(1, 2, 50, 64, device="cuda", dtype=torch.float16)
    mps_flash_attn.reset_stats()
    with mps_flash_attn.patched():
        F.scaled_dot_product_attention(query, query, query)
        assert "cuda" not in mps_flash_attn.stats().devices
    with mps_flash_attn.patched(devices=("cuda",)):
        F.scaled_dot_product_attention(query, query, query)
        assert mps_flash_attn.stats().devices["cuda"].accelerated == 1


def test_same_bits_every_time(seed: int) -> None:
    inputs = Case(300, 700, 128, query_heads=4, key_heads=2, causal=Causal.BOTTOM_RIGHT).inputs(torch.float16, "cuda")
    first = ours(inputs)[:5]
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, ours(inputs)[:5], strict=True))


def test_graphs(seed: int) -> None:
    inputs = Case(200, 200, 64).inputs(torch.bfloat16, "cuda")
    expected = ours(inputs)[:5]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ours(inputs)[:5]
    for x in captured:
        x.fill_(torch.nan)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


def test_launches_go_to_the_current_stream() -> None:
    add = kernel("kernel void f(device float* x, uint i [[thread_position_in_grid]]) { x[i] += 1; }")
    x = torch.zeros(1 << 20, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # a launch in another stream would overtake this
        x.fill_(5)
        add(x)
        x.mul_(2)
    stream.synchronize()
    assert (x == 12).all()


def test_a_fresh_thread_can_launch() -> None:
    add = kernel("kernel void f(device float* x, uint i [[thread_position_in_grid]]) { x[i] += 1; }")
    x = torch.zeros(64, device="cuda")
    torch.cuda.synchronize()
    thread = threading.Thread(target=lambda: add(x))
    thread.start()
    thread.join()
    assert (x == 1).all()


def test_ragged_grids_and_positions() -> None:
    where = kernel("""
        kernel void f(device int* out, constant long& width, uint2 at [[thread_position_in_grid]],
                      uint2 group [[threadgroup_position_in_grid]], uint2 size [[threads_per_threadgroup]],
                      uint2 grid [[threads_per_grid]]) {
            out[at.y * width + at.x] = int(group.y * 1000 + group.x * 100 + size.y * 10 + size.x + grid.x * 10000);
        }""")
    out = torch.full((7, 10), -1, device="cuda", dtype=torch.int32)
    where(out, 10, threads=(10, 7), group_size=(4, 4))
    expected = [
        [
            y // 4 * 1000 + x // 4 * 100 + min(4, 7 - y // 4 * 4) * 10 + min(4, 10 - x // 4 * 4) + 100000
            for x in range(10)
        ]
        for y in range(7)
    ]
    assert out.tolist() == expected


@pytest.mark.parametrize("threads", [1, 31, 32, 40, 100])
def test_reductions_of_incomplete_simdgroups(threads: int) -> None:
    text = "kernel void f(device float* x, uint i [[thread_position_in_grid]]) { x[i] = simd_sum(x[i]); }"
    x = torch.arange(float(threads), device="cuda")
    expected = torch.cat([part.sum().expand(len(part)) for part in x.split(32)])
    kernel(text)(x, group_size=128)
    assert torch.equal(x, expected)


def test_more_threadgroup_memory_than_a_static_array_may_have() -> None:
    text = """
        kernel void f(device float* x, uint i [[thread_position_in_grid]]) {
            threadgroup float a[10000];
            threadgroup float b[10000];
            for (int n = i; n < 10000; n += 256) { a[n] = n; b[n] = -n; }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            x[i] = a[9999 - i] + 2 * b[i];
        }"""
    x = torch.zeros(256, device="cuda")
    kernel(text)(x, threads=256, group_size=256)
    i = torch.arange(256.0, device="cuda")
    assert torch.equal(x, 9999 - 3 * i)


def test_a_threadgroup_larger_than_the_registers_allow_is_compiled_for_it() -> None:
    values = ", ".join(f"x[i + {64 * n}]" for n in range(90))
    text = f"""kernel void f(device float* x, uint i [[thread_position_in_grid]]) {{
        float v[90] = {{{values}}};
        threadgroup_barrier(mem_flags::mem_device);
        float s = 0;
        for (short n = 0; n < 90; n++) s = fma(s, v[n], v[89 - n]);
        for (short n = 0; n < 90; n++) s = fma(s, v[n], 1.0f);
        x[i] = s;
    }}"""
    x = torch.zeros(1024 + 90 * 64, device="cuda")
    kernel(text)(x, threads=1024, group_size=1024)
    torch.cuda.synchronize()


def test_what_is_refused() -> None:
    f = kernel("kernel void f(device float* x, constant long& n, uint i [[thread_position_in_grid]]) { x[i] += n; }")
    x = torch.zeros(4, device="cuda")
    with pytest.raises(TypeError, match="takes 2 arguments"):
        f(x)
    with pytest.raises(ValueError, match="no CUDA tensor"):
        f(x.cpu(), 1)
    with pytest.raises(TypeError, match="passed by value"):
        f(x, x)
    with pytest.raises(TypeError, match="passed by address"):
        f(3, 1, threads=1) if False else kernel(
            "kernel void f(device float* x, device float* y, uint i [[thread_position_in_grid]]) { x[i] += y[0]; }"
        )(x, 1)
    with pytest.raises(KernelLaunchError, match="threadgroups"):
        f(x, 1, threads=(1, 1 << 20), group_size=(1, 1))
    f(x, 1)
    assert (x == 1).all()  # the process stays usable
