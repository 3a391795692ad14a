"""The runtime that needs no build: PyTorch's own compiler and launcher of Metal text, for ``mps`` tensors."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..errors import KernelCompileError
from ..launch import Capabilities

__all__ = ["CAPABILITIES", "compile_shader", "is_checking", "unavailable"]

CAPABILITIES = Capabilities()

_TOO_OLD = f"PyTorch {torch.__version__} has no torch.mps.compile_shader; 2.7 and newer have it"


@functools.cache
def compile_shader(source: str) -> Any:
    """``torch.mps.compile_shader(source)``, once for each text.

    Raises:
        KernelCompileError: with the Metal compiler's words.
    """
    if not hasattr(torch.mps, "compile_shader"):
        raise KernelCompileError(_TOO_OLD)
    try:
        return torch.mps.compile_shader(source)
    except (RuntimeError, SyntaxError) as error:
        raise KernelCompileError(str(error)) from error


def is_checking() -> bool:
    """Never: nothing here can check a kernel."""
    return False


def unavailable() -> str | None:
    """Why PyTorch cannot run Metal text here, if so."""
    if torch.backends.mps.is_available():
        return None if hasattr(torch.mps, "compile_shader") else _TOO_OLD
    if not torch.backends.mps.is_built():
        return "this PyTorch was built without the mps device, which exists on macOS alone"
    return "PyTorch finds no Apple GPU that it can use; it needs macOS 14 or newer on Apple silicon"
