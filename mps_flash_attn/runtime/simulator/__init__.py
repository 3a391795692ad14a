"""Runs unmodified Metal kernels on the CPU: for machines without an Apple GPU, and for finding faults in kernels.

``compile_shader`` has the face of ``torch.mps.compile_shader`` and takes CPU tensors.
"""

from __future__ import annotations

from .library import Kernel, ShaderLibrary, compile_shader

__all__ = ["Kernel", "ShaderLibrary", "compile_shader"]
