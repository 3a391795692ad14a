"""From Metal text to C++: what is rewritten, what is understood of kernels, and where errors point."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from mps_flash_attn.errors import KernelCompileError
from mps_flash_attn.runtime.simulator import compile_shader
from mps_flash_attn.runtime.simulator.target import SimulatorTarget
from mps_flash_attn.runtime.translation.host_compiler import find_compiler
from mps_flash_attn.runtime.translation.translate import BufferInfo, Translation, translate

STDLIB = "#include <metal_stdlib>\nusing namespace metal;\n"


def translated(source: str) -> Translation:
    return translate(STDLIB + source, target=SimulatorTarget(), compiler=find_compiler())


def run(source: str, *arguments: Any, threads: int = 1, group_size: int | None = None, name: str = "f") -> torch.Tensor:
    """Runs a kernel whose first argument is ``device float*`` and returns what it wrote there, one element a thread."""
    out = torch.zeros(max(threads, 4))
    getattr(compile_shader(STDLIB + source), name)(
        out, *arguments, threads=threads, group_size=group_size or threads, arg_casts="int32"
    )
    return out


def test_kernels_and_their_buffers() -> None:
    kernels = translated("""
        struct Params { int n; };
        kernel void plain(device float* x, const device half* y, constant Params& p,
                          uint i [[thread_position_in_grid]]) {}
        template <typename T, int N> [[kernel]] void many(device T* x [[buffer(2)]], constant int* n [[buffer(0)]]) {}
        template [[host_name("many_float_4")]] [[kernel]] void many<float, 4>(device float*, constant int*);
        template [[host_name("many_" "half_8")]] [[kernel]] decltype(many<half, 8>) many<half, 8>;
        [[host_name("renamed")]] kernel void original(device int* x) {}
    """).kernels
    assert [kernel.index for kernel in kernels] == list(range(4))
    buffers = {kernel.name: kernel.buffers for kernel in kernels}
    assert buffers["plain"] == (
        BufferInfo("x", 0, "device", "float *", False),
        BufferInfo("y", 1, "device", "const half *", True),
        BufferInfo("p", 2, "constant", "Params &", True),
    )
    assert buffers["many_float_4"] == buffers["many_half_8"]
    assert [(buffer.name, buffer.index) for buffer in buffers["many_half_8"]] == [("n", 0), ("x", 2)]
    assert buffers["renamed"] == (BufferInfo("x", 0, "device", "int *", False),)


def test_only_one_kernel_is_instantiated() -> None:
    source = """
        template <int N> kernel void f(device float* x) { static_assert(N < 3, "too many"); x[0] = N; }
    """ + "".join(f'template [[host_name("f{n}")]] kernel void f<{n}>(device float*);\n' for n in range(12))
    assert run(source, name="f2")[0] == 2
    with pytest.raises(KernelCompileError, match="too many"):
        run(source, name="f3")


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("uint i [[thread_position_in_grid]]", list(range(70))),
        ("ushort i [[thread_position_in_threadgroup]]", [i % 40 for i in range(70)]),
        ("uint i [[threadgroup_position_in_grid]]", [i // 40 for i in range(70)]),
        ("uint i [[thread_index_in_threadgroup]]", [i % 40 for i in range(70)]),
        ("ushort i [[thread_index_in_simdgroup]]", [i % 40 % 32 for i in range(70)]),
        ("uint i [[simdgroup_index_in_threadgroup]]", [i % 40 // 32 for i in range(70)]),
        ("uint i [[thread_index_in_quadgroup]]", [i % 4 for i in range(70)]),
        ("uint i [[quadgroup_index_in_threadgroup]]", [i % 40 // 4 for i in range(70)]),
        ("uint i [[threads_per_threadgroup]]", [40] * 40 + [30] * 30),
        ("uint i [[dispatch_threads_per_threadgroup]]", [40] * 70),
        ("uint i [[threads_per_grid]]", [70] * 70),
        ("uint i [[threadgroups_per_grid]]", [2] * 70),
        ("uint i [[threads_per_simdgroup]]", [32] * 70),
        ("uint i [[simdgroups_per_threadgroup]]", [2] * 40 + [1] * 30),
    ],
)
def test_positions(attribute: str, expected: list[int]) -> None:
    source = (
        f"kernel void f(device float* o, {attribute}, uint3 at [[thread_position_in_grid]]) {{ o[at.x] = float(i); }}"
    )
    assert run(source, threads=70, group_size=40).tolist() == expected


def test_positions_in_three_dimensions() -> None:
    f = compile_shader(
        STDLIB
        + """
        kernel void f(device int* out, uint3 at [[thread_position_in_grid]], uint3 size [[threads_per_grid]],
                      ushort2 own [[thread_position_in_threadgroup]]) {
            out[(at.z * size.y + at.y) * size.x + at.x] = own.x * 10 + own.y;
        }"""
    ).f
    out = torch.zeros(2, 5, 7, dtype=torch.int32)
    f(out, threads=(7, 5, 2), group_size=(4, 2, 1))
    for y in range(5):
        for x in range(7):
            assert out[:, y, x].tolist() == [x % 4 * 10 + y % 2] * 2


def test_threadgroup_variables_of_every_form() -> None:
    found = run(
        """
        struct Pair { int a; float b; };
        template <typename T, int N> void rotate(device float* out, uint i) {
            threadgroup T shared[N], spare[2][N / (N > 4 ? 2 : 1)];
            threadgroup T* const start = shared;
            start[i] = T(i);
            spare[i % 2][i / 2] = T(10 * i);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            out[i] += float(shared[(i + 1) % N] + spare[(i + 1) % 2][i / 2]);
        }
        kernel void f(device float* out, uint i [[thread_position_in_grid]]) {
            threadgroup Pair pair;
            threadgroup metal::array<float, 4> values;
            threadgroup alignas(16) half four[4];
            threadgroup atomic_int count;
            if (i == 0) {
                pair.a = 100;
                atomic_store_explicit(&count, 0, memory_order_relaxed);
            }
            values[i % 4] = 1000;
            four[i % 4] = 1;
            threadgroup_barrier(mem_flags::mem_threadgroup);
            atomic_fetch_add_explicit(&count, 10000, memory_order_relaxed);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            out[i] = pair.a + values[3] + atomic_load_explicit(&count, memory_order_relaxed) + four[2] - 1;
            rotate<float, 8>(out, i);
        }""",
        threads=8,
    )
    assert found.tolist() == [81100 + (i + 1) % 8 + 10 * (i ^ 1) for i in range(8)]


def test_initialisers_of_threadgroup_variables_are_dropped() -> None:
    text = translated("kernel void f(device float* o) { threadgroup float x[4] = {0}, y = 1; x[0] = y; }").text
    assert "{0}" not in text
    assert text.count("threadgroup_variable<") == 2


def test_function_constants() -> None:
    source = """
        constant bool has_bias [[function_constant(0)]];
        constant float scale [[function_constant(7)]];
        constant bool wide = is_function_constant_defined(scale) && scale > 2;
        kernel void f(device float* out) { if (has_bias) out[0] = scale; if (wide) out[1] = 1; }
    """
    assert "has_bias = bool(0)" in translated(source).text
    text = translate(
        STDLIB + source, target=SimulatorTarget(), compiler=find_compiler(), function_constants={0: True, "scale": 2.5}
    ).text
    assert "has_bias = bool(true)" in text
    assert "scale = float(2.5)" in text
    assert re.search(r"wide\s*=\s*true\s*&&", text)
    assert re.search(r"wide\s*=\s*false\s*&&", translated(source).text)


BODIES = [
    # Address spaces: as qualifiers of pointers, references, members and constants.
    ("constant float table[3] = {1, 2, 3};", "constant float* p = table; o[0] = p[2];", 3),
    ("constant constexpr int N = 4;", "float a[N] = {5}; o[0] = a[0] + N;", 9),
    ("struct S { static constant constexpr const short n = 3; };", "o[0] = S::n;", 3),
    (
        "struct S { float x; float get() const thread { return x; } float get() const device { return x; } };",
        "S s{7}; o[0] = s.get();",
        7,
    ),
    (
        "float g(device float* p) { return p[0]; } float g(thread float* q) { return q[0]; }"
        "float g(constant float* r) { return r[0] + 1; }",
        "float x = 4; o[0] = g(&x);",
        4,
    ),
    (
        "template <typename T> struct E; template <typename T> struct E<device T*> { typedef T type; };"
        "template <typename T> struct E<threadgroup T*> { typedef T type; };",
        "E<device float*>::type x = 6; o[0] = x;",
        6,
    ),
    ("void g(const thread float& a, thread float& b) { b = a; }", "float b; g(8, b); o[0] = b;", 8),
    ("constant float k = 2; float g(constant float& a) { return a; }", "o[0] = g(k);", 2),
    # Literals are single precision unless they say otherwise.
    ("", "o[0] = sizeof(1.0) + sizeof(.5e-3) + sizeof(1.5h) + sizeof(2e3bf) + sizeof(1.f);", 16),
    # Swizzles, and members that only look like them.
    ("", "float4 v(1, 2, 3, 4); v.xy = v.wz; o[0] = v.x * 10 + v.yyx.y;", 43),
    ("struct S { float2 xy; float rgb; };", "S s{float2(1, 2), 5}; o[0] = s.xy.y + s.rgb;", 7),
    (
        "template <typename V> float g(V v) { v.zw += v.xx; return v.z + dot(v.xy, v.yx); }",
        "o[0] = g(float4(1, 2, 3, 4));",
        8,
    ),
    # Enumerations, macros, functors, constructors.
    ("enum class Mode : uint { a, b = 13 };", "o[0] = float(uint(Mode::b));", 13),
    ("#define SET(x) o[0] = x\n", "SET(14);", 14),
    (
        "struct F { template <typename T> T operator()(T a) { return a + 1; } };",
        'F f; _Pragma("clang loop unroll(full)") for (int i = 0; i < 2; i++) o[0] += f(7);',
        16,
    ),
    ("struct T { int n[2]; T() thread : n{1, 2} {} };", "T t; o[0] = t.n[1];", 2),
    (
        "struct S { float v; S(float x) thread : v(x) {} S(float x) constant : v(x) {}"
        "bool operator>=(S b) const { return v >= b.v; } bool operator<(S b) const { return v < b.v; } };",
        "o[0] = S(2) >= S(1) ? 18 : 0;",
        18,
    ),
    (
        "struct M { template <typename T> T operator()(T a, T b) { return a + b; }"
        "template <> float operator()(float a, float b) { return a * b; } };",
        "o[0] = M()(3.0f, 4.0f) + M()(3, 4);",
        19,
    ),
    (
        "float g(constant const float values[2]) { return values[1]; } constant float k[2] = {1, 20};",
        "o[0] = g(k);",
        20,
    ),
    ("", "uint4 v = {1, 2}; uniform<int> n = make_uniform(4); o[0] = v.y + v.w + n;", 6),
    # Functions of bfloat, which Metal lacks, as kernels add them.
    (
        "#define ADD METAL_FUNC bfloat exp(bfloat x) { return bfloat(__metal_exp(float(x), __METAL_FAST_MATH__)); }\n"
        "namespace metal { ADD namespace fast { ADD } namespace precise { ADD } }",
        "bfloat z = 0.0bf; o[0] = exp(z) + fast::exp(z) + precise::exp(z) + fast::exp(1e-5f) - 1e-5f;",
        4,
    ),
    # Metal is neither Linux nor any C++ compiler's own dialect.
    (
        "#if __METAL_VERSION__ >= 310 && defined(__METAL__) && !defined(__linux__)\nconstant int n = 17;\n#endif\n",
        "o[0] = n;",
        17,
    ),
]


@pytest.mark.parametrize(("declarations", "body", "expected"), BODIES)
def test_language(declarations: str, body: str, expected: float) -> None:
    assert run(f"{declarations}\nkernel void f(device float* o) {{ {body} }}")[0] == expected


@pytest.mark.parametrize(
    "source",
    [
        "namespace a { namespace b { kernel void f(device float* o) { o[0] = 1; } } }",
        "kernel void f(device float* o);\nkernel void f(device float* o) { o[0] = 1; }",
        "[[kernel, max_total_threads_per_threadgroup(32 * 4)]] void f(device float* o [[ buffer(0) ]]) { o[0] = 1; }",
        "template <typename T> kernel void g(device T* o);\n"
        'template [[host_name("f")]] kernel void g(device float* o);\n'
        "template <typename T> kernel void g(device T* o) { o[0] = 1; }",
        "template <typename T> kernel void g(device T* o) { o[0] = 2; }\n"
        'template <> [[host_name("f")]] kernel void g<float>(device float* o) { o[0] = 1; }',
    ],
)
def test_ways_to_declare_a_kernel(source: str) -> None:
    assert run(source)[0] == 1


def test_double_precision_is_an_extension() -> None:
    out = torch.zeros(1, dtype=torch.float64)
    compile_shader(STDLIB + "kernel void f(device double* o) { o[0] = exp(double(1)) + 1e-12; }").f(out, threads=1)
    assert abs(out.item() - 2.718281828460045) <= 1e-15


def test_pointers_in_buffers() -> None:
    out, x = torch.zeros(1), torch.tensor([3.0])
    compile_shader(
        STDLIB + "kernel void f(device float* o, constant float* constant* p) { o[0] = p[1][0] + p[0][0]; }"
    ).f(out, [x, x], threads=1)
    assert out.item() == 6


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("kernel void f(device float* x) {\n    x[0] = missing;\n}", 4, "missing"),
        ("kernel void f(device float* x) {\n    x[0] = 1;\n", 3, "never closed"),
        ("kernel void f(device float* x) {\n    x[0] = 1];\n}", 4, "closes nothing"),
        ("kernel void f(texture2d<float> t [[texture(0)]]) {}", 3, "not supported"),
        ("kernel void f(threadgroup float* shared [[threadgroup(0)]]) {}", 3, "not supported"),
        ("kernel void f(device float* x [[buffer(1)]], device float* y [[buffer(1)]]) {}", 3, "twice"),
        ('template [[host_name("g")]] kernel void g<float>(device float*);', 3, "no kernel template 'g'"),
        ("#error stop here", 3, "stop here"),
        ("kernel void f(device float* x) { threadgroup float a[4]; x[0] = a[0] }", 3, "expected"),
        ("template <typename T> void g(T x) {\n x.none(); }\nkernel void f(device float* x) { g(1.0); }", 4, "none"),
    ],
)
def test_errors_name_the_line(source: str, line: int, message: str) -> None:
    with pytest.raises(KernelCompileError, match=message) as error:
        compile_shader(STDLIB + source)
    assert f"kernel.metal:{line}:" in str(error.value)


def test_line_directives_of_the_text_are_followed() -> None:
    with pytest.raises(KernelCompileError, match=r"my/own\.metal:101:"):
        compile_shader(STDLIB + '#line 100 "my/own.metal"\nkernel void f(device float* x) {\n x[0] = missing; }')


def test_reports_of_a_run_name_the_line() -> None:
    source = STDLIB + (
        "template <int N> kernel void f(device float* x, uint i [[thread_position_in_grid]]) {\n"
        "    if (i < N)\n"
        "        threadgroup_barrier(mem_flags::mem_threadgroup);\n}\n"
        'template [[host_name("f3")]] kernel void f<3>(device float*, uint);\n'
    )
    with pytest.raises(RuntimeError, match="line 5"):
        compile_shader(source).f3(torch.zeros(64), threads=64, group_size=64)
