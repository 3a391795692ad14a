"""Runs unmodified Metal kernels on the CPU: for machines without an Apple GPU, and for finding faults in kernels.

``compile_shader`` has the face of ``torch.mps.compile_shader`` and takes CPU tensors.
"""

from __future__ import annotations

from ...launch import Capabilities
from .library import Kernel, ShaderLibrary, compile_shader

__all__ = ["CAPABILITIES", "Kernel", "ShaderLibrary", "compile_shader", "is_checking"]

CAPABILITIES = Capabilities(float64=True)


def is_checking() -> bool:
    """Whether launches of the calling thread are being checked, so that new outputs are to be filled with NaN."""
    return False
