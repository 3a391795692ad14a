"""The C ABI: csrc/mfa.h against what Swift exports, and what every function does with bad input."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from . import native
from .kernels import SCALE, distinct

HEADER = native.ROOT / "csrc/mfa.h"


def _declared() -> set[str]:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    return set(re.findall(r"\b(mfa_\w+)\(", text))


def _compile(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    unit = folder / "unit.c"
    unit.write_text(text)
    command = ["clang-19", "-fsyntax-only", f"-I{HEADER.parent}", str(unit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _exported_declarations() -> str:
    """C declarations of the exports, as Swift's compiler wrote them."""
    lines = re.findall(
        r"^SWIFT_EXTERN (.*?) SWIFT_NOEXCEPT.*;$", (native.LIB / "MetalRuntime.h").read_text(), re.MULTILINE
    )
    return "".join(f"{line};\n" for line in lines)


def test_exports_are_those_of_the_header() -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", native.LIB / "libMetalRuntime.so"], capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r" T (mfa_\w+)", symbols)) == _declared()


def test_signatures_are_those_of_the_header(tmp_path: Path) -> None:
    """C refuses two declarations of one function that differ."""
    exported = _exported_declarations()
    assert set(re.findall(r"\b(mfa_\w+)\(", exported)) == _declared()
    result = _compile(tmp_path, HEADER.read_text() + exported)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [("int64_t* kernel)", "int32_t* kernel)"), ("uint32_t count)", "uint64_t count)"), ("MFAStatus mfa", "void mfa")],
)
def test_a_signature_that_differs_is_found(tmp_path: Path, before: str, after: str) -> None:
    text = HEADER.read_text()
    assert before in text
    result = _compile(tmp_path, text.replace(before, after) + _exported_declarations())
    assert "conflicting types" in result.stderr


def test_structures_have_the_layout_of_the_header(tmp_path: Path) -> None:
    checks = [
        f"static_assert(offsetof({name}, {field[0]}) == {getattr(structure, field[0]).offset});"
        for name, structure in native.STRUCTURES.items()
        for field in structure._fields_
    ]
    checks += [f"static_assert(sizeof({n}) == {ctypes.sizeof(s)});" for n, s in native.STRUCTURES.items()]
    result = _compile(tmp_path, '#include <assert.h>\n#include <stddef.h>\n#include "mfa.h"\n' + "\n".join(checks))
    assert result.returncode == 0, result.stderr


def test_version_is_that_of_the_header(metal: native.Runtime) -> None:
    version = re.search(r"#define MFA_ABI_VERSION (\d+)", HEADER.read_text())
    assert version is not None
    assert metal.mfa.mfa_abi_version() == int(version[1])


def test_device_is_described(metal: native.Runtime) -> None:
    info = metal.device_info()
    assert info.name == b"Simulated GPU"
    assert info.os_build
    assert (info.gpu_family, info.supports_bfloat, info.has_unified_memory) == (7, 1, 1)
    assert (info.max_threads_per_threadgroup, info.max_threadgroup_bytes) == (1024, 32768)
    assert info.max_buffer_bytes == 4 << 30
    assert info.gpu_cores == 8


@pytest.mark.parametrize("cores", ["", "unknown"])
def test_a_gpu_whose_cores_are_unknown_is_described(cores: str) -> None:
    """As where the registry of drivers has no such driver, or a driver without that property."""
    code = "from tests.apple.metal import native; print(native.load().device_info().gpu_cores)"
    environment = {**os.environ, "STANDIN_GPU_CORES": cores}
    result = subprocess.run([sys.executable, "-c", code], cwd=native.ROOT, env=environment, capture_output=True)
    assert result.stdout == b"0\n", result.stderr


