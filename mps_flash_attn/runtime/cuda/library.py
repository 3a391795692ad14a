"""Metal kernels as Python callables that run on NVIDIA GPUs, with the face of ``torch.mps.compile_shader``."""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cache import Cache, cache_folder
from ..calling import Argument, cast_of, grid_and_group, pack_numbers
from ..translation import cached_translation
from ..translation.host_compiler import Compiler, find_compiler
from ..translation.translate import KernelInfo
from . import driver
from .nvrtc import Binary, compile_cached
from .target import CudaTarget, entry_point, travels_by_value

__all__ = ["Kernel", "ShaderLibrary", "compile_shader"]

MAX_THREADS = 1024
"""The most threads that a threadgroup has, on Apple's GPUs and on NVIDIA's."""


def compile_shader(source: str) -> ShaderLibrary:
    """Translates Metal text for NVIDIA GPUs; the counterpart of ``torch.mps.compile_shader``.

    Args:
        source: text in the Metal Shading Language. ``double`` is accepted as an extension.

    Returns:
        The library; its kernels are attributes, compiled for the current device when they are first asked for.

    Raises:
        KernelCompileError: the text is no valid Metal.
        CompilerNotFoundError: there is no C++ compiler, whose preprocessor is needed, or no NVRTC.
        CacheError: the folder for compiled kernels cannot be used.
    """
    if not isinstance(source, str):
        raise TypeError(f"source must be a str with Metal text, got {type(source).__name__}")
    return _library(source, find_compiler(), cache_folder("cuda"))


@functools.lru_cache(maxsize=1024)
def _library(source: str, compiler: Compiler, folder: Path) -> ShaderLibrary:
    return ShaderLibrary(source, compiler, Cache(folder))


class ShaderLibrary:
    """The kernels of one Metal text. Each is an attribute; ``dir()`` lists their names."""

    def __init__(self, source: str, compiler: Compiler, cache: Cache) -> None:
        self._cache = cache
        self._translation = cached_translation(source, CudaTarget(), compiler, cache)
        self._infos = {info.name: info for info in self._translation.kernels}

    def __getattr__(self, name: str) -> Kernel:
        infos: dict[str, KernelInfo] = self.__dict__.get("_infos", {})
        if name not in infos:
            raise AttributeError(f"the library has no kernel {name!r}; it has {', '.join(map(repr, infos)) or 'none'}")
        kernel = Kernel(self, infos[name])
        kernel.prepare()
        self.__dict__[name] = kernel
        return kernel

    def __dir__(self) -> list[str]:
        return list(self._infos)

    def binary(self, info: KernelInfo, architecture: tuple[int, int], bounds: int = 0) -> Binary:
        """The machine code of one kernel; no GPU is needed for it.

        Raises:
            KernelCompileError: with the compiler's words and lines of the Metal text.
        """
        text = self._translation.only(info.index)
        return compile_cached(text, architecture, self._cache, title=f"kernel {info.name!r}", bounds=bounds)


