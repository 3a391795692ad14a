"""Runs unmodified Metal kernels on the CPU: for machines without an Apple GPU, and for finding faults in kernels.

``compile_shader`` has the face of ``torch.mps.compile_shader`` and takes CPU tensors. ``check`` finds faults that a
GPU would hide, ``profile`` counts what kernels do.
"""

from __future__ import annotations

from ...errors import CompilerNotFoundError
from ...launch import Capabilities
from ..translation.host_compiler import find_compiler
from .check import check, is_checking
from .library import Kernel, ShaderLibrary, compile_shader
from .profile import Counters, LaunchRecord, Profile, Transactions, profile

__all__ = [
    "CAPABILITIES",
    "Counters",
    "Kernel",
    "LaunchRecord",
    "Profile",
    "ShaderLibrary",
    "Transactions",
    "check",
    "compile_shader",
    "is_checking",
    "profile",
    "unavailable",
]

CAPABILITIES = Capabilities(float64=True)


def unavailable() -> str | None:
    """Why nothing can be simulated here: there is no C++ compiler."""
    try:
        find_compiler()
    except CompilerNotFoundError as error:
        return str(error)
    return None
