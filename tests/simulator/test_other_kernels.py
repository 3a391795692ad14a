"""Kernels of kinds that the attention kernels are not: row reductions, normalisations, a matrix product, a scan."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mps_flash_attn.runtime.simulator import ShaderLibrary, compile_shader

DTYPES = {"float": torch.float32, "half": torch.float16, "bfloat": torch.bfloat16}

ROWS = """
#include <metal_stdlib>
#include <metal_simdgroup>
using namespace metal;

constant constexpr int kLanes = 32;

template <typename T> struct Sum {
    static constant constexpr float start = 0;
    float operator()(float a, float b) const { return a + b; }
    float operator()(float a) const { return simd_sum(a); }
};
template <typename T> struct Max {
    static constant constexpr float start = -INFINITY;
    float operator()(float a, float b) const { return metal::max(a, b); }
    float operator()(float a) const { return simd_max(a); }
};

// Reduces one value of each thread over the threadgroup.
template <typename Op>
float reduce(float value, threadgroup float* shared, uint simdgroup, uint lane, uint simdgroups) {
    Op op;
    value = op(value);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) shared[simdgroup] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return op(lane < simdgroups ? shared[lane] : Op::start);
}

#define POSITIONS uint row [[threadgroup_position_in_grid]], uint thread_index [[thread_position_in_threadgroup]], \\
    uint threads [[threads_per_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]], \\
    uint lane [[thread_index_in_simdgroup]], uint simdgroups [[simdgroups_per_threadgroup]]

template <typename T, int kPerThread>
[[kernel, max_total_threads_per_threadgroup(1024)]] void softmax(
    const device T* x [[buffer(0)]], device T* y [[buffer(1)]], constant int& width [[buffer(2)]], POSITIONS) {
    threadgroup float shared[kLanes];
    float own[kPerThread], largest = -INFINITY, sum = 0;
    x += row * size_t(width);
    y += row * size_t(width);
    for (int i = 0; i < kPerThread; i++) {
        const int column = thread_index * kPerThread + i;
        own[i] = column < width ? float(x[column]) : -INFINITY;
        largest = max(largest, own[i]);
    }
    largest = reduce<Max<T>>(largest, shared, simdgroup, lane, simdgroups);
    for (int i = 0; i < kPerThread; i++) sum += own[i] = fast::exp(own[i] - largest);
    sum = reduce<Sum<T>>(sum, shared, simdgroup, lane, simdgroups);
    for (int i = 0; i < kPerThread; i++) {
        const int column = thread_index * kPerThread + i;
        if (column < width) y[column] = static_cast<T>(own[i] / sum);
    }
}

template <typename T>
[[kernel]] void layer_norm(const device T* x, const device T* weight, const device T* bias, device T* y,
                           constant int& width, constant float& epsilon, POSITIONS) {
    threadgroup float shared[kLanes];
    x += row * size_t(width);
    y += row * size_t(width);
    float sum = 0, squares = 0;
    for (int i = thread_index; i < width; i += threads) sum += x[i];
    const float mean = reduce<Sum<T>>(sum, shared, simdgroup, lane, simdgroups) / width;
    for (int i = thread_index; i < width; i += threads) squares += (x[i] - mean) * (x[i] - mean);
    const float variance = reduce<Sum<T>>(squares, shared, simdgroup, lane, simdgroups) / width;
    const float factor = metal::precise::rsqrt(variance + epsilon);
    for (int i = thread_index; i < width; i += threads) y[i] = T((x[i] - mean) * factor * weight[i] + bias[i]);
}

template <typename T>
[[kernel]] void rms_norm(const device T* x, const device T* weight, device T* y, constant int& width,
                         constant float& epsilon, POSITIONS) {
    threadgroup float shared[kLanes];
    const device vec<T, 4>* x4 = reinterpret_cast<const device vec<T, 4>*>(x + row * size_t(width));
    device vec<T, 4>* y4 = reinterpret_cast<device vec<T, 4>*>(y + row * size_t(width));
    const device vec<T, 4>* weight4 = reinterpret_cast<const device vec<T, 4>*>(weight);
    float squares = 0;
    for (int i = thread_index; i < width / 4; i += threads) {
        const float4 v = float4(x4[i]);
        squares += dot(v.xyz, v.xyz) + v.w * v.w;
    }
    const float factor = rsqrt(reduce<Sum<T>>(squares, shared, simdgroup, lane, simdgroups) / width + epsilon);
    for (int i = thread_index; i < width / 4; i += threads)
        y4[i] = vec<T, 4>(float4(x4[i]) * factor * float4(weight4[i]));
}

