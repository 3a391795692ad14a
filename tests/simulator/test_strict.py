"""The strict parse: it rejects each planted fault in its line, and passes the same text without the fault."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils._cpp_embed_headers import _embed_headers

from mps_flash_attn import ops, source
from mps_flash_attn.errors import CompilerNotFoundError, KernelCompileError
from mps_flash_attn.launch import Launch
from mps_flash_attn.runtime.simulator import strict
from mps_flash_attn.runtime.translation.tokens import Kind, following, tokenize

pytest.importorskip("clang.cindex")

PRELUDE = """\
#include <metal_stdlib>
using namespace metal;
struct Args { float scale; int rows; };
struct Point {
    float x, y;
    float norm() const { return x * x + y * y; }
    float norm_of(int i) const device { return x * i; }
};
float helper(thread float *p) { return p[0]; }
template <typename T> T twice(T value) { return value + value; }
"""

SPACES = ("device", "threadgroup", "constant", "thread")

# Where a planted line stands: among declarations, in a kernel, among a kernel's parameters.
SCOPE = PRELUDE + "@\n"
BODY = (
    PRELUDE
    + """\
kernel void other(device float *out [[buffer(0)]]) { out[0] = 1; }
kernel void k(device float *x [[buffer(0)]], device Point *points [[buffer(1)]], constant Args &args [[buffer(2)]],
              device atomic_int *counter [[buffer(3)]], device half *h [[buffer(4)]],
              uint i [[thread_position_in_grid]], ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup float shared[64];
    float v = x[i];
    int n = args.rows;
    uint m = i;
    float4 f4 = float4(v, 1, 2, 3);
    half4 h4 = half4(f4);
    bfloat b = bfloat(v);
    simdgroup_float8x8 matrix;
    shared[lane] = v;
@
    x[i] = v + n + m + f4.x + h4.y + float(b);
}
"""
)
PARAMETER = (
    PRELUDE
    + """\
