"""Runs the Metal kernels on NVIDIA GPUs: translated to CUDA C++ and compiled by NVRTC when they are first asked for.

``compile_shader`` has the face of ``torch.mps.compile_shader`` and takes CUDA tensors. Launches go to PyTorch's current
stream and are not waited for, so they can be captured in CUDA graphs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from ...errors import CompilerNotFoundError
from ...launch import Capabilities
from ..translation.host_compiler import find_compiler

try:
    from .library import Kernel, ShaderLibrary, compile_shader
    from .nvrtc import OLDEST_CAPABILITY, why_no_nvrtc
except ModuleNotFoundError as error:
    raise ImportError(f"{error}; the runtime cuda needs it: pip install 'mps-flash-attn[cuda]'") from error

__all__ = ["CAPABILITIES", "Kernel", "ShaderLibrary", "compile_shader", "is_checking", "unavailable"]

#: The least threadgroup memory that a GPU of compute capability 8.0 or newer can give to one block.
_LEAST_THREADGROUP_BYTES = 99 * 1024
#: What plans count on where there is no GPU, as when kernels are only compiled.
_FEWEST_MULTIPROCESSORS = 16


def _capabilities() -> Capabilities:
    """Those of the GPU at hand; of several, its plans have to suit all."""
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    properties: list[Any] = [torch.cuda.get_device_properties(device) for device in devices]
    available = [device.shared_memory_per_block_optin for device in properties]
    return Capabilities(
        min(available, default=_LEAST_THREADGROUP_BYTES),
        cores=min((device.multi_processor_count for device in properties), default=_FEWEST_MULTIPROCESSORS),
        float64=True,
        matrix_unit="mma",
        wgmma=bool(properties) and all((device.major, device.minor) == (9, 0) for device in properties),
    )


CAPABILITIES = _capabilities()


def is_checking() -> bool:
    """Never: compute-sanitizer checks kernels from outside of the process."""
    return False


@functools.cache
def unavailable() -> str | None:
    """Why nothing can run here: no GPU that is new enough, no NVRTC, or no C++ compiler."""
    if not torch.cuda.is_available():
        built = torch.backends.cuda.is_built()
        return "PyTorch finds no NVIDIA GPU that it can use" if built else "this PyTorch was built without CUDA"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}; kernels need "
            f"{OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]} or newer"
        )
    try:
        find_compiler()
    except CompilerNotFoundError as error:
        return str(error)
    return why_no_nvrtc()
