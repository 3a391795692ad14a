"""Builds the extension modules; everything else is in pyproject.toml.

On macOS, with PyTorch and Apple's Command Line Tools, these include the runtime ``metal``: a Swift library and the
extension that hands it PyTorch's tensors. Where either is missing the install succeeds without, says so, and kernels
run through PyTorch's own compiler of Metal text.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SIMULATOR = Path("csrc/simulator")
METAL = "mps_flash_attn._metal"
SWIFT_LIBRARY = "libMetalRuntime.dylib"


def simulator() -> Extension:
    return Pybind11Extension(
        "mps_flash_attn._C",
        ["csrc/bindings.cpp", *sorted(map(str, SIMULATOR.glob("*.cpp")))],
        depends=[*map(str, SIMULATOR.glob("*.h")), "csrc/simulator/include/simt.h"],
        include_dirs=["csrc", "csrc/simulator/include"],
        cxx_std=17,
        extra_compile_args=["-O2", "-g0", "-Wall", "-Wextra"],
        # The simulator is for machines without an Apple GPU: a Mac can do without.
        optional=sys.platform == "darwin",
    )


def metal() -> Extension:
    """The extension without PyTorch's folders, which `BuildExtensions` looks up when it is built."""
    return Extension(
        METAL,
        ["csrc/metal/torch_mps.mm"],
        depends=["csrc/mfa.h"],
        language="c++",
        extra_compile_args=["-std=c++20", "-O2", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"],
        libraries=["MetalRuntime", "torch_python", "torch_cpu", "c10"],
        # PyTorch's libraries are found here in the usual layout, or by their names once PyTorch is imported.
        extra_link_args=["-framework", "Foundation", "-Wl,-rpath,@loader_path", "-Wl,-rpath,@loader_path/../torch/lib"],
        optional=True,
    )


def pytorch() -> Path:
    """The folder of the PyTorch to build against.

    That is the one in this environment, which an isolated build cannot import but can see. Where none is installed yet,
    it is the build requirement: both are the newest release then.
    """
    found = Path(sysconfig.get_path("platlib")) / "torch"
    if not found.exists():
        spec = find_spec("torch")
        if spec is None or spec.origin is None:
            raise CompileError("PyTorch is not installed here; install it first, then this package again")
        found = Path(spec.origin).parent
    return found


def run(*command: str) -> str:
    """Runs a tool of Apple's Command Line Tools and returns what it prints."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CompileError(f"{command[0]} is missing; xcode-select --install brings it") from error
    if result.returncode != 0:
        raise CompileError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout.strip()


def require_command_line_tools() -> None:
    """Raises `CompileError` on a Mac without Apple's tools, whose mere call would open a dialog that installs them."""
    try:
        run("xcode-select", "--print-path")
    except CompileError as error:
        raise CompileError("Apple's Command Line Tools are missing; xcode-select --install brings them") from error


class BuildExtensions(build_ext):  # type: ignore[misc]
    def build_extension(self, ext: Extension) -> None:
        own_compiler = "CC" in os.environ and "CXX" in os.environ
        if sys.platform == "darwin" and (ext.name == METAL or not own_compiler):
            require_command_line_tools()
        if ext.name == METAL:
            self._prepare_metal(ext)
        super().build_extension(ext)

    def _prepare_metal(self, ext: Extension) -> None:
        """Builds the Swift library, puts it beside the extension, and completes what the extension is made from."""
        torch = pytorch()
        run("xcrun", "--find", "swift")
        scratch = str(Path(self.build_temp).resolve() / "swift")
        build = ["swift", "build", "-c", "release", "--package-path", "swift", "--scratch-path", scratch]
        run(*build, "--product", "MetalRuntime")
        library = Path(run(*build, "--show-bin-path")) / SWIFT_LIBRARY
        beside = Path(self.get_ext_fullpath(METAL)).parent
        beside.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, beside)
        # PyTorch's own pybind11 comes with its headers.
        ext.include_dirs += [str(torch / "include"), str(torch / "include/torch/csrc/api/include")]
        ext.library_dirs += [str(beside), str(torch / "lib")]
        self.compiler.src_extensions.append(".mm")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        library = Path(self.build_lib, "mps_flash_attn", SWIFT_LIBRARY)
        if library.exists():
            shutil.copy2(library, "mps_flash_attn")


extensions = [simulator()]
if sys.platform == "darwin":
    # PyTorch for macOS is built for this, whatever the Python at hand was built for.
    os.environ.setdefault("ARCHFLAGS", "-arch arm64")
    os.environ.setdefault("MACOSX_DEPLOYMENT_TARGET", "14.0")
    extensions.append(metal())

setup(ext_modules=extensions, cmdclass={"build_ext": BuildExtensions})
