"""The simulator's metal_stdlib: numbers, vectors, functions of a simdgroup, and matrices."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mps_flash_attn.errors import KernelCheckError
from mps_flash_attn.runtime import simulator
from mps_flash_attn.runtime.simulator import Kernel, ShaderLibrary, compile_shader

LANES = 32
DTYPES = {"half": torch.float16, "bfloat": torch.bfloat16, "float": torch.float32, "double": torch.float64}


def build(source: str) -> ShaderLibrary:
    return compile_shader("#include <metal_stdlib>\nusing namespace metal;\n" + source)


def kernel(source: str, name: str = "f") -> Kernel:
    result: Kernel = getattr(build(source), name)
    return result


def run_lanes(body: str, *arguments: Tensor, out: str = "float", count: int = LANES) -> Tensor:
    """Runs ``body`` in one thread for each of ``count``; it sets ``result`` from ``x`` (and ``y``, ...)."""
    names = "xyzw"[: len(arguments)]
    types = [{dtype: name for name, dtype in DTYPES.items()}.get(argument.dtype, "int") for argument in arguments]
    parameters = "".join(f"device const {kind}* {name}s, " for name, kind in zip(names, types, strict=True))
    reads = "".join(f"const {kind} {name} = {name}s[i]; " for name, kind in zip(names, types, strict=True))
    f = kernel(
        f"kernel void f({parameters}device {out}* results, uint i [[thread_position_in_grid]]) "
        f"{{ {reads}{out} result; {body}; results[i] = result; }}"
    )
    dtype = {**DTYPES, "int": torch.int32, "uint": torch.int32, "bool": torch.bool, "long": torch.int64}[out]
    results = torch.zeros(count, dtype=dtype)
    f(*arguments, results, threads=count, group_size=min(count, 256))
    return results


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether all elements are equal, a NaN being equal to any other NaN."""
    return a.dtype == b.dtype and bool(torch.equal(torch.nan_to_num(a, nan=77.0), torch.nan_to_num(b, nan=77.0)))


@pytest.mark.parametrize("kind", ["half", "bfloat"])
def test_every_16_bit_number_converts_to_float_and_back(kind: str) -> None:
    everything = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(DTYPES[kind])
    widened = run_lanes("result = float(x)", everything, count=65536)
    assert same_bits(widened, everything.float())
    assert same_bits(run_lanes(f"result = {kind}(x)", widened, out=kind, count=65536), everything)


@pytest.mark.parametrize("kind", ["half", "bfloat"])
def test_conversion_from_float_rounds_to_nearest_even(kind: str, seed: int) -> None:
    near_ties = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(DTYPES[kind]).float()
    bits = near_ties.view(torch.int32) + torch.randint(-(2**16), 2**16, (65536,), dtype=torch.int32)
    values = torch.cat([bits.view(torch.float32), torch.randn(65536) * 10.0 ** torch.randint(-9, 6, (65536,))])
    assert same_bits(run_lanes(f"result = {kind}(x)", values, out=kind, count=len(values)), values.to(DTYPES[kind]))


