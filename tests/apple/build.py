"""Builds the C++ of the Apple tests, once for each content, in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock

__all__ = ["HERE", "ROOT", "TORCH", "cache_folder", "shared_library"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TORCH = Path(torch.__file__).parent


def cache_folder() -> Path:
    """Where everything is kept that the Apple tests build or download."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "mps-flash-attn" / "apple"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shared_library(
    name: str, sources: Sequence[Path], headers: Sequence[Path], flags: Sequence[str], language: str = "none"
) -> Path:
    """The path of the library ``name``, compiled against PyTorch unless that was done before.

    Args:
        name: what the file is called.
        sources: what is compiled.
        headers: what else decides the result.
        flags: passed to the compiler behind the sources.
        language: of the sources; ``"none"`` goes by their names.

    Raises:
        RuntimeError: with the compiler's words.
    """
    compiler = os.environ.get("CXX", "g++")
    command = [
        *(compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"),
        *(f"-isystem{TORCH / 'include' / path}" for path in ("", "torch/csrc/api/include")),
        *("-x", language, *map(str, sources), "-x", "none"),
        *flags,
        *(f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"),
    ]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(repr((command, torch.__version__, version)).encode())
    for path in (*sources, *headers):
        key.update(path.read_bytes())
    library = cache_folder() / f"{key.hexdigest()[:24]}" / name
    with FileLock(f"{library.parent}.lock"):
        if not library.exists():
            library.parent.mkdir(exist_ok=True)
            made = library.with_suffix(".new")
            result = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise RuntimeError(f"{name} does not compile:\n{result.stdout}{result.stderr}")
            made.rename(library)
    return library
