"""A pretend ``mps`` device for PyTorch on Linux: tensors in the memory of a stand-in for Metal, operators on the CPU.

`load` makes ``torch.randn(..., device="mps")`` work for the rest of the process. ``PRETEND_MPS_METAL`` names the shared
library with the stand-in's objects; without it there are buffers but no encoders.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from mps_flash_attn.runtime import simulator

from .build import HERE, shared_library

__all__ = ["METAL_VARIABLE", "compile_shader", "free_storage", "limit_memory", "load"]

#: Environment variable with the path of the stand-in for Metal.
METAL_VARIABLE = "PRETEND_MPS_METAL"


@functools.cache
def load() -> None:
    """Builds and loads the device; PyTorch has it from then on."""
    device = HERE / "device"
    headers = [*device.glob("*.h"), HERE / "headers/dispatch/dispatch.h"]
    library = shared_library(
        "libpretend_mps.so", sorted(device.glob("*.cpp")), sorted(headers), [f"-I{HERE / 'headers'}"]
    )
    torch.ops.load_library(library)
    vars(torch._C)["_has_mps"] = True


def limit_memory(bytes_: int = 2**63 - 1) -> None:
    """Makes allocations fail beyond so many bytes in all."""
    torch.ops.pretend_mps.limit_memory(bytes_)


def free_storage(tensor: Tensor) -> None:
    """Takes the memory away from a tensor that keeps its shape."""
    torch.ops.pretend_mps.free_storage(tensor)


class _Library:
    """A library of the simulator whose kernels take the pretend device's tensors."""

    def __init__(self, source: str) -> None:
        self._library = simulator.compile_shader(source)

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._library, name)

        def launch(*args: Any, **options: Any) -> None:
            kernel(*map(_on_host, args), **options)

        self.__dict__[name] = launch
        return launch


def compile_shader(source: str) -> _Library:
    """What stands for ``torch.mps.compile_shader``: the simulator, on the pretend device's memory."""
    return _Library(source)


def _on_host(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    if not argument.is_mps:
        raise RuntimeError(f"expected a tensor on mps, got one on {argument.device}")
    return torch.ops.pretend_mps.host_alias(argument.detach())