kernel void k(device float *x [[buffer(0)]],
@
              uint i [[thread_position_in_grid]]) {
    x[i] = 1;
}
"""
)


@dataclass(frozen=True)
class Fault:
    """A line that Metal rejects, what the message says of it, and its twin that Metal accepts."""

    name: str
    where: str
    bad: str
    good: str
    words: str


FAULTS = (
    # Address spaces
    Fault("device-to-thread", BODY, "thread float *p = x; v = *p;", "device float *p = x; v = *p;", "'device float"),
    Fault(
        "threadgroup-to-device",
        BODY,
        "device float *p = shared; v = *p;",
        "threadgroup float *p = shared; v = *p;",
        "threadgroup float",
    ),
    Fault(
        "device-to-constant", BODY, "constant float *p = x; v = *p;", "const device float *p = x; v = *p;", "constant"
    ),
    Fault("constant-to-device", BODY, "const device Args *p = &args;", "constant Args *p = &args;", "constant Args"),
    Fault("passed-to-thread-pointer", BODY, "v = helper(x);", "v = helper(&v);", "no matching function.*helper"),
    Fault(
        "cast-of-space",
        BODY,
        "v = *(thread float *)x;",
        "v = *(device float *)(x + 1);",
        "cast.*address space|C-style cast",
    ),
    Fault(
        "reinterpret-of-space",
        BODY,
        "v = reinterpret_cast<device float4 *>(shared)->x;",
        "v = reinterpret_cast<threadgroup float4 *>(shared)->x;",
        "reinterpret_cast",
    ),
    Fault("pointers-compared", BODY, "if (x == shared) v = 0;", "if (x == x + n) v = 0;", "distinct pointer types"),
    Fault("pointers-chosen", BODY, "v = *(n ? x : shared);", "v = *(n ? x : x + 1);", "incompatible operand types"),
    Fault("method-of-device-object", BODY, "v = points[i].norm();", "v = points[i].norm_of(2);", "'device Point'"),
    Fault(
        "method-of-constant-object",
        SCOPE,
        "float g(constant Point &p) { return p.norm(); }",
        "float g(thread Point &p) { return p.norm(); }",
        "'constant Point'",
    ),
    Fault("constant-written", BODY, "args.scale = 1;", "v = args.scale;", "not assignable"),
    Fault(
        "space-of-parameter",
        SCOPE,
        "float g(device float v) { return v; }",
        "float g(float v) { return v; }",
        "parameter",
    ),
    Fault(
        "space-of-field", SCOPE, "struct S { threadgroup float v; };", "struct S { threadgroup float *v; };", "field"
    ),
    Fault(
        "only-in-an-instance",
        SCOPE,
        "template <typename P> float first(P p) { thread float *q = p; return *q; }"
        " kernel void k(device float *x) { x[0] = first(x); }",
        "template <typename P> float first(P p) { P q = p; return *q; }"
        " kernel void k(device float *x) { x[0] = first(x); }",
        "'device float",
    ),
    # Pointers without a space
    Fault(
        "unqualified-pointer",
        BODY,
        "float *p = x; v = *p;",
        "device float *p = x; v = *p;",
        "pointer type must have explicit",
    ),
    Fault(
        "unqualified-pointer-to-local",
        BODY,
        "float *p = &v; v = *p;",
        "thread float *p = &v; v = *p;",
        "pointer type must",
    ),
    Fault(
        "unqualified-reference",
        BODY,
        "float &r = x[0]; v = r;",
        "device float &r = x[0]; v = r;",
        "reference type must",
    ),
    Fault("unqualified-cast", BODY, "v = ((float4 *)x)->x;", "v = ((device float4 *)x)->x;", "pointer type must"),
    Fault(
        "unqualified-parameter",
        SCOPE,
        "void g(float *p) { p[0] = 1; }",
        "void g(thread float *p) { p[0] = 1; }",
        "pointer type",
    ),
    Fault(
        "unqualified-const-reference",
        SCOPE,
        "float g(const float &p) { return p; }",
        "float g(const thread float &p) { return p; }",
        "reference type",
    ),
    Fault(
        "unqualified-array-reference",
        SCOPE,
        "void g(float (&p)[4]) { p[0] = 1; }",
        "void g(thread float (&p)[4]) { p[0] = 1; }",
        "reference type",
    ),
    Fault(
        "unqualified-in-template",
        SCOPE,
        "template <typename T> void g(T *p) { p[0] = T(1); }",
        "template <typename T> void g(device T *p) { p[0] = T(1); }",
        "pointer type",
    ),
    Fault(
        "unqualified-inner-pointer",
        SCOPE,
        "void g(float *device *p) { p[0] = 0; }",
        "void g(device float *device *p) { p[0] = 0; }",
        "pointer type",
    ),
    Fault(
        "unqualified-return",
        SCOPE,
        "struct S { float v; float &at() { return v; } };",
        "struct S { float v; thread float &at() { return v; } };",
        "reference type",
    ),
    Fault("unqualified-field", SCOPE, "struct S { float *v; };", "struct S { device float *v; };", "pointer type"),
    Fault("unqualified-alias", SCOPE, "using P = const float *;", "using P = const device float *;", "pointer type"),
    # Types
    Fault("double", BODY, "double d = v; v = d;", "float d = v; v = d;", "'double' is not supported"),
    Fault("long-double", BODY, "v = 1.5L;", "v = 1.5;", "'long double' is not supported"),
    Fault("long-long", BODY, "long long d = n; n = d;", "long d = n; n = d;", "'long long' is not supported"),
    Fault("vector-widened", BODY, "f4 = h4;", "f4 = float4(h4);", "half4"),
    Fault("vector-of-wrong-size", BODY, "float3 f3 = float3(f4);", "float3 f3 = float3(f4.xyz);", "vector"),
    Fault("vector-arguments", BODY, "f4 = float4(f4.xy, 1);", "f4 = float4(f4.xy, 1, 2);", "do not add up"),
    Fault("vector-as-condition", BODY, "if (f4 == f4) v = 0;", "if (all(f4 == f4)) v = 0;", "bool"),
    Fault("reference-to-vector-element", BODY, "thread float &e = f4.x; e = 1;", "f4.x = 1;", "vector element"),
    Fault("length-unknown", BODY, "float list[n]; list[0] = v;", "float list[8]; list[0] = v;", "constant expression"),
    Fault(
        "atomic-of-half",
        SCOPE,
        "void g(device atomic<half> *p) { atomic_load_explicit(p, memory_order_relaxed); }",
        "void g(device atomic<int> *p) { atomic_load_explicit(p, memory_order_relaxed); }",
        "atomic",
    ),
    # The language
    Fault("goto", BODY, "if (n) goto end; end: v = 1;", "if (n) v = 1;", "'goto' is not supported"),
    Fault("lambda", BODY, "auto f = [](float a) { return a; }; v = f(v);", "v = twice(v);", "lambda"),
    Fault("new", BODY, "auto p = new int(3);", "int p = 3; n = p;", "new"),
    Fault("throw", BODY, "if (n) throw 1;", "if (n) return;", "throw|exceptions"),
    Fault("try", BODY, "try { v = 1; } catch (...) {}", "{ v = 1; }", "try|exceptions"),
    Fault(
        "static-local",
        BODY,
        "static int calls = 0; n += calls++;",
        "int calls = 0; n += calls++;",
        "cannot be declared static",
    ),
    Fault("register", BODY, "register int r = n; n = r;", "int r = n; n = r;", "'register'"),
    Fault("thread-local", BODY, "thread_local int r = 1; n = r;", "thread int r = 1; n = r;", "'thread_local'"),
    Fault("typeid", BODY, "bool same = &typeid(v) == &typeid(n);", "bool same = is_same_v<float, int>;", "typeid"),
    Fault(
        "dynamic-cast",
        SCOPE,
        "struct D : Point {}; thread D *g(thread Point *p) { return dynamic_cast<thread D *>(p); }",
        "struct D : Point {}; thread D *g(thread Point *p) { return static_cast<thread D *>(p); }",
        "dynamic_cast|polymorphic",
    ),
    Fault(
        "virtual",
        SCOPE,
        "struct S { virtual float f() { return 1; } };",
        "struct S { float f() { return 1; } };",
        "virtual",
    ),
    Fault(
        "function-pointer",
        SCOPE,
        "float g(float (*f)(float)) { return f(1); }",
        "float g(float f) { return f; }",
        "pointers to functions",
    ),
    Fault(
        "recursion",
        SCOPE,
        "int f(int n) { return n < 2 ? 1 : n * f(n - 1); }",
        "int f(int n) { int r = 1; while (n > 1) r *= n--; return r; }",
        "recursive.*'f' calls itself",
    ),
    Fault(
        "mutual-recursion",
        SCOPE,
        "int f(int n); int g(int n) { return f(n); } int f(int n) { return n ? g(n - 1) : 0; }",
        "int f(int n); int g(int n) { return f(n); } int f(int n) { return n; }",
        "recursive.*which calls",
    ),
    Fault(
        "recursion-of-template",
        SCOPE,
        "template <typename T> T f(T n) { return n < 2 ? n : n * f(n - 1); }",
        "template <int N> int f() { return N + f<N - 1>(); } template <> int f<0>() { return 0; }",
        "recursive",
    ),
    Fault("kernel-called", BODY, "other(x);", "x[0] = 1;", "kernel function 'other' cannot be called"),
    Fault("main", SCOPE, "void main() {}", "void start() {}", "'main'"),
    Fault("standard-header", SCOPE, "#include <cmath>", "#include <metal_math>", "<cmath>.*no header of Metal"),
    Fault("standard-library", BODY, "v = std::max(v, 0.0f);", "v = metal::max(v, 0.0f);", "'std'"),
    # Variables
    Fault(
        "global", SCOPE, "int calls = 0;", "constant int calls = 0;", "program scope variable must reside in constant"
    ),
    Fault("constexpr-global", SCOPE, "constexpr int N = 4;", "constant constexpr int N = 4;", "program scope variable"),
    Fault(
        "static-member",
        SCOPE,
        "struct S { static constexpr int n = 4; };",
        "struct S { static constant constexpr int n = 4; };",
        "static data member must reside in constant",
    ),
    Fault("constant-without-value", SCOPE, "constant int n;", "constant int n = 3;", "must be initialized"),
    Fault(
        "threadgroup-global",
        SCOPE,
        "threadgroup float shared[4];",
        "constant float shared[1] = {1};",
        "constant|program scope",
    ),
    Fault(
        "threadgroup-in-helper",
        SCOPE,
        "float g(uint i) { threadgroup float s[4]; s[i] = 1; return s[0]; }",
        "kernel void g(uint i [[thread_position_in_grid]]) { threadgroup float s[4]; s[i] = 1; }",
        "no kernel",
    ),
    # The library
    Fault("ambiguous-max", BODY, "n = max(n, m);", "n = max(n, int(m));", "ambiguous"),
    Fault("unknown-function", BODY, "v = erf(v);", "v = exp(v);", "'erf'"),
    Fault("reduction-of-long", BODY, "n = simd_sum(long(n));", "n = simd_sum(n);", "simd_sum"),
    Fault("reduction-of-bfloat", BODY, "v = simd_sum(b);", "v = simd_sum(float(b));", "simd_sum"),
    Fault(
        "memory-order",
        BODY,
        "n = atomic_load_explicit(counter, memory_order_seq_cst);",
        "n = atomic_load_explicit(counter, memory_order_relaxed);",
        "memory_order_seq_cst",
    ),
    Fault(
        "plain-atomic",
        BODY,
        "counter[0] += 1;",
        "atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);",
        "no viable overloaded",
    ),
    Fault("matrix-from-thread", BODY, "simdgroup_load(matrix, &v);", "simdgroup_load(matrix, x);", "simdgroup_load"),
    Fault(
        "matrix-of-int",
        BODY,
        "simdgroup_matrix<int, 8, 8> wrong;",
        "simdgroup_matrix<half, 8, 8> right;",
        "half, bfloat or float",
    ),
    # Kernels
    Fault(
        "kernel-returns",
        SCOPE,
        "kernel float g(device float *x) { return x[0]; }",
        "kernel void g(device float *x) { x[0] = 1; }",
        "invalid return type 'float'",
    ),
    Fault(
        "kernel-overloaded",
        SCOPE,
        "kernel void g(device float *x) {} kernel void g(device int *x) {}",
        "kernel void g(device float *x) {} kernel void h(device int *x) {}",
        "overloaded",
    ),
    Fault(
        "kernel-is-member",
        SCOPE,
        "struct S { kernel void g(device float *x) {} };",
        "struct S { void g(device float *x) {} };",
        "member function",
    ),
    Fault(
        "unqualified-buffer",
        PARAMETER,
        "float *y [[buffer(1)]],",
        "device float *y [[buffer(1)]],",
        "pointer type must",
    ),
    Fault(
        "thread-buffer",
        PARAMETER,
        "thread float *y [[buffer(1)]],",
        "device float *y [[buffer(1)]],",
        "invalid address space",
    ),
    Fault(
        "threadgroup-buffer",
        PARAMETER,
        "threadgroup float *y [[buffer(1)]],",
        "threadgroup float *y [[threadgroup(0)]],",
        "invalid address space",
    ),
    Fault(
        "buffer-31",
        PARAMETER,
        "device float *y [[buffer(31)]],",
        "device float *y [[buffer(30)]],",
        "31 is not between 0 and 30",
    ),
    Fault(
        "buffer-twice",
        PARAMETER,
        "device float *y [[buffer(0)]],",
        "device float *y [[buffer(1)]],",
        "index 0: 'x' has it",
    ),
    Fault(
        "struct-by-value",
        PARAMETER,
        "Args args [[buffer(1)]],",
        "constant Args &args [[buffer(1)]],",
        "invalid type 'Args'",
    ),
    Fault("scalar-by-value", PARAMETER, "float scale,", "constant float &scale,", "invalid type 'float'"),
    Fault(
        "signed-position",
        PARAMETER,
        "int j [[thread_index_in_simdgroup]],",
        "ushort j [[thread_index_in_simdgroup]],",
        "type 'int' is not valid for attribute 'thread_index_in_simdgroup'",
    ),
    Fault(
        "vector-lane",
        PARAMETER,
        "uint2 j [[thread_index_in_simdgroup]],",
        "uint j [[thread_index_in_simdgroup]],",
        "'uint2'",
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_rejects_a_fault_in_its_line_and_passes_its_twin(fault: Fault) -> None:
    line = fault.where.partition("@")[0].count("\n") + 1
    found = strict.diagnose(fault.where.replace("@", fault.bad))
    assert {diagnostic.line for diagnostic in found} == {line}, found
    assert any(re.search(fault.words, diagnostic.message) for diagnostic in found), found
    strict.check(fault.where.replace("@", fault.good))


def test_every_fault_is_told_with_its_place() -> None:
    text = PRELUDE + '#line 7 "own.h"\nint calls;\n#line 1 "own.metal"\nvoid g(float *p) {\n    double d = *p;\n}\n'
    with pytest.raises(KernelCompileError) as caught:
        strict.check(text)
    message = str(caught.value)
    assert "3 errors" in message
    for place in (
        "own.h:7:5: error: program scope",
        "own.metal:1:15: error: pointer",
        "own.metal:2:5: error: 'double'",
    ):
        assert place in message, message


def test_columns_are_those_of_the_text() -> None:
    text = PRELUDE + "void g(device float4 *x) { x[0] = float4(1, 2, 3, 4); float *p = 0; } // é\n"
    (found,) = strict.diagnose(text)
    assert found.column == text.splitlines()[-1].index("p = 0") + 1


def test_messages_speak_metal() -> None:
    for fault in FAULTS:
        for diagnostic in strict.diagnose(fault.where.replace("@", fault.bad)):
            assert not re.search(r"OpenCL|__\w", diagnostic.message), diagnostic


def test_names_what_to_install_when_libclang_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clang", None)
    strict._clang.cache_clear()
    with pytest.raises(CompilerNotFoundError, match=r"pip install mps-flash-attn\[check\]"):
        strict.check(PRELUDE)


SOUND_KERNELS = Path(__file__).parent / "sound_kernels.metal"


def test_passes_what_people_write() -> None:
    strict.check(SOUND_KERNELS.read_text(encoding="utf-8"))


def test_misses_each_address_space_of_sound_kernels() -> None:
    text = SOUND_KERNELS.read_text(encoding="utf-8")
    lines = text.splitlines()
    tokens = tokenize(text)
    dropped = 0
    for index, token in enumerate(tokens):
        if token.kind is not Kind.NAME or token.text not in SPACES or tokens[following(tokens, index)].text == "(":
            continue
        if re.fullmatch(r"\s+threadgroup [^*&]*;", lines[token.line - 1]):
            continue  # an array of the thread's own is another program, and legal
        without = text[: token.offset] + text[token.offset + len(token.text) :]
        assert strict.diagnose(without), f"nothing missed without the {token.text!r} of line {token.line}"
        dropped += 1
    assert dropped > 25


PYTORCH = Path(torch.__file__).parent / "include"


def pytorch_text(header: str) -> str:
    """A kernel header of PyTorch's wheel as PyTorch's own build compiles it, with its includes in place."""
    lines = f"#include <metal_stdlib>\nusing namespace metal;\n#include <c10/metal/utils.h>\n#include <{header}>\n"
    return str(_embed_headers(lines.splitlines(keepends=True), [PYTORCH], set()))


@pytest.mark.parametrize("name", ["PrefillAttention", "DecodeAttention", "SortMerge"])
def test_passes_pytorchs_kernels(name: str) -> None:
    header = f"ATen/native/mps/kernels/{name}.h"
    if not (PYTORCH / header).exists():
        pytest.skip(f"this PyTorch has no {header}")
    strict.check(pytorch_text(header))


def project_launches() -> Iterator[Launch]:
    """What the operations say takes every branch of their kernels' preprocessor, in each type Metal has."""
    for operation in pkgutil.iter_modules(ops.__path__):
        if operation.ispkg:
            yield from importlib.import_module(f"{ops.__name__}.{operation.name}.cases").launches()


LAUNCHES = tuple(project_launches())


@pytest.mark.parametrize("file", source.kernel_files())
def test_passes_the_projects_kernels(file: str) -> None:
    texts = {launch.text for launch in LAUNCHES if launch.file == file}
    assert texts, f"no launch of {file} is checked: its operation's cases.launches() lacks it"
    elements = {dict(launch.defines)["ELEMENT"] for launch in LAUNCHES if launch.file == file}
    assert elements == {"float", "half", "bfloat"}
    for text in texts:
        start = time.process_time()
        strict.check(text)
        assert time.process_time() - start <= 2, "a kernel's strict parse takes two seconds of one core at most"
