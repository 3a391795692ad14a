"""Flash attention for PyTorch on Apple GPUs: forward and backward in memory that grows with the length alone."""

from __future__ import annotations

from . import functional, nn
from ._version import __version__
from .errors import (
    CacheError,
    CompilerNotFoundError,
    KernelCheckError,
    KernelCompileError,
    KernelLaunchError,
    MPSFlashAttnError,
    UnsupportedError,
)
from .functional import QuantizedKV, flash_attention, quantize_kv
from .patch import DeviceStats, Stats, patch, patched, reset_stats, stats, unpatch

__all__ = [
    "CacheError",
    "CompilerNotFoundError",
    "DeviceStats",
    "KernelCheckError",
    "KernelCompileError",
    "KernelLaunchError",
    "MPSFlashAttnError",
    "QuantizedKV",
    "Stats",
    "UnsupportedError",
    "__version__",
    "flash_attention",
    "functional",
    "nn",
    "patch",
    "patched",
    "quantize_kv",
    "reset_stats",
    "stats",
    "unpatch",
]