#define INSTANTIATE(T) \\
    template [[host_name("softmax_" #T)]] [[kernel]] decltype(softmax<T, 4>) softmax<T, 4>; \\
    template [[host_name("layer_norm_" #T)]] [[kernel]] decltype(layer_norm<T>) layer_norm<T>; \\
    template [[host_name("rms_norm_" #T)]] [[kernel]] decltype(rms_norm<T>) rms_norm<T>;
"""

GEMM = """
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// C = A B with A [M, K], B [K, N]; a threadgroup of four simdgroups makes a tile of 32 x 32.
kernel void gemm(device const ELEMENT* A, device const ELEMENT* B, device ELEMENT* C, constant int3& size,
                 uint2 tile [[threadgroup_position_in_grid]], ushort thread_index [[thread_index_in_threadgroup]],
                 ushort simdgroup [[simdgroup_index_in_threadgroup]], ushort lane [[thread_index_in_simdgroup]]) {
    const int M = size.x, N = size.y, K = size.z;
    threadgroup ELEMENT left[32][16 + 8], right[16][32 + 8];
    threadgroup float result[32][32];
    const int row0 = tile.y * 32, column0 = tile.x * 32;
    const short2 corner(simdgroup % 2 * 16, simdgroup / 2 * 16);
    simdgroup_float8x8 sums[2][2];
    for (short i = 0; i < 4; i++) sums[i / 2][i % 2] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (int k0 = 0; k0 < K; k0 += 16) {
        for (int i = thread_index; i < 32 * 16; i += 128) {
            const int row = row0 + i / 16, k = k0 + i % 16;
            left[i / 16][i % 16] = row < M && k < K ? A[row * K + k] : ELEMENT(0);
            const int column = column0 + i % 32, down = k0 + i / 32;
            right[i / 32][i % 32] = column < N && down < K ? B[down * N + column] : ELEMENT(0);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (short k = 0; k < 16; k += 8) {
            simdgroup_matrix<ELEMENT, 8, 8> a[2], b[2];
            for (short i = 0; i < 2; i++) {
                simdgroup_load(a[i], &left[corner.y + 8 * i][k], 24);
                simdgroup_load(b[i], &right[k][corner.x + 8 * i], 40);
            }
            for (short i = 0; i < 2; i++)
                for (short j = 0; j < 2; j++) simdgroup_multiply_accumulate(sums[i][j], a[i], b[j], sums[i][j]);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (short i = 0; i < 2; i++)
        for (short j = 0; j < 2; j++)
            simdgroup_store(sums[i][j], &result[0][0], 32, ulong2(corner.x + 8 * j, corner.y + 8 * i));
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = thread_index; i < 32 * 32; i += 128) {
        const int row = row0 + i / 32, column = column0 + i % 32;
        if (row < M && column < N) C[row * N + column] = ELEMENT(result[i / 32][i % 32]);
    }
}
"""

SCAN = """
#include <metal_stdlib>
using namespace metal;
kernel void scan(device const int* x, device int* y, uint i [[thread_position_in_grid]],
                 uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup int totals[32];
    const int sum = simd_prefix_inclusive_sum(x[i]);
    if (lane == 31) totals[simdgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup == 0) totals[lane] = simd_prefix_exclusive_sum(totals[lane]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = sum + totals[simdgroup];
}
"""


def rows_library() -> ShaderLibrary:
    return compile_shader(ROWS + "".join(f"INSTANTIATE({kind})\n" for kind in DTYPES))


def close(found: Tensor, expected: Tensor, kind: str) -> bool:
    """Whether a result is the float64 ``expected`` but for its own rounding and some of float32's."""
    bound = 2 * torch.finfo(DTYPES[kind]).eps * expected.abs() + 1e-5
    return bool(((found.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("width", [1, 33, 500, 1024])
def test_softmax(kind: str, width: int, seed: int) -> None:
    x = (torch.randn(5, width) * 3).to(DTYPES[kind])
    y = torch.full_like(x, torch.nan)
    threads = (width + 127) // 128 * 32
    kernel = getattr(rows_library(), f"softmax_{kind}")
    kernel(x, y, width, threads=5 * threads, group_size=threads, arg_casts="int32")
    assert close(y, torch.softmax(x.double(), -1), kind)


@pytest.mark.parametrize("kind", DTYPES)
def test_layer_norm(kind: str, seed: int) -> None:
    x, weight, bias = (torch.randn(size).to(DTYPES[kind]) for size in ((7, 300), (300,), (300,)))
    y = torch.full_like(x, torch.nan)
    kernel = getattr(rows_library(), f"layer_norm_{kind}")
    kernel(x, weight, bias, y, 300, 1e-5, threads=7 * 128, group_size=128, arg_casts={4: "int32"})
    assert close(y, F.layer_norm(x.double(), (300,), weight.double(), bias.double(), 1e-5), kind)


@pytest.mark.parametrize("kind", DTYPES)
def test_rms_norm(kind: str, seed: int) -> None:
    x, weight = torch.randn(3, 512).to(DTYPES[kind]), torch.randn(512).to(DTYPES[kind])
    y = torch.full_like(x, torch.nan)
    kernel = getattr(rows_library(), f"rms_norm_{kind}")
    kernel(x, weight, y, 512, 1e-5, threads=3 * 96, group_size=96, arg_casts={3: "int32"})
    expected = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    assert close(y, expected, kind)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("size", [(32, 32, 16), (64, 96, 80), (33, 70, 19)])
def test_matrix_product(kind: str, size: tuple[int, int, int], seed: int) -> None:
    m, n, k = size
    a, b = torch.randint(-4, 5, (m, k)).to(DTYPES[kind]), torch.randint(-4, 5, (k, n)).to(DTYPES[kind])
    c = torch.full((m, n), torch.nan, dtype=DTYPES[kind])
    tiles = (-(-n // 32), -(-m // 32))
    compile_shader(GEMM.replace("ELEMENT", kind)).gemm(
        *(a, b, c, size), threads=(tiles[0] * 128, tiles[1]), group_size=(128, 1), arg_casts="int32"
    )
    assert torch.equal(c, (a.double() @ b.double()).to(DTYPES[kind]))


def test_prefix_sum(seed: int) -> None:
    x = torch.randint(-100, 100, (1024,), dtype=torch.int32)
    y = torch.zeros_like(x)
    compile_shader(SCAN).scan(x, y, threads=1024, group_size=1024)
    assert torch.equal(y, x.cumsum(0, dtype=torch.int32))
