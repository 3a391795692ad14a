"""A pretend ``mps`` device for PyTorch on Linux: operators run on the CPU, kernels on the simulator.

`load` makes ``torch.randn(..., device="mps")`` work for the rest of the process, with buffers of plain memory and no
encoders. After `load_metal` buffers and encoders are those of the stand-in for Metal, and the runtime ``metal`` works.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mps_flash_attn
from mps_flash_attn.runtime import simulator

from .build import HERE, ROOT, shared_library
from .metal import native

__all__ = ["compile_shader", "free_storage", "limit_memory", "load", "load_metal", "pretend"]

_HEADERS = HERE / "headers/linux"
_DISPATCH = _HEADERS / "dispatch/dispatch.h"


@functools.cache
def load() -> Path:
    """Builds and loads the device; PyTorch has it from then on. Returns its library."""
    device = HERE / "device"
    headers = [*sorted(device.glob("*.h")), _DISPATCH]
    library = shared_library("libpretend_mps.so", sorted(device.glob("*.cpp")), headers, [f"-I{_HEADERS}"])
    torch.ops.load_library(library)
    vars(torch._C)["_has_mps"] = True
    return library


@functools.cache
def load_metal() -> None:
    """Builds and loads the extension of the runtime ``metal``, with Swift and the stand-in for Metal behind it."""
    os.environ["PRETEND_MPS_METAL"] = str(native.LIB / "libMetal.so")
    native.load()
    device = load()
    csrc = ROOT / "csrc"
    library = shared_library(
        f"_metal{sysconfig.get_config_var('EXT_SUFFIX')}",
        [csrc / "metal/torch_mps.mm"],
        [csrc / "mfa.h", _DISPATCH],
        [
            *(f"-I{_HEADERS}", f"-isystem{sysconfig.get_path('include')}"),
            *(f"-L{native.LIB}", "-lMetalRuntime", f"-Wl,-rpath,{native.LIB}", str(device), "-ltorch_python"),
        ],
        language="c++",
    )
    name = "mps_flash_attn._metal"
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = vars(mps_flash_attn)["_metal"] = module


def pretend(runtime: str) -> None:
    """Has ``metal`` or ``torch_mps`` work for the rest of the process."""
    if runtime == "metal":
        load_metal()
    load()
    vars(torch.mps)["compile_shader"] = compile_shader


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
