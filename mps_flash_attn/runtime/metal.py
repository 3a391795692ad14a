"""The runtime that is built on macOS: Metal through Swift, launches on PyTorch's own encoder.

It has the face of ``torch.mps.compile_shader``. What it adds: a second process finds its kernels' machine code on disk,
and what is in memory is bounded, pipelines as well as texts.
"""

from __future__ import annotations

import functools
import threading

import torch

from .. import _metal, folders
from .._version import __version__
from ..errors import MPSFlashAttnError
from . import torch_mps

__all__ = [
    "CAPABILITIES",
    "ShaderLibrary",
    "cache_stats",
    "compile_shader",
    "device_info",
    "is_checking",
    "unavailable",
]

CAPABILITIES = torch_mps.capabilities()

_MOST_PIPELINES = 512
_MOST_ARCHIVE_BYTES = 256 << 20

_SELF_CHECK = """
#include <metal_stdlib>
kernel void mps_flash_attn_self_check(device float* x, constant long& n, uint i [[thread_position_in_grid]]) {
    x[i] = x[i] * 2 + float(n);
}
"""

device_info = _metal.device_info


def cache_stats() -> dict[str, int]:
    """What became of the kernels that this process asked for, as counts.

    ``compiled`` pipelines were compiled to machine code; ``archive_hits`` were found on disk and ``memory_hits`` in
    memory. ``libraries`` are the texts that Metal's front end parsed, one for each pipeline compiled or found on disk:
    Metal cannot keep what it makes of a text, so a process with a warm disk compiles nothing and still parses.
    ``evicted`` pipelines had to make room, and ``archive_repairs`` files on disk were damaged and made anew.
    ``pipelines`` and ``kernels``, with their texts, are in memory now.
    """
    return _metal.cache_stats()


class ShaderLibrary:
    """The kernels of one Metal text, compiled when they are first asked for. Each is an attribute."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> _metal.Kernel:
        if name.startswith("__"):
            raise AttributeError(name)
        with self._lock:
            kernel: _metal.Kernel | None = self.__dict__.get(name)
            if kernel is None:
                kernel = self.__dict__[name] = _metal.Kernel(self._source, name)
            return kernel


@functools.lru_cache(maxsize=_MOST_PIPELINES)
def compile_shader(source: str) -> ShaderLibrary:
    """A library of the kernels in a Metal text; the counterpart of ``torch.mps.compile_shader``.

    Args:
        source: text in the Metal Shading Language.

    Returns:
        The library. Asking for a kernel compiles it and raises `KernelCompileError` with the Metal compiler's words
        where that fails. Calling a kernel raises ``ValueError`` or ``TypeError`` for arguments that are no ``mps``
        tensors or numbers, and `KernelLaunchError` for a launch beyond the limits of the GPU; nothing is encoded then.
    """
    if not isinstance(source, str):
        raise TypeError(f"source must be a str with Metal text, got {type(source).__name__}")
    _configure()
    return ShaderLibrary(source)


@functools.cache
def _configure() -> None:
    _metal.configure(str(folders.cache_root() / "metal"), __version__, _MOST_PIPELINES, _MOST_ARCHIVE_BYTES)


def is_checking() -> bool:
    """Never: nothing here can check a kernel."""
    return False


@functools.cache
def unavailable() -> str | None:
    """Why it cannot be used: no GPU for PyTorch, or a first tiny kernel that did not do what it should.

    Raises:
        OutOfMemoryError: not even that kernel finds memory now. That decides nothing: the next call tries again.
    """
    reason = torch_mps.unavailable()
    if reason is not None:
        return reason
    try:
        x = torch.arange(64, dtype=torch.float32, device="mps")
        compile_shader(_SELF_CHECK).mps_flash_attn_self_check(x, 3, threads=64, group_size=32)
        found = x.tolist()
    except (MPSFlashAttnError, ValueError, TypeError) as error:
        return f"its self-check failed: {error}"
    if found != [2.0 * i + 3 for i in range(64)]:
        return f"its self-check gave wrong results: {found[:4]}..., not [3.0, 5.0, 7.0, 9.0]..."
    return None
