"""The runtime cuda without a GPU: translation, compilation for two architectures, threadgroup memory, cache, errors."""

from __future__ import annotations

import importlib
import pkgutil
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mps_flash_attn import ops, source
from mps_flash_attn.errors import CompilerNotFoundError, KernelCompileError, UnsupportedError
from mps_flash_attn.launch import Capabilities, Launch
from mps_flash_attn.ops import calls
from mps_flash_attn.ops.attention import plan
from mps_flash_attn.ops.attention.cases import Case
from mps_flash_attn.ops.attention.problem import Causal, Options, describe
from mps_flash_attn.ops.gemm import plan as plan_of_products
from mps_flash_attn.runtime import base, simulator
from tests.ops.attention import assert_as_expected, ours

cuda: Any = pytest.importorskip("mps_flash_attn.runtime.cuda", reason="cuda-bindings is not installed")
nvrtc: Any = importlib.import_module("mps_flash_attn.runtime.cuda.nvrtc")

if nvrtc.why_no_nvrtc() is not None:
    pytest.skip(nvrtc.why_no_nvrtc(), allow_module_level=True)

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"
A100, H200 = (8, 0), (9, 0)
#: Threadgroup memory of one block, by compute capability.
THREADGROUP_BYTES = {A100: 163 * 1024, H200: 227 * 1024}


def capabilities(architecture: tuple[int, int]) -> Capabilities:
    wgmma = architecture == H200
    return Capabilities(THREADGROUP_BYTES[architecture], float64=True, matrix_unit="mma", wgmma=wgmma)


def compiled(text: str, architecture: tuple[int, int] = H200, name: str = "f") -> Any:
    library = cuda.compile_shader(text)
    return library.binary(next(info for info in library._infos.values() if info.name == name), architecture)


#: Kernels that differ in these alone take the same way through the preprocessor.
NUMBER_TYPES = ("float", "half", "bfloat")


def kind(launch: Launch) -> tuple[Any, ...]:
    """What shapes a launch's text, but for the types of its numbers."""
    return launch.kernel, *(define for define in launch.defines if define[1] not in NUMBER_TYPES)


@pytest.mark.parametrize("operation", [module.name for module in pkgutil.iter_modules(ops.__path__) if module.ispkg])
def test_every_kind_of_launch_compiles(operation: str, seed: int) -> None:
    """Each for one of the architectures and with one of the number types that have it, drawn anew in every run."""
    cases: Any = importlib.import_module(f"{ops.__name__}.{operation}.cases")
    kinds: dict[Any, list[tuple[tuple[int, int], Launch]]] = {}
    for architecture in (A100, H200):
        for launch in cases.launches(capabilities(architecture)):
            kinds.setdefault(kind(launch), []).append((architecture, launch))
    assert kinds
    generator = random.Random(seed)
    for choices in kinds.values():
        architecture, launch = generator.choice(choices)
        binary = compiled(launch.text, architecture, launch.kernel)
        assert binary.cubin.startswith(b"\x7fELF")
        (threadgroup_bytes,) = binary.threadgroup_bytes.values()
        assert threadgroup_bytes <= THREADGROUP_BYTES[architecture]


@pytest.mark.parametrize("head_size", [64, 128])
def test_attention_asks_for_the_memory_it_plans(head_size: int) -> None:
    problem = Case(4096, 4096, head_size).inputs(torch.float16)
    arguments = (problem.query, problem.key, problem.value, None)
    described = describe(
        *arguments, Options(problem.scale), **dict.fromkeys(("out", "grad_out", "dq", "dk", "dv"), problem.query)
    )
    device = capabilities(H200)
    for launch in (plan.forward(described, device), *plan.backward(described, device, False)):
        binary = compiled(launch.text, name=launch.kernel)
        assert sum(binary.threadgroup_bytes.values()) == launch.threadgroup_bytes
        if launch.kernel != "attention_backward_delta":
            assert ("WGMMA", 1) in launch.defines
        assert "0 bytes spill stores" in binary.report
        assert "serialized" not in binary.report, binary.report


def test_variables_lie_behind_each_other_in_one_block() -> None:
    binary = compiled(
        HEADER
        + """kernel void f(device float* x, uint i [[thread_position_in_grid]]) {
            threadgroup half a[5];
            threadgroup alignas(64) float b[3][2], c;
            { threadgroup float inner[4]; inner[i % 4] = i; }
            threadgroup char big[200000];
            x[i] = a[0] + b[0][0] + c + big[i];
        }"""
    )
    # a at 0, b at 64, c at 128, big at 144; `inner` is the compiler's.
    assert binary.threadgroup_bytes == {"metal_f": 144 + 200000}


