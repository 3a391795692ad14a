"""Metal kernels as Python callables that run on the CPU, with the face of ``torch.mps.compile_shader``."""

from __future__ import annotations

import functools
import os
import re
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ... import _C
from ...errors import KernelLaunchError
from ..cache import Cache, cache_folder, content_key
from ..calling import Argument, cast_of, grid_and_group, pack_numbers
from ..translation import cached_translation
from ..translation.host_compiler import Compiler, find_compiler
from ..translation.translate import KernelInfo
from . import observe
from .compiler import Variant, build, flags, headers_digest
from .target import SimulatorTarget

__all__ = ["Kernel", "ShaderLibrary", "compile_shader"]

THREADGROUP_BYTES = 32 * 1024
"""Threadgroup memory of an Apple GPU."""

_MAX_KERNELS_TOGETHER = 8  # texts with more are compiled one kernel at a time, when it is first asked for

_THREADS_VARIABLE = "MPS_FLASH_ATTN_SIMULATOR_THREADS"


def compile_shader(source: str) -> ShaderLibrary:
    """Compiles Metal text for the CPU; the counterpart of ``torch.mps.compile_shader``.

    Args:
        source: text in the Metal Shading Language. ``double`` is accepted as an extension.

    Returns:
        The library; its kernels are attributes.

    Raises:
        KernelCompileError: the text is no valid Metal; the message has the compiler's words and lines of ``source``.
        CompilerNotFoundError: there is no C++ compiler.
        CacheError: the folder for compiled kernels cannot be used.

    Example:
        >>> text = "kernel void twice(device float* x, uint i [[thread_position_in_grid]]) { x[i] *= 2; }"
        >>> lib = compile_shader(text)
        >>> x = torch.ones(4)
        >>> lib.twice(x)
    """
    if not isinstance(source, str):
        raise TypeError(f"source must be a str with Metal text, got {type(source).__name__}")
    return _library(source, find_compiler(), cache_folder("simulator"))


@functools.lru_cache(maxsize=1024)
def _library(source: str, compiler: Compiler, folder: Path) -> ShaderLibrary:
    library = ShaderLibrary(source, compiler, Cache(folder))
    if not library._apart:  # so that faults in the text show here; the other build is made when it is needed
        library._load(Variant.FAST if observe.current() is None else Variant.CHECKED)
    return library


class ShaderLibrary:
    """Kernels compiled from one Metal text. Each is an attribute; ``dir()`` lists their names."""

    def __init__(self, source: str, compiler: Compiler, cache: Cache) -> None:
        self._compiler = compiler
        self._cache = cache
        self._translation = cached_translation(source, SimulatorTarget(), compiler, cache)
        self._apart = len(self._translation.kernels) > _MAX_KERNELS_TOGETHER
        self._loaded: dict[tuple[Variant, int | None], _C.Library] = {}
        self._lock = threading.Lock()
        extended = re.search(r"\bdouble\b", self._translation.text) is not None
        self._threadgroup_bytes = THREADGROUP_BYTES * (2 if extended else 1)
        self._infos = {info.name: info for info in self._translation.kernels}
        # With the extension `double` the text is not Metal, and no Metal compiler has a say in it.
        self._metal = None if extended else source

    def __getattr__(self, name: str) -> Kernel:
        infos: dict[str, KernelInfo] = self.__dict__.get("_infos", {})
        if name not in infos:
            raise AttributeError(f"the library has no kernel {name!r}; it has {', '.join(map(repr, infos)) or 'none'}")
        kernel = Kernel(self, infos[name])
        self.__dict__[name] = kernel
        return kernel

    def __dir__(self) -> list[str]:
        return list(self._infos)

    def _load(self, variant: Variant, info: KernelInfo | None = None) -> _C.Library:
        """Returns a build of the library with the kernel, compiling it unless it is in memory or on disk."""
        only = info.index if info is not None and self._apart else None
        with self._lock:
            library = self._loaded.get((variant, only))
            if library is None:
                library = self._loaded[variant, only] = _C.Library(str(self._compile(variant, only)))
            return library

    def _compile(self, variant: Variant, only: int | None) -> Path:
        kernels = self._translation.kernels if only is None else (self._translation.kernels[only],)
        text = self._translation.text if only is None else self._translation.only(only)
        names = ", ".join(repr(info.name) for info in kernels)
        key = content_key("library", text, headers_digest(), self._compiler.version, *flags(self._compiler, variant))
        return self._cache.path(
            f"{key}.so", lambda: build(self._compiler, text, variant, title=f"the library of kernels {names}")
        )