@pytest.mark.parametrize("kind", ["half", "bfloat"])
@pytest.mark.parametrize("operator", ["+", "-", "*", "/"])
def test_16_bit_arithmetic_rounds_once(kind: str, operator: str, seed: int) -> None:
    x, y = (torch.randn(4096) * 100).to(DTYPES[kind]), torch.randn(4096).to(DTYPES[kind])
    expected = eval(f"x {operator} y", {"x": x.double(), "y": y.double()}).to(DTYPES[kind])
    assert same_bits(run_lanes(f"result = x {operator} y", x, y, out=kind, count=4096), expected)
    widened = eval(f"x {operator} y", {"x": x.float(), "y": y.float()})
    assert same_bits(run_lanes(f"result = x {operator} float(y)", x, y, count=4096), widened)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("bfloat b = 3; result = is_same_v<decltype(b * 2), bfloat> && is_same_v<decltype(b * 2.0f), float>", 1),
        ("half h = 3; result = is_same_v<decltype(h * h), half> && is_same_v<decltype(h * 2.0f), float>", 1),
        ("bfloat b = 1; b += 0.5; b *= 2; result = b", 3),
        ("bfloat b = 2.5bf; result = true ? b : 0", 2.5),
        ("result = is_same_v<decltype(0.5h), half> && is_same_v<decltype(0.5), float>", 1),
        ("result = as_type<float>(0x40490fdb)", math.pi),
        ("result = as_type<int>(half2(1, 2)) == 0x40003c00", 1),
        ("result = float(numeric_limits<half>::max()) + float(numeric_limits<bfloat>::epsilon())", 65504.0078125),
        ("result = select(1.0f, 2.0f, true) + clamp(5.0f, 0.0f, 3.0f) + max(2, 7) + min(3.0h, 4.0h)", 15),
        ("result = mulhi(0x80000000u, 6u) + popcount(0xffu) + clz(1u) + ctz(8u) + abs(-3)", 3 + 8 + 31 + 3 + 3),
        ("result = max(NAN, 1.0f) + fmin(2.0f, NAN) + isnan(NAN) + isinf(-INFINITY)", 5),
        ("result = rint(2.5f) + round(2.5f) + floor(-0.5f) + trunc(-1.5f) + fract(1.25f)", 2 + 3 - 1 - 1 + 0.25),
        ("result = sizeof(float3) + sizeof(packed_float3) + alignof(half4) + sizeof(bool2)", 16 + 12 + 8 + 2),
        ("result = rsqrt(4.0f) + precise::sqrt(9.0f) + fast::log2(8.0f) + copysign(1.0f, -0.0f)", 5.5),
    ],
)
def test_scalar_expressions(body: str, expected: float) -> None:
    assert run_lanes(body, count=1)[0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("float4 v(1, 2, 3, 4); float3 u = v.zyx; result = u.x * 100 + u.y * 10 + u.z", 321),
        ("float4 v = 0; v.yw = float2(5, 7); v.xz += v.yw; result = v.x * 1000 + v.y * 100 + v.z * 10 + v.w", 5577),
        ("float4 v(float2(1, 2), 3, 4); result = dot(v, float4(1)) + v.a + v.rg.y", 16),
        ("int3 v = int3(7, 8, 9) % 4; result = v[0] * 100 + v[1] * 10 + v[2]", 301),
        ("uint2 v = uint2(1, 2) << 3u; v |= 1u; result = v.x * 100 + v.y", 917),
        ("half4 v(1); v *= 2.0f; v[2] = 5; result = v.x + v.z", 7),
        ("bool3 b = float3(1, 5, 3) > 2.0f; result = any(b) * 10 + all(b) + b.z * 100", 110),
        ("float2 v = select(float2(1, 2), float2(3, 4), bool2(true, false)); result = v.x * 10 + v.y", 32),
        ("packed_float3 p = float3(1, 2, 3); float3 v = p; p[1] = 9; result = v.y + p.y", 11),
        ("float3 v = max(float3(1, 5, 3), 2.0f); result = v.x * 100 + v.y * 10 + v.z", 253),
        ("short2 v = short2(3, 4); result = (-v).x + (v + v).y", 5),
        ("float2 v = exp2(float2(3, -1)); result = v.x + v.y", 8.5),
        ("result = length(float2(3, 4)) + cross(float3(1, 0, 0), float3(0, 1, 0)).z", 6),
        ("float4 v(half4(1.5h)); int4 w = int4(v); result = w.x + v.y", 2.5),
        ("constexpr uint2 c = {3, 4}; float a[c.x]; a[1] = c.y; result = a[1] + c.x", 7),
        ("float2x2 m(float2(1, 2), float2(3, 4)); float2 v = m * float2(1, 10); result = v.x * 100 + v.y", 3142),
        ("array<int, 3> a = {1, 2, 3}; result = a[2] + a.size()", 6),
    ],
)
def test_vector_expressions(body: str, expected: float) -> None:
    assert run_lanes(body, count=1)[0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["exp", "exp2", "fast::exp", "fast::exp2", "precise::exp"])
def test_exponentials_are_accurate_everywhere(name: str, seed: int) -> None:
    limit = 160 if name.endswith("2") else 110
    special = torch.tensor(
        [0.0, -0.0, math.inf, -math.inf, math.nan, 127.99999, 128.0, -149.0, -149.5, -150.0, -1e30, 1e30]
    )
    x = torch.cat([special, torch.rand(200_000) * 2 * limit - limit, torch.randn(50_000) * 1e-3])
    found = run_lanes(f"result = {name}(x)", x, count=len(x)).double()
    expected = torch.exp2(x.double()) if name.endswith("2") else torch.exp(x.double())
    finite = expected <= torch.finfo(torch.float32).max
    assert bool((found[expected > torch.finfo(torch.float32).max] == math.inf).all())
    assert bool(found[x.isnan()].isnan().all())
    exponent = torch.floor(torch.log2(expected[finite].clamp(min=2.0**-126)))
    error = (found[finite] - expected[finite]).abs() / 2.0 ** (exponent - 23)
    assert float(error.max()) <= 1.2, f"{float(error.max())} units in the last place"


