"""The face of compile_shader: what kernels accept, how arguments reach them, what is refused and in which words."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import torch

from mps_flash_attn import KernelCompileError, KernelLaunchError
from mps_flash_attn.runtime import simulator

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"
# Shows the bytes that an argument was passed as.
BYTES = HEADER + (
    "kernel void show(device uchar* out, const constant uchar* bytes, uint i [[thread_position_in_grid]])"
    "{ out[i] = bytes[i]; }"
)
TWO = (
    HEADER
    + """
kernel void twice(device float* x, uint i [[thread_position_in_grid]]) { x[i] *= 2; }
kernel void scale(device float* x, constant float& factor, uint i [[thread_position_in_grid]]) { x[i] *= factor; }
"""
)
PLACES = (
    HEADER
    + """
kernel void places(device uint* out, uint3 at [[thread_position_in_grid]], uint3 grid [[threads_per_grid]],
                   uint3 size [[threads_per_threadgroup]]) {
    out[(at.z * grid.y + at.y) * grid.x + at.x] = size.x + 100 * size.y + 10000 * size.z;
}
"""
)


def library() -> simulator.ShaderLibrary:
    return simulator.compile_shader(TWO)


def shown(argument: object, count: int, **options: object) -> bytes:
    out = torch.zeros(count, dtype=torch.uint8)
    simulator.compile_shader(BYTES).show(out, argument, threads=count, **options)
    return out.numpy().tobytes()


def test_kernels_are_attributes() -> None:
    lib = library()
    assert dir(lib) == ["scale", "twice"]
    assert lib.twice is lib.twice
    assert "twice" in repr(lib.twice)
    assert (lib.twice.max_threads_per_threadgroup, lib.twice.thread_execution_width) == (1024, 32)
    with pytest.raises(AttributeError, match="no kernel 'thrice'; it has 'twice', 'scale'"):
        lib.thrice  # noqa: B018


def test_the_same_text_is_compiled_once() -> None:
    assert simulator.compile_shader(TWO) is library()


def test_grid_defaults_to_the_elements_of_the_first_tensor() -> None:
    x = torch.arange(3000.0)
    library().scale(x.view(30, 100), 0.5)
    assert torch.equal(x, torch.arange(3000.0) / 2)


def test_storage_offset_and_strides_are_the_callers_business() -> None:
    x = torch.zeros(10)
    library().scale(x.fill_(1)[4:], 3.0, threads=2)
    assert x.tolist() == [1, 1, 1, 1, 3, 3, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("argument", "casts", "expected"),
    [
        (-5, None, struct.pack("q", -5)),
        (True, None, struct.pack("q", 1)),
        (2.5, None, struct.pack("f", 2.5)),
        (float("inf"), None, struct.pack("f", float("inf"))),
        ([1, 2, 3], None, struct.pack("3q", 1, 2, 3)),
        ((1.5, 2), None, struct.pack("2f", 1.5, 2)),
        (7, "int32", struct.pack("i", 7)),
        (7, "int16", struct.pack("h", 7)),
        ([7, -8], "int8", struct.pack("2b", 7, -8)),
        (200, "uint8", struct.pack("B", 200)),
        (2.9, "int32", struct.pack("i", 2)),
        (2.5, "fp16", struct.pack("e", 2.5)),
        ([1, 2], "fp16", struct.pack("2e", 1, 2)),
        (1.0, "bf16", b"\x80\x3f"),
        (7, {1: "int32"}, struct.pack("i", 7)),
        (7, {0: "int32"}, struct.pack("q", 7)),
    ],
)
def test_numbers_are_passed_as_pytorch_passes_them(argument: object, casts: object, expected: bytes) -> None:
    assert shown(argument, len(expected), arg_casts=casts) == expected


def test_lists_of_tensors_are_passed_as_addresses() -> None:
    tensors = [torch.zeros(3), torch.zeros(4)[1:]]
    assert shown(tensors, 16) == struct.pack("2P", *(tensor.data_ptr() for tensor in tensors))


@pytest.mark.parametrize(
    ("threads", "group", "expected"),
    [
        (5, 4, {4: 4, 1: 1}),
        ((5,), (8,), {5: 5}),
        ((4, 3), (3, 2), {203: 6, 103: 3, 201: 2, 101: 1}),
        ((2, 3, 4), (2, 2, 3), {30202: 12, 30102: 6, 10202: 4, 10102: 2}),
        ((1500,), None, {1024: 1024, 476: 476}),
        ((7, 2), None, {107: 14}),
    ],
)
def test_threadgroups_at_the_edges_of_the_grid_are_smaller(
    threads: int | tuple[int, ...], group: tuple[int, ...] | None, expected: dict[int, int]
) -> None:
    count = torch.Size((threads,) if isinstance(threads, int) else threads).numel()
    out = torch.zeros(count, dtype=torch.int32)
    simulator.compile_shader(PLACES).places(out, threads=threads, group_size=group)
    # In one or two dimensions the sizes of the others are 1.
    missing = {1: 10100, 2: 10000}.get(1 if isinstance(threads, int) else len(threads), 0)
    values, counts = out.unique(return_counts=True)
    assert dict(zip((values - missing).tolist(), counts.tolist(), strict=True)) == expected


def test_an_empty_grid_launches_nothing() -> None:
    library().twice(torch.empty(0))
    library().twice(torch.zeros(1), threads=(4, 0))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda lib, x: lib.scale(x), TypeError, r"takes 2 arguments \(x \[\[buffer\(0\)\]\], factor .*\), got 1"),
        (lambda lib, x: lib.twice(x, 1), TypeError, "takes 1 arguments .* got 2"),
        (lambda lib, x: lib.twice(1.0, threads=1), TypeError, r"argument 0 \(x\) of kernel 'twice' is written"),
        (lambda lib, x: lib.scale(x, "2"), TypeError, r"argument 1 \(factor\) .* is of type str; accepted are"),
        (lambda lib, x: lib.scale(x, None), TypeError, "is of type NoneType"),
        (lambda lib, x: lib.scale(x, []), ValueError, "is an empty list"),
        (lambda lib, x: lib.scale(x, [1.0] * 1025), ValueError, "takes 4100 bytes; at most 4096"),
        (lambda lib, x: lib.scale(x, [1, 2.5]), TypeError, "cannot be passed as int64"),
        (lambda lib, x: lib.scale(x, 1 << 63), TypeError, "cannot be passed as int64"),
        (lambda lib, x: lib.scale(x, 300, arg_casts="int8"), TypeError, "cannot be passed as int8"),
        (lambda lib, x: lib.scale(x, 1, arg_casts="int4"), ValueError, "unknown cast 'int4' in arg_casts"),
        (lambda lib, x: lib.scale([x, 3], 1.0, threads=1), TypeError, "all its elements must be CPU tensors"),
        (lambda lib, x: lib.twice(x.to("meta")), ValueError, "is on device meta; the simulator takes CPU tensors"),
        (lambda lib, x: lib.twice(x, threads=(1, 1, 1, 1)), ValueError, "threads must be an int or one to three"),
        (lambda lib, x: lib.twice(x, threads=-1), ValueError, r"from 0 to 2\*\*32 - 1, got -1"),
        (lambda lib, x: lib.twice(x, threads=4, group_size=(2, 2)), ValueError, "equally many numbers"),
        (lambda lib, x: lib.twice(x, group_size=1025), ValueError, r"group_size \(1025, 1, 1\) makes 1025 threads"),
        (lambda lib, x: lib.twice(x, group_size=0), ValueError, "makes 0 threads; a threadgroup has 1 to 1024"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    call: Callable[[simulator.ShaderLibrary, torch.Tensor], None], error: type[Exception], words: str
) -> None:
    x = torch.ones(4)
    with pytest.raises(error, match=words):
        call(library(), x)
    assert torch.equal(x, torch.ones(4))


def test_threads_are_needed_without_a_tensor() -> None:
    kernel = simulator.compile_shader(HEADER + "kernel void nothing(constant long& n) {}").nothing
    kernel(1, threads=4)
    with pytest.raises(ValueError, match="threads is needed, as no argument is a tensor"):
        kernel(1)


def test_metal_has_31_buffers() -> None:
    lib = simulator.compile_shader(
        HEADER
        + """kernel void most(device float* x [[buffer(30)]]) { x[0] = 1; }
             kernel void more(device float* x [[buffer(31)]]) { x[0] = 1; }"""
    )
    x = torch.zeros(1)
    lib.most(*[0] * 30, x, threads=1)
    assert x == 1
    with pytest.raises(KernelLaunchError, match=r"kernel 'more' uses \[\[buffer\(31\)\]\]; Metal has buffers 0 to 30"):
        lib.more  # noqa: B018


def test_text_must_be_text() -> None:
    with pytest.raises(TypeError, match="source must be a str with Metal text, got bytes"):
        simulator.compile_shader(b"")  # type: ignore[arg-type]


def test_compiler_errors_show_lines_of_the_metal_text_and_name_the_kernel() -> None:
    text = HEADER + "kernel void broken(device float* x) {\n    x[0] = undeclared;\n}\n"
    with pytest.raises(KernelCompileError, match=r"(?s)'broken'.*kernel\.metal:4:\d+: error: .*undeclared"):
        simulator.compile_shader(text)


def test_the_number_of_os_threads_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_FLASH_ATTN_SIMULATOR_THREADS", "many")
    with pytest.raises(ValueError, match="MPS_FLASH_ATTN_SIMULATOR_THREADS must be a positive number, got 'many'"):
        library().twice(torch.ones(1))
