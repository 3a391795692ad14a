"""The C++ compiler that turns translated kernels into libraries."""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..._C import ABI_VERSION
from ...errors import CompilerNotFoundError, KernelCompileError

__all__ = ["INCLUDE", "Compiler", "Variant", "find_compiler", "headers_digest"]

INCLUDE = Path(__file__).parent / "csrc" / "include"
"""The folder of the headers that stand in for Metal's."""

_COMPILER_VARIABLES = ("MPS_FLASH_ATTN_CXX", "CXX")
_COMPILER_NAMES = ("g++", "clang++")


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


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        command: the program and the arguments that always go with it.
        version: what it says of itself; part of the key under which its products are cached.
    """

    command: tuple[str, ...]
    version: str

    def run(self, arguments: Sequence[str], *, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs the compiler with messages in English, feeding it ``text``. A failure is the caller's to judge."""
        return subprocess.run(
            [*self.command, *arguments],
            input=text,
            text=True,
            capture_output=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )

    @property
    def is_clang(self) -> bool:
        """Whether this is clang or one of its descendants; everything else is taken for GCC."""
        return "clang" in self.version

    def flags(self, variant: Variant) -> tuple[str, ...]:
        """The flags that decide what the library of a translated text contains."""
        if variant is Variant.FAST:
            return _COMMON_FLAGS + _FAST_FLAGS + _cpu_flags()
        return _COMMON_FLAGS + _CHECKED_FLAGS + (_CHECKED_CLANG_FLAGS if self.is_clang else _CHECKED_GCC_FLAGS)

    def build(self, text: str, variant: Variant, *, title: str) -> bytes:
        """Compiles translated text to a shared library and returns that file's contents.

        Args:
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
                ["-c", *self.flags(variant), f"-I{INCLUDE}", "-x", "c++", "-", "-o", unit],
                ["-shared", *_LINK_FLAGS, unit, "-o", library],
            ):
                result = self.run(arguments, text=text)
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


def find_compiler() -> Compiler:
    """Returns the compiler of ``MPS_FLASH_ATTN_CXX`` or ``CXX``, else ``g++``, else ``clang++``.

    Raises:
        CompilerNotFoundError: naming what was looked for.
    """
    return _find_compiler(tuple(os.environ.get(name, "") for name in (*_COMPILER_VARIABLES, "PATH")))


@functools.lru_cache(maxsize=8)
def _find_compiler(environment: tuple[str, ...]) -> Compiler:
    requested = next((value for value in environment[: len(_COMPILER_VARIABLES)] if value.strip()), None)
    for command in [shlex.split(requested)] if requested else [[name] for name in _COMPILER_NAMES]:
        if shutil.which(command[0]) is not None:
            version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
            if version.returncode == 0:
                return Compiler(tuple(command), version.stdout)
    variables = " and ".join(_COMPILER_VARIABLES)
    raise CompilerNotFoundError(
        (
            f"the C++ compiler {requested!r}, named by {variables}, cannot be run"
            if requested
            else f"no C++ compiler found: looked for {' and '.join(_COMPILER_NAMES)} in PATH ({variables} are not set)"
        )
        + "; the simulator compiles kernels with g++ 12 or clang 14 or newer: on Debian or Ubuntu, "
        "`sudo apt-get install g++`"
    )


@functools.cache
def headers_digest() -> str:
    """A hash of the headers that kernels include and of the binary interface that they are compiled for."""
    digest = hashlib.sha256(str(ABI_VERSION).encode())
    for path in sorted(path for path in INCLUDE.rglob("*") if path.is_file()):
        digest.update(f"\0{path.relative_to(INCLUDE)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