@pytest.mark.parametrize(
    "name", ["log", "log2", "sin", "cos", "tan", "tanh", "atan", "sqrt", "rsqrt", "floor", "ceil", "trunc"]
)
@pytest.mark.parametrize("kind", ["float", "half", "bfloat", "double"])
def test_functions_of_numbers(name: str, kind: str, seed: int) -> None:
    x = (torch.rand(1024) * 4 + 0.1).to(DTYPES[kind])
    found = run_lanes(f"result = {name}(x)", x, out=kind, count=1024)
    expected: Tensor = getattr(torch, name)(x.double())
    epsilon = torch.finfo(DTYPES[kind]).eps
    assert float(((found.double() - expected).abs() / expected.abs().clamp(min=0.01)).max()) <= 2 * epsilon


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(),
    "product": lambda x: x.prod(),
    "max": lambda x: x.max(),
    "min": lambda x: x.min(),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("lanes", [32, 20, 1])
def test_reductions_of_a_simdgroup(name: str, lanes: int, seed: int) -> None:
    x = torch.randint(1, 4, (lanes,)).double()
    found = run_lanes(f"result = simd_{name}(x)", x, out="double", count=lanes)
    assert torch.equal(found, REDUCTIONS[name](x).expand(lanes))


def test_reduction_of_floats_has_one_order(seed: int) -> None:
    x = torch.randn(LANES)
    expected = x.clone()
    for half in (16, 8, 4, 2, 1):
        expected = expected[:half] + expected[half:]
    assert torch.equal(run_lanes("result = simd_sum(x)", x), expected.expand(LANES))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("simd_shuffle(i, ushort(31 - i))", [31 - i for i in range(32)]),
        ("simd_shuffle_xor(i, ushort(5))", [i ^ 5 for i in range(32)]),
        ("simd_shuffle_up(i, ushort(3))", [i - 3 if i >= 3 else i for i in range(32)]),
        ("simd_shuffle_down(i, ushort(3))", [i + 3 if i < 29 else i for i in range(32)]),
        ("simd_shuffle_rotate_up(i, ushort(3))", [(i - 3) % 32 for i in range(32)]),
        ("simd_shuffle_rotate_down(i, ushort(3))", [(i + 3) % 32 for i in range(32)]),
        ("simd_shuffle_and_fill_up(i, i + 100, ushort(2))", [130, 131, *range(30)]),
        ("simd_shuffle_and_fill_down(i, i + 100, ushort(2))", [*range(2, 32), 100, 101]),
        ("simd_broadcast(i, ushort(7))", [7] * 32),
        ("simd_broadcast_first(i)", [0] * 32),
        ("simd_prefix_inclusive_sum(i)", [i * (i + 1) // 2 for i in range(32)]),
        ("simd_prefix_exclusive_sum(i)", [i * (i - 1) // 2 for i in range(32)]),
        ("uint(ulong(simd_ballot(i % 3 == 0)))", [sum(1 << i for i in range(0, 32, 3))] * 32),
        ("simd_any(i == 4) * 10 + simd_all(i < 32)", [11] * 32),
        ("simd_or(1u << i)", [2**32 - 1] * 32),
        ("simd_xor(i)", [0] * 32),
        ("quad_sum(i)", [4 * (i // 4) * 4 + 6 for i in range(32)]),
        ("quad_shuffle_xor(i, ushort(1))", [i ^ 1 for i in range(32)]),
        ("quad_broadcast(i, ushort(2))", [i // 4 * 4 + 2 for i in range(32)]),
        ("simd_sum(uint3(i, 1, 2)).z", [64] * 32),
        ("simd_is_first()", [1] + [0] * 31),
    ],
)
def test_functions_of_a_simdgroup(body: str, expected: list[int]) -> None:
    assert (run_lanes(f"result = {body}", out="uint").long() % 2**32).tolist() == expected


def test_divergent_lanes_reduce_among_themselves() -> None:
    found = run_lanes("if (i % 2) result = simd_sum(i); else result = -1.0f")
    assert found.tolist() == [-1.0, 256.0] * 16


def test_atomics_of_several_threadgroups() -> None:
    f = kernel("""
        kernel void f(device atomic_uint* counts, device atomic_float* sum, device atomic_int* most,
                      uint i [[thread_position_in_grid]]) {
            atomic_fetch_add_explicit(&counts[i % 4], 1u, memory_order_relaxed);
            atomic_fetch_add_explicit(sum, 0.5f, memory_order_relaxed);
            atomic_fetch_max_explicit(most, int(i * 7 % 1009), memory_order_relaxed);
        }""")
    counts, total, most = torch.zeros(4, dtype=torch.int32), torch.zeros(1), torch.zeros(1, dtype=torch.int32)
    f(counts, total, most, threads=8192, group_size=64)
    assert (counts.tolist(), total.item(), most.item()) == ([2048] * 4, 4096, 1008)


def lane_of(row: int, column: int) -> int:
    """The lane that holds an element of an 8 x 8 matrix on Apple's GPUs."""
    return (row & 4) << 2 | (column & 4) << 1 | (row & 3) << 1 | (column & 2) >> 1


def test_matrix_lane_layout() -> None:
    f = kernel("""
        kernel void f(device const float* a, device float* first, device float* second,
                      uint lane [[thread_index_in_simdgroup]]) {
            simdgroup_float8x8 m;
            simdgroup_load(m, a);
            first[lane] = m.thread_elements()[0];
            second[lane] = m.thread_elements()[1];
        }""")
    first, second = torch.zeros(2, LANES)
    f(torch.arange(64.0), first, second, threads=LANES, group_size=LANES)
    for row in range(8):
        for column in range(0, 8, 2):
            assert first[lane_of(row, column)] == 8 * row + column
            assert second[lane_of(row, column)] == 8 * row + column + 1


@pytest.mark.parametrize(
    ("result", "left", "right"),
    [
        ("float", "float", "float"),
        ("float", "half", "half"),
        ("float", "bfloat", "bfloat"),
        ("float", "half", "float"),
        ("half", "half", "half"),
        ("bfloat", "bfloat", "bfloat"),
        ("double", "double", "double"),
    ],
)
def test_matrix_product(result: str, left: str, right: str, seed: int) -> None:
    f = kernel(f"""
        kernel void f(device const {left}* a, device const {right}* b, device const {result}* c, device {result}* d) {{
            simdgroup_matrix<{left}, 8, 8> A, At;
            simdgroup_matrix<{right}, 8, 8> B;
            simdgroup_matrix<{result}, 8, 8> C, D;
            simdgroup_load(A, a, 16, ulong2(8, 0));
            simdgroup_load(At, a, 16, ulong2(0, 0), true);
            simdgroup_load(B, b);
            simdgroup_load(C, c);
            simdgroup_multiply_accumulate(D, A, B, C);
            simdgroup_store(D, d);
            simdgroup_multiply(D, At, B);
            simdgroup_store(D, d + 64, 8, ulong2(0, 0), true);
        }}""")
    a, b, c = (
        torch.randn(8, 16).to(DTYPES[left]),
        torch.randn(8, 8).to(DTYPES[right]),
        torch.randn(8, 8).to(DTYPES[result]),
    )
    d = torch.zeros(2, 8, 8, dtype=DTYPES[result])
    f(a, b, c, d, threads=LANES, group_size=LANES)
    expected = torch.stack([a[:, 8:].double() @ b.double() + c.double(), (a[:, :8].double().T @ b.double()).T])
    epsilon = torch.finfo(DTYPES[result]).eps
    assert float((d.double() - expected).abs().max()) <= 8 * epsilon * float(expected.abs().max())


class MatrixProgram:
    """A random kernel that loads, multiplies, copies, reads and overwrites matrices in every order."""

    FLOATS = 5  # matrices m[0] ... of float, the last two in a struct
    STEPS = 40

    def __init__(self, generator: random.Random) -> None:
        self._random = generator
        self._stores = 0

    def source(self) -> str:
        body = "\n            ".join(self._statement(depth=0) for _ in range(self.STEPS))
        return f"""
        #include <metal_stdlib>
        using namespace metal;
        typedef simdgroup_float8x8 M;
        struct Pair {{ M part[2]; }};
        M product(thread const M& a, thread const M& b) {{ M r; simdgroup_multiply(r, a, b); return r; }}
        void add_product(thread M& d, thread const M& a, thread const M& b) {{
            simdgroup_multiply_accumulate(d, a, b, d);
        }}
        void damp(thread M& m) {{ m.thread_elements() = fmod(m.thread_elements(), 4.0f); }}
        kernel void f(device const float* source, device const half* halves, device float* out, device float* sinks,
                      uint lane [[thread_index_in_simdgroup]]) {{
            float sink = 0;
            M m[{self.FLOATS - 2}];
            Pair pair;
            simdgroup_matrix<half, 8, 8> h[2];
            for (int i = 0; i < {self.FLOATS - 2}; i++) simdgroup_load(m[i], source + 64 * i);
            for (int i = 0; i < 2; i++) simdgroup_load(pair.part[i], source + 500 + 64 * i);
            for (int i = 0; i < 2; i++) simdgroup_load(h[i], halves + 64 * i);
            {body}
            for (int i = 0; i < {self.FLOATS - 2}; i++) {{ damp(m[i]); simdgroup_store(m[i], out + 64 * i); }}
            for (int i = 0; i < 2; i++) {{ damp(pair.part[i]); simdgroup_store(pair.part[i], out + 500 + 64 * i); }}
            sinks[lane] = sink;
        }}"""

    def _float(self) -> str:
        index = self._random.randrange(self.FLOATS)
        return f"m[{index}]" if index < self.FLOATS - 2 else f"pair.part[{index - self.FLOATS + 2}]"

    def _fresh_place(self) -> int:
        """Where a store meets no other: lanes run freely between barriers."""
        self._stores += 1
        return 1000 + 256 * self._stores

    def _any(self) -> str:
        return f"h[{self._random.randrange(2)}]" if self._random.random() < 0.4 else self._float()

    def _statement(self, depth: int) -> str:
        number = self._random.randrange
        d, a, b, c = self._float(), self._any(), self._any(), self._float()
        simple = [
            *[f"simdgroup_multiply_accumulate({d}, {a}, {b}, {d});"] * 6,
            f"simdgroup_multiply_accumulate({d}, {a}, {b}, {c});",
            f"simdgroup_multiply({d}, {a}, {b});",
            f"add_product({d}, {c}, {self._float()});",
            f"{d} = product({c}, {self._float()});",
            f"{d} = {c};",
            f"{{ M local = {c}; add_product(local, {d}, {d}); {d} = local; }}",
            f"{{ M dropped; simdgroup_multiply(dropped, {c}, {d}); }}",
            f"damp({d});",
            f"{d} = make_filled_simdgroup_matrix<float, 8, 8>({number(5)});",
            f"{d} = M({number(5)}.0f);",
            f"simdgroup_load({d}, source + {number(900)});",
            f"simdgroup_load({d}, source, 30, ulong2({number(20)}, {number(20)}), {number(2)});",
            f"simdgroup_store({d}, out + {self._fresh_place()}, {number(8, 30)});",
            f"sink += {d}.thread_elements()[{number(2)}];",
            f"if (lane < {number(33)}) sink += {d}.thread_elements()[{number(2)}];",
            f"if (lane & {1 << number(5)}) {d}.thread_elements()[{number(2)}] += 1;",
            "simdgroup_barrier(mem_flags::mem_threadgroup);",
            "threadgroup_barrier(mem_flags::mem_threadgroup);",
            "sink += simd_sum(fmod(sink, 3.0f));",
        ]
        if depth == 0 and self._random.random() < 0.2:
            inner = " ".join(self._statement(depth=1) for _ in range(number(1, 5)))
            return f"for (int n = 0; n < {number(2, 60)}; n++) {{ {inner} damp({d}); }}"
        return self._random.choice(simple)


def test_deferred_products_equal_eager_ones(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = compile_shader.__globals__["find_compiler"]()
    source, halves = torch.randint(-2, 3, (2, 1000)).float()
    halves = halves.half()
    # In the first, lanes that wait early leave products whose chains began among those that were computed.
    for number in (2061003598, seed, seed + 1, seed + 2):
        text = MatrixProgram(random.Random(number)).source()
        results = []
        for flag in ("", " -DSIMT_EAGER"):
            monkeypatch.setenv("MPS_FLASH_ATTN_CXX", " ".join(compiler.command) + flag)
            monkeypatch.setenv("MPS_FLASH_ATTN_CACHE_DIR", str(tmp_path / f"cache{flag.strip()}"))
            out, sinks = torch.zeros(40_000), torch.zeros(LANES)
            compile_shader(text).f(source, halves, out, sinks, threads=LANES, group_size=LANES)
            results.append(torch.cat([out, sinks]))
        assert same_bits(*results), f"program {number} differs:\n{text}"
        assert float(results[0].isfinite().float().mean()) > 0.5


def test_more_products_than_the_log_holds() -> None:
    f = kernel("""
        kernel void f(device const float* a, device float* d, constant int& n) {
            simdgroup_float8x8 A, D = simdgroup_float8x8(0);
            simdgroup_load(A, a);
            for (int i = 0; i < n; i++) simdgroup_multiply_accumulate(D, A, A, D);
            simdgroup_store(D, d);
        }""")
    a = torch.randint(-2, 3, (8, 8)).float()
    for n in (0, 1, 69, 70, 71, 1000):
        d = torch.zeros(8, 8)
        f(a, d, n, threads=LANES, group_size=LANES)
        assert torch.equal(d, n * a @ a)


def test_lanes_that_read_early_do_not_disturb_those_that_go_on() -> None:
    f = kernel("""
        kernel void f(device const float* a, device float* out, uint lane [[thread_index_in_simdgroup]]) {
            simdgroup_float8x8 A, D[4];
            simdgroup_load(A, a);
            for (int i = 0; i < 4; i++) D[i] = simdgroup_float8x8(0);
            for (int i = 0; i < 4; i++) {
                for (int n = 0; n <= i; n++) simdgroup_multiply_accumulate(D[i], A, A, D[i]);
                if (lane % 5 == uint(i)) out[lane] = D[i].thread_elements()[0];
            }
        }""")
    a, out = torch.randint(-2, 3, (8, 8)).float(), torch.full((LANES,), -1.0)
    f(a, out, threads=LANES, group_size=LANES)
    product = a @ a
    for row in range(8):
        for column in range(0, 8, 2):
            lane = lane_of(row, column)
            assert out[lane] == (-1 if lane % 5 == 4 else (lane % 5 + 1) * product[row, column])


@pytest.mark.parametrize(
    "body",
    [
        "if (lane < 16) simdgroup_multiply_accumulate(D, A, A, D);",
        "if (lane != 3) {\n simdgroup_multiply_accumulate(D, A, A, D);\n} else {\n simdgroup_multiply(D, A, A);\n}",
        "for (uint n = 0; n < 2 + lane / 31; n++) simdgroup_multiply_accumulate(D, A, A, D);",
    ],
)
def test_products_that_lanes_do_not_share_are_reported(body: str) -> None:
    f = kernel(f"""
        kernel void f(device const float* a, device float* d, uint lane [[thread_index_in_simdgroup]]) {{
            simdgroup_float8x8 A, D(0);
            simdgroup_load(A, a);
            {body}
            simdgroup_barrier(mem_flags::mem_device);
            simdgroup_store(D, d);
        }}""")
    with pytest.raises(KernelCheckError) as raised, simulator.check(strict_parse=False):
        f(torch.zeros(64), torch.zeros(64), threads=LANES, group_size=LANES)
    assert "simdgroup_multiply_accumulate" in str(raised.value)
    assert "fault:" not in str(raised.value)


def test_a_reference_to_elements_sees_later_products() -> None:
    f = kernel("""
        kernel void f(device const float* a, device float* out, uint lane [[thread_index_in_simdgroup]]) {
            simdgroup_float8x8 A, D(0);
            thread auto& elements = D.thread_elements();
            simdgroup_load(A, a);
            for (int n = 0; n < 3; n++) simdgroup_multiply_accumulate(D, A, A, D);
            out[lane] = elements[0];
        }""")
    a, out = torch.randint(-2, 3, (8, 8)).float(), torch.zeros(LANES)
    f(a, out, threads=LANES, group_size=LANES)
    expected = 3 * a @ a
    for row in range(8):
        for column in range(0, 8, 2):
            assert out[lane_of(row, column)] == expected[row, column]
