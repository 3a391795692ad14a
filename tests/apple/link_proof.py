"""Compiles the runtime ``metal`` for macOS on arm64 and links it with PyTorch's macOS libraries, on Linux.

What `unresolved` finds is what PyTorch does not have: everything but symbols of Python, of csrc/mfa.h and of Apple's
own libraries. The compiler (Zig's), the linker (LLVM's) and PyTorch's wheels are downloaded once, into the user's cache
folder.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock

from .build import HERE, ROOT, cache_folder

__all__ = ["NEWEST", "OLDEST", "SOURCE", "compile_source", "link", "unresolved"]

#: The PyTorch releases between which the extension is meant to build.
OLDEST = "2.6.0"
NEWEST = torch.__version__.partition("+")[0]

SOURCE = ROOT / "csrc/metal/torch_mps.mm"

_ZIG = "ziglang==0.17.1"
_LINKER_PACKAGES = ("lld-19", "libllvm19", "libz3-4", "libedit2", "libxml2")
_LIBRARIES = ("libtorch_python.dylib", "libtorch_cpu.dylib", "libc10.dylib")
#: The C++ standard library, its ``operator new`` and ``delete``, and the ABI library under it.
_OF_LIBCXX = re.compile(
    r"__Z(NK?|T[IVS]N?)?St|__Z(nw|na|dl|da)|__ZTVN10__cxxabiv1|___(cxa_|gxx_|dynamic_cast$)|__Unwind_"
)
_OF_PYTHON = re.compile(r"_*Py")
_OF_OBJECTIVE_C = re.compile(r"_objc_(?!msgSend)")


def _run(command: Sequence[str | Path], folder: Path | None = None, **environment: str) -> str:
    result = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def _download(requirement: str, *options: str, members: str = "") -> Path:
    """A folder with the contents of a wheel from PyPI, of those only whose names match ``members``."""
    folder = cache_folder() / f"{requirement.replace('==', '-')}-py{sys.version_info[0]}{sys.version_info[1]}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            fresh = folder.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
            _run([*pip, "--only-binary=:all:", "--dest", fresh, *options, requirement])
            (wheel,) = fresh.glob("*.whl")
            with zipfile.ZipFile(wheel) as contents:
                for name in contents.namelist():
                    if re.match(members, name):
                        contents.extract(name, fresh)
            wheel.unlink()
            fresh.rename(folder)
    return folder


def _pytorch(version: str) -> Path:
    """Headers and libraries of a PyTorch release for macOS on arm64."""
    platforms = (f"--platform=macosx_{major}_0_arm64" for major in (11, 14))
    python = f"--python-version={sys.version_info[0]}.{sys.version_info[1]}"
    members = rf"torch/include/|torch/lib/({'|'.join(map(re.escape, _LIBRARIES))})$"
    return _download(f"torch=={version}", python, *platforms, members=members) / "torch"


def _zig() -> Path:
    folder = _download(_ZIG) / "ziglang"
    (folder / "zig").chmod(0o755)
    return folder


@functools.cache
def _linker() -> tuple[list[str | Path], dict[str, str]]:
    """The command of LLVM's linker for macOS, and the environment that it needs."""
    for name in ("ld64.lld", "ld64.lld-19"):
        if (path := shutil.which(name)) is not None:
            return [path], {}
    folder = cache_folder() / "lld-19"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            fresh = folder.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            _run(["apt-get", "--quiet=2", "download", *_LINKER_PACKAGES], folder=fresh)
            for package in fresh.glob("*.deb"):
                _run(["dpkg", "--extract", package, fresh])
                package.unlink()
            fresh.rename(folder)
    (libraries,) = folder.glob("usr/lib/*-linux-gnu")
    return [folder / "usr/lib/llvm-19/bin/ld64.lld"], {"LD_LIBRARY_PATH": str(libraries)}


def compile_source(source: Path, version: str, folder: Path) -> Path:
    """The object file in ``folder`` of an Objective-C++ source, against the headers of a PyTorch release."""
    include = _pytorch(version) / "include"
    made = folder / f"{source.stem}-{version}.o"
    vendor = "_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS"  # PyTorch's libraries are built with Apple's own libc++
    _run(
        [
            *(_zig() / "zig", "c++", "-target", "aarch64-macos.14.0", "-x", "objective-c++", "-std=c++20", "-fblocks"),
            *("-O2", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", f"-U{vendor}", f"-D{vendor}=1"),
            *(f"-I{HERE / 'headers/macos'}", f"-I{ROOT / 'csrc/metal'}", "-isystem", include),
            *("-isystem", include / "torch/csrc/api/include", "-isystem", sysconfig.get_path("include")),
            *("-c", source, "-o", made),
        ]
    )
    return made


def _link_command(made: Path, version: str, output: Path) -> tuple[list[str | Path], dict[str, str]]:
    command, environment = _linker()
    libraries = (_pytorch(version) / "lib" / name for name in _LIBRARIES)
    platform = ("-arch", "arm64", "-platform_version", "macos", "14.0", "14.0")
    return [*command, "-bundle", *platform, "--error-limit=0", "-o", output, made, *libraries], environment


def unresolved(made: Path, version: str) -> set[str]:
    """The symbols of an object file that PyTorch, Python, csrc/mfa.h and Apple's libraries do not have."""
    command, environment = _link_command(made, version, Path(os.devnull))
    result = subprocess.run(
        list(map(str, command)), env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    errors = re.findall(r"^ld64\.lld: error: (.*)$", result.stderr, re.MULTILINE)
    found = {error.removeprefix("undefined symbol: ") for error in errors}
    return {symbol for symbol in found if symbol not in _known() and not _belongs_elsewhere(symbol)}


def _belongs_elsewhere(symbol: str) -> bool:
    return any(pattern.match(symbol) for pattern in (_OF_LIBCXX, _OF_PYTHON, _OF_OBJECTIVE_C))


@functools.cache
def _known() -> set[str]:
    """The C functions of csrc/mfa.h and of macOS's libSystem, as Zig lists the latter."""
    declared = re.findall(r"\b(mfa_\w+)\(", (ROOT / "csrc/mfa.h").read_text())
    system = (_zig() / "lib/libc/darwin/libSystem.tbd").read_text()
    return {f"_{name}" for name in declared} | set(re.findall(r"[\s'\[,](_\w+)", system))


def link(made: Path, version: str, output: Path) -> None:
    """Links the bundle that Python would load; what is not PyTorch's is looked up when it is loaded."""
    command, environment = _link_command(made, version, output)
    _run([*command, "-undefined", "dynamic_lookup"], **environment)
