"""The C++ compiler that turns translated kernels into libraries."""

from __future__ import annotations

import enum
import functools
import hashlib
import sys
import tempfile
from pathlib import Path

from ..._C import ABI_VERSION
from ...errors import KernelCompileError
from ..translation.host_compiler import Compiler

__all__ = ["INCLUDE", "Variant", "build", "flags", "headers_digest"]

INCLUDE = Path(__file__).parent / "csrc" / "include"
"""The folder of the headers that stand in for Metal's."""


class Variant(enum.Enum):
    """How a kernel library is built."""

    FAST = "fast"
    """Optimised; nothing is observed."""
    CHECKED = "checked"
    """Reports each access to memory to the executor, with its place in the Metal text."""


_COMMON_FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",  # to Metal's compiler a vector may lie over anything, and kernels move memory as vectors
    "-ffp-contract=off",
    "-w",
    "-fstack-clash-protection",
)
# A library's own memcpy is to be called from it, though the process has another: a Mac's linker does so by itself.
_LINK_FLAGS = () if sys.platform == "darwin" else ("-Wl,-Bsymbolic",)
_FAST_FLAGS = ("-O3",)
# Only the instrumentation of the sanitizers is used: simt_checked.h answers its calls.
_CHECKED_FLAGS = ("-O1", "-g", "-DSIMT_CHECKED", "-include", "simt_checked.h", "-fsanitize=thread")
_CHECKED_GCC_FLAGS = ("-fsanitize=bounds",)
_CHECKED_CLANG_FLAGS = ("-fsanitize=array-bounds", "-mllvm", "-tsan-instrument-read-before-write=1")


def flags(compiler: Compiler, variant: Variant) -> tuple[str, ...]:
    """The flags that decide what the library of a translated text contains."""
    if variant is Variant.FAST:
        return _COMMON_FLAGS + _FAST_FLAGS + _cpu_flags()
    return _COMMON_FLAGS + _CHECKED_FLAGS + (_CHECKED_CLANG_FLAGS if compiler.is_clang else _CHECKED_GCC_FLAGS)


def build(compiler: Compiler, text: str, variant: Variant, *, title: str) -> bytes:
    """Compiles translated text to a shared library and returns that file's contents.

    Args:
        compiler: which one does it.
        text: C++ whose ``#line`` directives point into the Metal text.
        variant: which build.
        title: names the library in errors.

    Raises:
        KernelCompileError: with the compiler's own words.
    """
    with tempfile.TemporaryDirectory(prefix="mps-flash-attn-") as folder:
        unit, library = f"{folder}/kernels.o", f"{folder}/kernels.so"
        # Linked apart, because with -fsanitize the linker would be given the sanitizers' own runtimes.
        for arguments in (
            ["-c", *flags(compiler, variant), f"-I{INCLUDE}", "-x", "c++", "-", "-o", unit],
            ["-shared", *_LINK_FLAGS, unit, "-o", library],
        ):
            result = compiler.run(arguments, text=text)
            if result.returncode != 0:
                raise KernelCompileError(f"{title} did not compile:\n{result.stderr.strip()}")
        return Path(library).read_bytes()


@functools.cache
def _cpu_flags() -> tuple[str, ...]:
    """Has half converted by x86 CPUs that can: otherwise a library function does it, to the same bits."""
    try:
        return ("-mf16c",) if " f16c " in Path("/proc/cpuinfo").read_text() else ()
    except OSError:
        return ()


@functools.cache
def headers_digest() -> str:
    """A hash of the headers that kernels include and of the binary interface that they are compiled for."""
    digest = hashlib.sha256(str(ABI_VERSION).encode())
    for path in sorted(path for path in INCLUDE.rglob("*") if path.is_file()):
        digest.update(f"\0{path.relative_to(INCLUDE)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
