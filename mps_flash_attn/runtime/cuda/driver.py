"""Machine code on a device, and its launches, through CUDA's driver."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from cuda.bindings import driver as cuda

from ...errors import KernelLaunchError
from .nvrtc import Binary

__all__ = ["Function"]

_SLOT = 16  # each argument starts at a multiple of this, as structs may ask for


class Function:
    """A kernel that is loaded on a device.

    Args:
        name: the kernel's name, for messages.
        entry: the name of its entry point.
        binary: its machine code.
        device: the device's index.
        parameters: how many it has.

    Attributes:
        max_threads: of a threadgroup, with the registers that it takes.

    Raises:
        KernelLaunchError: CUDA cannot load it, or has not the threadgroup memory that it needs.
    """

    def __init__(self, name: str, entry: str, binary: Binary, device: int, parameters: int) -> None:
        self._name = name
        self._shared = binary.threadgroup_bytes[entry]
        self._device = device
        torch.cuda.init()
        with torch.cuda.device(device):
            torch.cuda.set_device(device)  # makes PyTorch's context the thread's
            self._library = self._call(cuda.cuLibraryLoadData, binary.cubin, [], [], 0, [], [], 0)
            self._kernel = self._call(cuda.cuLibraryGetKernel, self._library, entry.encode())
            handle = self._call(cuda.cuDeviceGet, device)
            attribute = cuda.CUfunction_attribute
            self.max_threads: int = self._call(
                cuda.cuKernelGetAttribute, attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, self._kernel, handle
            )
            self.registers: int = self._call(
                cuda.cuKernelGetAttribute, attribute.CU_FUNC_ATTRIBUTE_NUM_REGS, self._kernel, handle
            )
            limit: int = self._call(
                cuda.cuDeviceGetAttribute,
                cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                handle,
            )
            if self._shared > limit:
                raise KernelLaunchError(
                    f"kernel {name!r} needs {self._shared} bytes of threadgroup memory; "
                    f"{torch.cuda.get_device_name(device)} has {limit}"
                )
            self._call(
                cuda.cuKernelSetAttribute,
                attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                self._shared,
                self._kernel,
                handle,
            )
        self._function = cuda.CUfunction(init_value=int(self._kernel))
        self._sizes = [self._call(cuda.cuKernelGetParamInfo, self._kernel, index)[1] for index in range(parameters)]

    def launch(self, grid: Sequence[int], group: Sequence[int], values: Sequence[bytes], stream: int) -> None:
        """Puts a launch into a stream.

        Args:
            grid: threads of the grid in x, y, z.
            group: threads of a threadgroup in x, y, z.
            values: each argument's bytes; those of an address or a number that is wider than the parameter, too.
            stream: the handle of a stream of the device.

        Raises:
            ValueError: a value has fewer bytes than its parameter.
            KernelLaunchError: CUDA refuses it.
        """
        offsets, block = [], bytearray()
        for index, (value, size) in enumerate(zip(values, self._sizes, strict=True)):
            if len(value) < size:
                raise ValueError(f"argument {index - 1} of kernel {self._name!r} has {len(value)} bytes, not {size}")
            offsets.append(len(block))
            block += value
            block += bytes(-len(block) % _SLOT)
        memory = (ctypes.c_char * len(block)).from_buffer(block)
        base = ctypes.addressof(memory)
        addresses = (ctypes.c_void_p * len(offsets))(*(base + offset for offset in offsets))
        blocks = [-(-threads // size) for threads, size in zip(grid, group, strict=True)]
        arguments = (self._function, *blocks, *group, self._shared, stream, ctypes.addressof(addresses), 0)
        (status,) = cuda.cuLaunchKernel(*arguments)
        if status == cuda.CUresult.CUDA_ERROR_INVALID_CONTEXT:  # a thread that has not used CUDA yet
            torch.cuda.set_device(self._device)
            (status,) = cuda.cuLaunchKernel(*arguments)
        if status != cuda.CUresult.CUDA_SUCCESS:
            raise KernelLaunchError(
                f"kernel {self._name!r} could not be launched as {blocks} threadgroups of {list(group)} threads: "
                f"{_words(status)}"
            )

    def _call(self, function: Any, *args: Any) -> Any:
        status, *results = function(*args)
        if status != cuda.CUresult.CUDA_SUCCESS:
            raise KernelLaunchError(f"kernel {self._name!r}: {function.__name__} failed: {_words(status)}")
        return results[0] if len(results) == 1 else results


def _words(status: Any) -> str:
    """CUDA's name of an error and its own words."""
    _, text = cuda.cuGetErrorString(status)
    return f"{status.name}{f', {text.decode()}' if text else ''}"
