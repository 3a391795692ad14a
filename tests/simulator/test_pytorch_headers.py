"""Metal functions that PyTorch ships in its headers, run unedited on the simulator and held against the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mps_flash_attn.runtime.simulator import compile_shader

INCLUDE = Path(torch.__file__).parent / "include"
HEADERS = [
    str(path.relative_to(INCLUDE))
    for folder in ("c10/metal", "ATen/native/mps/kernels")  # of which the latter builds on the former
    for path in sorted((INCLUDE / folder).glob("*.h"))
    if "Attention" not in path.name  # these instantiate hundreds of kernels and have tests of their own
]


def library(header: str, kernels: str) -> Any:
    if not (INCLUDE / header).is_file():
        pytest.skip(f"PyTorch {torch.__version__} ships no {header}")
    return compile_shader(f"#include <metal_stdlib>\n#include <{header}>\nusing namespace metal;\n{kernels}")


@pytest.mark.skipif(not HEADERS, reason=f"PyTorch {torch.__version__} ships no Metal headers")
def test_every_header_compiles() -> None:
    source = "#include <metal_stdlib>\nusing namespace metal;\n"
    source += "".join(f"#include <{header}>\n" for header in HEADERS)
    x = torch.zeros(4)
    compile_shader(source + "kernel void one(device float* x, uint i [[thread_position_in_grid]]) { x[i] = 1; }").one(x)
    assert torch.equal(x, torch.ones(4))


@pytest.mark.parametrize("name", ["erf", "erfc", "erfinv", "i0", "i0e", "i1", "i1e", "digamma", "log_gamma", "erfcx"])
def test_special_functions(name: str, seed: int) -> None:
    f = library(
        "c10/metal/special_math.h",
        "kernel void f(device const float* x, device float* y, uint i [[thread_position_in_grid]])"
        f"{{ y[i] = c10::metal::{name}(x[i]); }}",
    ).f
    x = torch.rand(512) * (1.9 if name == "erfinv" else 6) - (0.95 if name == "erfinv" else 0)
    y = torch.zeros(512)
    f(x, y, threads=512, group_size=64)
    reference: Tensor = getattr(torch.special, {"log_gamma": "gammaln"}.get(name, name))(x.double())
    assert float(((y - reference).abs() / reference.abs().clamp(min=1)).max()) <= 5e-6


@pytest.mark.parametrize("size", [32, 100, 256, 1024])
def test_reductions_of_a_threadgroup(size: int, seed: int) -> None:
    f = library(
        "c10/metal/reduction_utils.h",
        """
        kernel void f(device const float* x, device float* y, device long* best, constant uint& size,
                      uint i [[thread_index_in_threadgroup]]) {
            threadgroup float data[32];
            threadgroup long indices[32];
            const float sum = c10::metal::threadgroup_sum(data, x[i], i, size);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const float largest = c10::metal::threadgroup_max(data, x[i], i, size);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const float smallest = c10::metal::threadgroup_min(data, x[i], i, size);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const long index = c10::metal::threadgroup_argmax(data, indices, x[i], long(i), i, size);
            if (i == 0) { y[0] = sum; y[1] = largest; y[2] = smallest; best[0] = index; }
        }""",
    ).f
    x = torch.randperm(size).float()  # exact in any order
    y, best = torch.zeros(3), torch.zeros(1, dtype=torch.int64)
    f(x, y, best, size, threads=size, group_size=size)
    assert y.tolist() == [x.sum(), x.max(), x.min()]
    assert best.item() == x.argmax().item()


def test_a_nan_survives_reductions() -> None:
    f = library(
        "c10/metal/reduction_utils.h",
        "kernel void f(device const float* x, device float* y, uint i [[thread_position_in_grid]])"
        "{ y[i] = c10::metal::simd_max(x[i]); }",
    ).f
    x, y = torch.randn(32), torch.zeros(32)
    x[7] = torch.nan
    f(x, y, threads=32, group_size=32)
    assert bool(y.isnan().all())


def test_philox_numbers(seed: int) -> None:
    f = library(
        "c10/metal/random.h",
        """
        kernel void f(device float* uniform, device float* normal, constant long& seed,
                      uint i [[thread_position_in_grid]]) {
            uniform[i] = c10::metal::rand(seed, i);
            normal[i] = c10::metal::randn(seed, i);
        }""",
    ).f
    uniform, normal = torch.zeros(2, 65536)
    f(uniform, normal, seed, threads=65536, group_size=256)
    assert abs(float(uniform.mean()) - 0.5) <= 0.01
    assert abs(float(uniform.var()) - 1 / 12) <= 0.005
    assert abs(float(normal.mean())) <= 0.03
    assert abs(float(normal.std()) - 1) <= 0.02


def test_unary_kernels_registered_by_macro(seed: int) -> None:
    lib = library(
        "c10/metal/indexing.h",
        """
        struct square_functor { template <typename T> inline T operator()(const T x) { return x * x; } };
        using namespace c10::metal;
        REGISTER_UNARY_OP(square, float, float);
        REGISTER_UNARY_OP(square, half, half);
        """,
    )
    x = torch.randn(1000)
    y = torch.zeros(1000)
    lib.square_dense_float_float(y, x, 1000, threads=250, group_size=50, arg_casts={2: "int32"})
    assert torch.equal(y, x * x)