def test_a_small_kernel_of_everything_the_shim_has() -> None:
    binary = compiled(
        HEADER
        + """
        struct Params { long n; alignas(8) float scale; };
        template <typename T> T twice(T x) { return x + x; }
        template <typename T>
        kernel void many(device T* x [[buffer(0)]], constant Params& p [[buffer(2)]], device atomic_uint* count,
                         uint3 at [[thread_position_in_grid]], ushort lane [[thread_index_in_simdgroup]]) {
            float4 v = float4(1, float2(2, 3), p.scale);
            v.xz = v.wy;
            half2 h = half2(v.xy) * half(0.5);
            bfloat b = bfloat(h.x) + 1;
            const float total = simd_sum(float(b)) + simd_shuffle_xor(v.x, 1) + select(1.0f, NAN, lane > 40);
            atomic_fetch_add_explicit(count, 1u, memory_order_relaxed);
            x[at.x] = T(twice(total) * fast::exp(-fabs(total)) + precise::tanh(total) + clamp(int(p.n), 0, 3));
        }
        template [[host_name("f")]] kernel void many<half>(device half*, constant Params&, device atomic_uint*, uint3,
                                                           ushort);
        """
    )
    assert "0 bytes spill stores" in binary.report


def test_warpgroups_multiply_and_nothing_waits_for_them() -> None:
    operands = plan_of_products.Operand(True, 4096, aligned=True), plan_of_products.Operand(False, 4096, aligned=True)
    problem = plan_of_products.Problem(torch.float16, (), 4096, 4096, 4096, *operands)
    launch = plan_of_products.product(problem, capabilities(H200)).product
    binary = compiled(launch.text, name=launch.kernel)
    assert ("WGMMA", 1) in launch.defines
    assert "0 bytes spill stores" in binary.report
    assert "serialized" not in binary.report, binary.report  # what ptxas says where products wait for each other
    assert sum(binary.threadgroup_bytes.values()) == launch.threadgroup_bytes
    assert ("WGMMA", 0) in plan_of_products.product(problem, capabilities(A100)).product.defines


def test_errors_have_the_compilers_words_and_the_line() -> None:
    text = HEADER + "kernel void f(device float* x) {\n    x[0] = missing;\n}"
    with pytest.raises(KernelCompileError, match=r"(?s)kernel 'f' did not compile.*kernel\.metal\(4\).*missing"):
        compiled(text)
    assert compiled(HEADER + "kernel void f(device float* x) { x[0] = 1; }").cubin  # a failure leaves nothing behind


def test_architectures_that_are_refused() -> None:
    text = HEADER + "kernel void f(device float* x) { x[0] = 2; }"
    with pytest.raises(UnsupportedError, match=r"8\.0 or newer; the GPU has 7\.5"):
        compiled(text, (7, 5))
    with pytest.raises(KernelCompileError, match=r"not for 99\.0; install another version"):
        compiled(text, (99, 0))


def test_machine_code_is_kept_by_text_architecture_and_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPS_FLASH_ATTN_CACHE_DIR", str(tmp_path))
    compilations = []
    compile_ = nvrtc._compile
    monkeypatch.setattr(nvrtc, "_compile", lambda *args: compilations.append(args) or compile_(*args))
    text = HEADER + "kernel void f(device float* x) { x[0] = 3; }"
    first = compiled(text)
    assert compiled(text) == first
    assert len(compilations) == 1
    compiled(text, A100)
    compiled(text + "\n")
    monkeypatch.setattr(nvrtc, "_version", lambda: (1, 0))
    compiled(text)
    assert len(compilations) == 4
    assert len(list((tmp_path / "cuda").glob("*.cubin"))) == 4


def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise RuntimeError("libnvrtc.so was not found")

    monkeypatch.setattr(nvrtc.nvrtc, "nvrtcVersion", missing)
    nvrtc._version.cache_clear()
    with pytest.raises(CompilerNotFoundError, match="was not found"):
        nvrtc._version()
    assert "pip install" in nvrtc.why_no_nvrtc()
    monkeypatch.undo()
    assert nvrtc.why_no_nvrtc() is None


def test_why_it_cannot_be_used_here(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.unavailable.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert re.search("NVIDIA GPU|without CUDA", str(base.why_not("cuda")))
    cuda.unavailable.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old GPU")
    assert "an old GPU has compute capability 7.0; kernels need 8.0" in str(base.why_not("cuda"))
    cuda.unavailable.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_tiles_of_nvidia_gpus_give_the_same_on_the_simulator(
    dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two row tiles a simdgroup, rows in threadgroup memory, two buffers: with a head size small enough for 32 KiB."""
    texts = []
    specialise = source.specialise
    monkeypatch.setattr(source, "specialise", lambda path, defines: texts.append(defines) or specialise(path, defines))
    monkeypatch.setattr(simulator, "CAPABILITIES", Capabilities(matrix_unit="mma"))
    calls.forget()
    inputs = Case(300, 270, 16, query_heads=4, key_heads=2, causal=Causal.TOP_LEFT).inputs(dtype)
    try:
        results = ours(inputs)
    finally:
        calls.forget()
    assert {dict(defines).get("ROW_TILES") for defines in texts} >= {2}
    assert_as_expected(inputs, results)
