"""Flash attention for PyTorch on Apple GPUs: forward and backward in memory that grows with the length alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from .compatibility import (
        clear_cache,
        convert_mask,
        flash_attention_chunked,
        flash_attention_with_bias,
        is_available,
        precompile,
        register_custom_op,
        replace_sdpa,
    )

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
    "clear_cache",
    "convert_mask",
    "flash_attention",
    "flash_attention_chunked",
    "flash_attention_with_bias",
    "functional",
    "is_available",
    "nn",
    "patch",
    "patched",
    "precompile",
    "quantize_kv",
    "register_custom_op",
    "replace_sdpa",
    "reset_stats",
    "stats",
    "unpatch",
]


def __getattr__(name: str) -> Any:
    """The names of version 0.5.2, for which nothing is imported before somebody asks for one."""
    if name in __all__:
        from . import compatibility

        return getattr(compatibility, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