class Kernel:
    """One kernel of a library. Calling it puts a launch into PyTorch's current stream."""

    max_threads_per_threadgroup: int = MAX_THREADS
    thread_execution_width: int = 32

    def __init__(self, library: ShaderLibrary, info: KernelInfo) -> None:
        self._library = library
        self._info = info
        self._buffers = {buffer.index: buffer for buffer in info.buffers}
        self._arity = max(self._buffers, default=-1) + 1
        self._by_value = tuple(
            index in self._buffers and travels_by_value(self._buffers[index]) for index in range(self._arity)
        )
        self._functions: dict[tuple[int, bool], driver.Function] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<cuda kernel {self._info.name!r}>"

    def prepare(self) -> None:
        """Compiles and loads the kernel for the current device, if there is one."""
        if torch.cuda.is_available():
            self._function(torch.cuda.current_device(), 1)

    def __call__(
        self,
        *args: Argument,
        threads: int | Sequence[int] | None = None,
        group_size: int | Sequence[int] | None = None,
        arg_casts: str | Mapping[int, str] | None = None,
    ) -> None:
        """Launches the kernel over a grid of threads, like a kernel of ``torch.mps.compile_shader``.

        Args:
            args: what fills ``[[buffer(0)]]``, ``[[buffer(1)]]``, ...: a CUDA tensor of any strides passes the address
                of its first element; an int passes an int64 by value, a float a float32, a list or tuple of either
                their array. Numbers fill ``constant T&`` parameters, tensors all others.
            threads: the size of the grid in threads, one to three numbers, x first. By default one for each element
                of the first tensor. A grid that is no multiple of the threadgroups is ragged in x, then y, then z:
                a simdgroup is the 32 threads that follow each other in a whole threadgroup.
            group_size: the size of a threadgroup, as many numbers as ``threads``. By default as large as allowed,
                along x.
            arg_casts: how numbers are passed: ``"fp16"``, ``"bf16"``, ``"int8"``, ``"uint8"``, ``"int16"`` or
                ``"int32"`` for all arguments or, in a mapping, for the arguments at those positions.

        Raises:
            TypeError: an argument is of the wrong kind, or there are too few or too many.
            ValueError: an argument has a wrong value, such as a tensor on another device.
            KernelLaunchError: CUDA refused the launch.
        """
        if len(args) != self._arity:
            names = ", ".join(f"{buffer.name} [[buffer({buffer.index})]]" for buffer in self._info.buffers)
            raise TypeError(f"kernel {self._info.name!r} takes {self._arity} arguments ({names}), got {len(args)}")
        grid, group = grid_and_group(self._info.name, args, threads, group_size, MAX_THREADS)
        device = next((arg.device for arg in args if isinstance(arg, Tensor)), None)
        if device is None or device.type != "cuda":
            raise ValueError(f"kernel {self._info.name!r} got no CUDA tensor; the first tensor is on {device}")
        values = [struct.pack("<3I", *grid)]
        for position, arg in enumerate(args):
            if isinstance(arg, Tensor) and not self._by_value[position]:
                if arg.device != device:
                    raise ValueError(f"{self._argument_name(position)} is on {arg.device}, others are on {device}")
                values.append(arg.data_ptr().to_bytes(8, "little"))
            else:
                values.append(self._pack(position, arg, arg_casts))
        if 0 in grid:
            return
        function = self._function(device.index, group[0] * group[1] * group[2])
        function.launch(grid, group, values, torch.cuda.current_stream(device).cuda_stream)

    def _function(self, device: int, threads: int) -> driver.Function:
        """The kernel on a device, built so that a threadgroup of that many threads finds registers enough."""
        function = self._functions.get((device, False)) or self._load(device, bounded=False)
        if threads > function.max_threads:
            function = self._functions.get((device, True)) or self._load(device, bounded=True)
        return function

    def _load(self, device: int, *, bounded: bool) -> driver.Function:
        with self._lock:
            function = self._functions.get((device, bounded))
            if function is None:
                binary = self._library.binary(
                    self._info, torch.cuda.get_device_capability(device), MAX_THREADS if bounded else 0
                )
                function = driver.Function(self._info.name, entry_point(self._info), binary, device, 1 + self._arity)
                self._functions[device, bounded] = function
            return function

    def _argument_name(self, position: int) -> str:
        buffer = self._buffers.get(position)
        return f"argument {position}{f' ({buffer.name})' if buffer else ''} of kernel {self._info.name!r}"

    def _pack(self, position: int, arg: Any, casts: str | Mapping[int, str] | None) -> bytes:
        """The bytes of an argument that is passed by value."""
        name = self._argument_name(position)
        if isinstance(arg, Tensor):
            raise TypeError(f"{name} is passed by value here (constant T&): it takes numbers, got a tensor")
        if not self._by_value[position]:
            raise TypeError(f"{name} is passed by address: it takes a CUDA tensor, got {arg!r}")
        values = arg if isinstance(arg, (list, tuple)) else (arg,)
        if not values:
            raise ValueError(f"{name} is an empty {type(arg).__name__}; at least one element is needed")
        if not isinstance(values[0], (int, float)):
            raise TypeError(f"{name} is of type {type(arg).__name__}; accepted are int, float, and lists of these")
        return pack_numbers(name, values, cast_of(position, casts))