def test_null_pointers_are_refused(metal: native.Runtime) -> None:
    number = ctypes.c_int64()
    for status in (
        metal.mfa.mfa_device_info(None, native.DeviceInfo()),
        metal.mfa.mfa_device_info(metal.device, None),
        metal.mfa.mfa_kernel(None, b"", b"", number),
        metal.mfa.mfa_kernel(metal.device, None, b"k", number),
        metal.mfa.mfa_kernel(metal.device, b"", None, number),
        metal.mfa.mfa_kernel(metal.device, b"", b"k", None),
        metal.mfa.mfa_encode(None, native.LaunchRecord(), 1),
        metal.mfa.mfa_cache_stats(None),
        metal.mfa.mfa_configure(None, None, 1, 1),
        metal.mfa.mfa_configure(None, b"1", 0, 1),
    ):
        assert status == 1
        assert re.search("null pointer|is no|at least 1", metal.mfa.mfa_last_error().decode())


def test_objects_of_another_kind_are_refused(metal: native.Runtime) -> None:
    with pytest.raises(native.MetalError, match="encoder is no MTLComputeCommandEncoder"):
        metal.encode(metal.device, native.Launch(1))


def test_an_error_belongs_to_its_thread(metal: native.Runtime) -> None:
    with pytest.raises(native.MetalError, match="number 12345"):
        metal.kernel_limits(12345)
    others: list[bytes] = []
    thread = threading.Thread(target=lambda: others.append(metal.mfa.mfa_last_error()))
    thread.start()
    thread.join()
    assert others == [b""]
    assert b"12345" in metal.mfa.mfa_last_error()


def test_a_compile_error_keeps_the_compilers_words(metal: native.Runtime) -> None:
    broken = distinct(SCALE.replace("factor;", "factr;"))
    with pytest.raises(
        native.MetalError, match=r"(?s)kernel 'scale' did not compile.*factr.*MTLLibraryErrorDomain 3"
    ) as error:
        metal.kernel(broken, "scale")
    assert error.value.status == 2
    assert metal.kernel(SCALE, "scale") > 0


def test_a_missing_function_names_those_there_are(metal: native.Runtime) -> None:
    with pytest.raises(native.MetalError, match="has no kernel 'scales'; it has 'scale'") as error:
        metal.kernel(SCALE, "scales")
    assert error.value.status == 2


TOO_MUCH_THREADGROUP_MEMORY = "Threadgroup memory size (32772) exceeds the maximum threadgroup memory allowed (32768)"


def test_a_pipeline_that_metal_refuses_keeps_its_words(metal: native.Runtime) -> None:
    text = distinct()
    metal.standin.standin_refuse_next_pipeline(TOO_MUCH_THREADGROUP_MEMORY.encode())
    with pytest.raises(
        native.MetalError, match=r"kernel 'scale' did not become a pipeline:\nThreadgroup .*32772"
    ) as error:
        metal.kernel(text, "scale")
    assert error.value.status == 2
    assert metal.kernel(text, "scale") > 0


def test_nothing_of_a_failure_is_kept(metal: native.Runtime) -> None:
    kernels = metal.stats()["kernels"]
    for source, function in ((distinct("kernel void k(nothing x) {}"), "k"), (distinct(), "scales")):
        with pytest.raises(native.MetalError):
            metal.kernel(source, function)
    assert metal.stats()["kernels"] == kernels


def test_a_text_and_function_keep_their_number(metal: native.Runtime) -> None:
    text = distinct()
    assert metal.kernel(text, "scale") == metal.kernel(text, "scale") != metal.kernel(distinct(), "scale")


def test_a_number_is_good_until_it_was_released_as_often_as_asked_for(metal: native.Runtime) -> None:
    text = distinct()
    number = metal.kernel(text, "scale")
    assert metal.kernel(text, "scale") == number
    metal.configure(most_pipelines=1)
    for _ in range(2):
        metal.kernel_limits(number)
        metal.kernel(distinct(), "scale")  # the other pipeline makes way
        metal.release_kernel(number)
    for use in (metal.kernel_limits, metal.release_kernel):
        with pytest.raises(native.MetalError, match=f"no kernel number {number}"):
            use(number)
    assert metal.kernel(text, "scale") > number


def test_limits_are_the_pipelines(metal: native.Runtime) -> None:
    assert metal.kernel_limits(metal.kernel(SCALE, "scale")) == (1024, 32, 0)
