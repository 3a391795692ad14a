"""A runtime of a GPU for CPU tensors, so that every test of an operation can run there: copies to the GPU and back."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from mps_flash_attn.runtime import base, simulator

__all__ = ["RUNTIMES", "OnGpu", "rounding"]

#: Runtimes that can stand in, and the devices of their tensors.
RUNTIMES = {name: device for device, names in base.RUNTIMES.items() if device != "cpu" for name in names}


def rounding() -> float:
    """What results of two texts that compute the same may differ by, in units of numbers near 1.

    Nothing on the simulator; a GPU's compiler joins multiplications and additions as it finds them in a text.
    """
    return 2e-6 if isinstance(base.load("simulator"), OnGpu) else 0.0


class OnGpu:
    """What takes the simulator's place: launches of one runtime. float64, which no Apple GPU has, stays simulated."""

    def __init__(self, name: str) -> None:
        self._runtime = base.load(name)
        self._device = RUNTIMES[name]
        self.CAPABILITIES = dataclasses.replace(self._runtime.CAPABILITIES, float64=True)

    def compile_shader(self, source: str) -> Any:
        if not self._runtime.CAPABILITIES.float64 and re.search(r"\bdouble\b", source):
            return simulator.compile_shader(source)
        return _Library(self._runtime.compile_shader(source), self._device)

    def is_checking(self) -> bool:
        return False

    def unavailable(self) -> str | None:
        return self._runtime.unavailable()


class _Library:
    def __init__(self, library: Any, device: str) -> None:
        self._library = library
        self._device = device

    def __getattr__(self, name: str) -> _Kernel:
        return _Kernel(getattr(self._library, name), self._device)


class _Kernel:
    def __init__(self, kernel: Any, device: str) -> None:
        self._kernel = kernel
        self._device = device

    def __call__(self, *args: Any, **options: Any) -> None:
        storages: dict[int, tuple[Tensor, Tensor]] = {}
        self._kernel(*(self._moved(arg, storages) if isinstance(arg, Tensor) else arg for arg in args), **options)
        for here, there in storages.values():
            here.copy_(there)

    def _moved(self, tensor: Tensor, storages: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        """The same view of a copy of the whole storage, so that strides and what lies between stay as they are."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            here = torch.empty(0, dtype=torch.uint8).set_(storage)
            storages[storage.data_ptr()] = here, here.to(self._device)
        there = storages[storage.data_ptr()][1].untyped_storage()
        empty = torch.empty(0, dtype=tensor.dtype, device=self._device)
        return empty.set_(there, tensor.storage_offset(), tensor.size(), tensor.stride())