class Kernel:
    """One kernel of a library. Calling it launches it and waits until it has run."""

    max_threads_per_threadgroup: int = _C.MAX_THREADS
    thread_execution_width: int = _C.LANES

    def __init__(self, library: ShaderLibrary, info: KernelInfo) -> None:
        self._library = library
        self._info = info
        self._buffers = {buffer.index: buffer for buffer in info.buffers}
        self._arity = max(self._buffers, default=-1) + 1
        if self._arity > _C.MAX_BUFFERS:
            raise KernelLaunchError(
                f"kernel {info.name!r} uses [[buffer({self._arity - 1})]]; Metal has buffers 0 to {_C.MAX_BUFFERS - 1}"
            )
        self._builds: dict[Variant, _C.Kernel] = {}

    def __repr__(self) -> str:
        return f"<simulator kernel {self._info.name!r}>"

    def __call__(
        self,
        *args: Argument,
        threads: int | Sequence[int] | None = None,
        group_size: int | Sequence[int] | None = None,
        arg_casts: str | Mapping[int, str] | None = None,
    ) -> None:
        """Runs the kernel over a grid of threads, like a kernel of ``torch.mps.compile_shader``.

        Args:
            args: what fills ``[[buffer(0)]]``, ``[[buffer(1)]]``, ...: a CPU tensor of any strides passes the address
                of its first element; an int passes an int64 by value, a float a float32, a list or tuple of either
                their array; a list of tensors the array of their addresses.
            threads: the size of the grid in threads, one to three numbers, x first. By default one for each element
                of the first tensor.
            group_size: the size of a threadgroup, as many numbers as ``threads``. Threadgroups at the far edges of
                the grid are smaller when it does not divide. By default as large as allowed, along x.
            arg_casts: how numbers are passed: ``"fp16"``, ``"bf16"``, ``"int8"``, ``"uint8"``, ``"int16"`` or
                ``"int32"`` for all arguments or, in a mapping, for the arguments at those positions.

        Raises:
            TypeError: an argument is of the wrong kind, or there are too few or too many.
            ValueError: an argument has a wrong value, such as a tensor on another device.
            KernelLaunchError: the kernel had to be stopped, for example at a barrier that some threads never reach.
        """
        if len(args) != self._arity:
            raise TypeError(self._wrong_arity(args))
        grid, group = grid_and_group(self._info.name, args, threads, group_size, self.max_threads_per_threadgroup)
        observer = observe.current()
        if observer is not None:
            self._launch_observed(observer, args, arg_casts, grid, group)
            return
        packed = tuple(
            arg.data_ptr() if isinstance(arg, Tensor) and arg.is_cpu else self._pack(position, arg, arg_casts)
            for position, arg in enumerate(args)
        )
        if 0 in grid:
            return
        kernel = self._builds.get(Variant.FAST) or self._build(Variant.FAST)
        kernel.launch(packed, grid, group, self._library._threadgroup_bytes, _os_threads())

    def _launch_observed(
        self,
        observer: observe.Observer,
        args: Sequence[Argument],
        casts: str | Mapping[int, str] | None,
        grid: tuple[int, ...],
        group: tuple[int, ...],
    ) -> None:
        arguments = tuple(self._observed(position, arg, casts) for position, arg in enumerate(args))
        if 0 in grid:
            return
        observer.launch(
            observe.Launch(
                self._info.name,
                self._library._metal,
                self._builds.get(Variant.CHECKED) or self._build(Variant.CHECKED),
                arguments,
                grid,
                group,
                self._library._threadgroup_bytes,
                _os_threads(),
            )
        )

    def _build(self, variant: Variant) -> _C.Kernel:
        kernel = _C.Kernel(self._library._load(variant, self._info), self._info.index, self._info.name)
        self._builds[variant] = kernel
        return kernel

    def _observed(self, position: int, arg: Argument, casts: str | Mapping[int, str] | None) -> observe.Argument:
        """An argument together with the memory that it leads to."""
        buffer = self._buffers.get(position)
        name = f"buffer {position}{f' ({buffer.name!r})' if buffer else ''}"
        is_constant = buffer is not None and buffer.address_space == "constant"
        if isinstance(arg, Tensor) and arg.is_cpu:
            return observe.describe_tensor(name, arg, is_constant), ()
        by_value = observe.describe_number(name, self._pack(position, arg, casts))
        if not isinstance(arg, (list, tuple)) or not isinstance(arg[0], Tensor):
            return by_value, ()
        return by_value, tuple(
            observe.describe_tensor(f"{name}[{index}]", tensor, False) for index, tensor in enumerate(arg)
        )

    def _wrong_arity(self, args: Sequence[Argument]) -> str:
        names = ", ".join(f"{buffer.name} [[buffer({buffer.index})]]" for buffer in self._info.buffers)
        return f"kernel {self._info.name!r} takes {self._arity} arguments ({names}), got {len(args)}"

    def _argument_name(self, position: int) -> str:
        buffer = self._buffers.get(position)
        return f"argument {position}{f' ({buffer.name})' if buffer else ''} of kernel {self._info.name!r}"

    def _pack(self, position: int, arg: Argument, casts: str | Mapping[int, str] | None) -> bytes:
        """The bytes of an argument that is passed by value."""
        name = self._argument_name(position)
        if isinstance(arg, Tensor):
            raise ValueError(f"{name} is on device {arg.device}; the simulator takes CPU tensors")
        values = arg if isinstance(arg, (list, tuple)) else (arg,)
        if not values:
            raise ValueError(f"{name} is an empty {type(arg).__name__}; at least one element is needed")
        first = values[0]
        if isinstance(first, Tensor):
            return b"".join(self._pack_address(name, value) for value in values)
        if not isinstance(first, (int, float)):
            raise TypeError(
                f"{name} is of type {type(first if values is arg else arg).__name__}; accepted are CPU tensors, int, "
                "float, and lists or tuples of one of these"
            )
        buffer = self._buffers.get(position)
        if buffer is not None and buffer.address_space == "device" and not buffer.is_const:
            raise TypeError(f"{name} is written by the kernel ({buffer.type}): it takes a tensor, got {arg!r}")
        return pack_numbers(name, values, cast_of(position, casts))

    def _pack_address(self, name: str, value: Argument) -> bytes:
        if not isinstance(value, Tensor) or not value.is_cpu:
            raise TypeError(f"{name} is a list of tensors: all its elements must be CPU tensors, got {value!r}")
        return struct.pack("P", value.data_ptr())


def _os_threads() -> int:
    """How many OS threads a launch uses."""
    setting = os.environ.get(_THREADS_VARIABLE)
    if setting is None:
        return _available_cpus()
    if not setting.isdecimal() or int(setting) < 1:
        raise ValueError(f"{_THREADS_VARIABLE} must be a positive number, got {setting!r}")
    return int(setting)


@functools.cache
def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
