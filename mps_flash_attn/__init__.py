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
        QUANT_FP8_E4M3,
        QUANT_FP8_E5M2,
        QUANT_INT8,
        QUANT_NF4,
        clear_cache,
        convert_mask,
        flash_attention_chunked,
        flash_attention_fp8,
        flash_attention_int8,
        flash_attention_nf4,
        flash_attention_quantized,
        flash_attention_with_bias,
        is_available,
        precompile,
        quantize_kv_fp8,
        quantize_kv_int8,
        quantize_kv_nf4,
        register_custom_op,
        replace_sdpa,
    )

__all__ = [
    "QUANT_FP8_E4M3",
    "QUANT_FP8_E5M2",
    "QUANT_INT8",
    "QUANT_NF4",
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
    "flash_attention_fp8",
    "flash_attention_int8",
    "flash_attention_nf4",
    "flash_attention_quantized",
    "flash_attention_with_bias",
    "functional",
    "is_available",
    "nn",
    "patch",
    "patched",
    "precompile",
    "quantize_kv",
    "quantize_kv_fp8",
    "quantize_kv_int8",
    "quantize_kv_nf4",
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
