"""The runtime cuda for CPU tensors, so that every test of an operation can run on a GPU: copies there and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mps_flash_attn.runtime import cuda

CAPABILITIES = cuda.CAPABILITIES


class _Kernel:
    def __init__(self, kernel: cuda.Kernel) -> None:
        self._kernel = kernel

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
            storages[storage.data_ptr()] = here, here.cuda()
        there = storages[storage.data_ptr()][1].untyped_storage()
        empty = torch.empty(0, dtype=tensor.dtype, device="cuda")
        return empty.set_(there, tensor.storage_offset(), tensor.size(), tensor.stride())


class _Library:
    def __init__(self, library: cuda.ShaderLibrary) -> None:
        self._library = library

    def __getattr__(self, name: str) -> _Kernel:
        return _Kernel(getattr(self._library, name))


def compile_shader(source: str) -> _Library:
    return _Library(cuda.compile_shader(source))


def is_checking() -> bool:
    return False


def unavailable() -> str | None:
    return cuda.unavailable()
