"""The runtime that needs no build: PyTorch's own compiler and launcher of Metal text, for ``mps`` tensors."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..errors import KernelCompileError
from ..launch import Capabilities

__all__ = ["CAPABILITIES", "capabilities", "compile_shader", "is_checking", "unavailable"]


def capabilities() -> Capabilities:
    """Those of the GPU at hand; newer versions of PyTorch can count its cores."""
    count = getattr(torch._C, "_mps_get_core_count", None)
    if count is None or not torch.backends.mps.is_available():
        return Capabilities()
    return Capabilities(cores=count() or Capabilities().cores)


CAPABILITIES = capabilities()

#: PyTorch 2.6 has the same function, not yet under a public name.
_COMPILER = "compile_shader" if hasattr(torch.mps, "compile_shader") else "_compile_shader"

#: How many texts are kept with what was made of them.
_MOST_LIBRARIES = 512


@functools.lru_cache(maxsize=_MOST_LIBRARIES)
def compile_shader(source: str) -> Any:
    """``torch.mps.compile_shader(source)``, once for each text of those used last.

    Raises:
        KernelCompileError: with the Metal compiler's words.
    """
    try:
        return getattr(torch.mps, _COMPILER)(source)
    except (RuntimeError, SyntaxError) as error:
        raise KernelCompileError(str(error)) from error


def is_checking() -> bool:
    """Never: nothing here can check a kernel."""
    return False


def unavailable() -> str | None:
    """Why PyTorch cannot run Metal text here, if so."""
    if torch.backends.mps.is_available():
        return None
    if not torch.backends.mps.is_built():
        return "this PyTorch was built without the mps device, which exists on macOS alone"
    return "PyTorch finds no Apple GPU that it can use; it needs macOS 14 or newer on Apple silicon"
