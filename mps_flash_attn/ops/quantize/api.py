"""`quantize_kv`: keys and values of attention in 8 or 4 bits a number."""

# ruff: noqa: A002 -- `format` is what users call it

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ..calls import shortcut
from ..checks import require_match, require_reverse_mode, require_shape, require_tensor
from ..dtypes import ELEMENTS
from . import plan
from .formats import FORMATS, GROUP_SIZES
from .function import dequantize, quantize

__all__ = ["FormatName", "QuantizedKV", "quantize_kv"]

_quantize = shortcut(torch.ops.mps_flash_attn.quantize.default, quantize._init_fn)
_dequantize = shortcut(torch.ops.mps_flash_attn.dequantize.default, dequantize._init_fn)

FormatName = Literal["int8", "fp8_e4m3", "fp8_e5m2", "int4", "nf4"]


@dataclasses.dataclass(frozen=True)
class QuantizedKV:
    """Keys and values in 8 or 4 bits a number, as `quantize_kv` makes them; a value is its scale times its number.

    Attributes:
        key: ``[B, Hkv, L, D]`` in the dtype of the format: int8, float8_e4m3fn or float8_e5m2 (uint8 on Apple GPUs, for
            which PyTorch has no float8); for 4 bits uint8 ``[B, Hkv, L, ceil(D / 2)]``, the even one of two columns in
            the low half of their byte. uint8 with the same bits is accepted everywhere.
        value: the same of ``Dv`` columns.
        key_scale: float32, ``[B, Hkv, L, 1]``, one scale for each token of each head; for 4 bits
            ``[B, Hkv, L, ceil(D / group_size)]``.
        value_scale: the same of ``Dv`` columns.
        format: ``"int8"``, ``"fp8_e4m3"``, ``"fp8_e5m2"``, ``"int4"`` or ``"nf4"``.
        group_size: columns that share a scale in formats of 4 bits; without meaning in the others.
        head_size: D.
        value_head_size: Dv.
        dtype: of what was quantized, and of what `dequantize` returns.

    Tensors may have any strides but a last one other than 1, so that they may be slices of a longer cache.
    """

    key: Tensor
    value: Tensor
    key_scale: Tensor
    value_scale: Tensor
    format: FormatName
    group_size: int
    head_size: int
    value_head_size: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``[B, Hkv, L, D]``, the shape of the keys that were quantized."""
        batches, heads, length, _ = self.key.shape
        return batches, heads, length, self.head_size

    def check(self) -> None:
        """Whether the attributes go together, which matters for one that was made by hand.

        Raises:
            TypeError, ValueError: naming what does not.
        """
        _require_format(self.format, self.group_size)
        of = FORMATS[self.format]
        for name, columns in (("key", self.head_size), ("value", self.value_head_size)):
            stored, scale = getattr(self, name), getattr(self, f"{name}_scale")
            require_tensor(name, stored, (of.dtype, torch.uint8), f"{of.dtype} and uint8 for {self.format}")
            require_tensor(f"{name}_scale", scale, (torch.float32,), "float32")
            for part, tensor in ((name, stored), (f"{name}_scale", scale)):
                require_match(part, tensor, "key", self.key, dtype=False)
            if stored.dim() != 4:
                raise ValueError(f"{name} has shape {tuple(stored.shape)}; accepted are four dimensions")
            rows, bytes_ = tuple(self.key.shape[:3]), of.row_bytes(columns)
            require_shape(name, stored, (*rows, bytes_), f"[B, Hkv, L] of the key and {columns} columns")
            groups = of.groups(columns, self.group_size)
            require_shape(f"{name}_scale", scale, (*rows, groups), "[B, Hkv, L] of the key and the scales of a row")
        if self.dtype not in ELEMENTS:
            raise TypeError(f"dtype is {self.dtype}; accepted are {', '.join(map(str, ELEMENTS))}")

    def dequantize(self) -> tuple[Tensor, Tensor]:
        """The keys ``[B, Hkv, L, D]`` and values ``[B, Hkv, L, Dv]`` that this stands for, in `dtype`.

        Raises:
            TypeError, ValueError: as `check`.
        """
        self.check()
        key, value = (
            _dequantize(stored.view(torch.uint8), scale, self.format, self.group_size, columns, self.dtype)
            for stored, scale, columns in (
                (self.key, self.key_scale, self.head_size),
                (self.value, self.value_scale, self.value_head_size),
            )
        )
        return key, value


def quantize_kv(key: Tensor, value: Tensor, format: FormatName = "int8", *, group_size: int = 32) -> QuantizedKV:
    r"""Keys and values in 8 or 4 bits a number, for attention over a long cache that should take less memory.

    Each token of each head is quantized by itself, so tokens may be quantized as they come: with the largest magnitude
    ``absmax`` of a row of D columns, or of a group of them, ``scale = absmax / largest`` and every number becomes the
    nearest one of the format times ``scale``.

    ============  =======  ====  ====================  ====================================
    format        largest  bits  numbers               error of x, at most
    ============  =======  ====  ====================  ====================================
    ``int8``      127      8     whole                 ``absmax / 254``
    ``fp8_e4m3``  448      8     OCP e4m3fn            ``max(abs(x) / 16, absmax / 2**18)``
    ``fp8_e5m2``  57344    8     OCP e5m2              ``max(abs(x) / 8, absmax / 2**32)``
    ``int4``      7        4     whole                 ``absmax / 14``
    ``nf4``       1        4     quantiles of normals  ``0.152 absmax``
    ============  =======  ====  ====================  ====================================

    Formats of 8 bits have one scale a row, those of 4 bits one for `group_size` columns. fp8 is that of the Open
    Compute Project (Micikevicius et al. 2022, arXiv:2209.05433), NF4 that of QLoRA (Dettmers et al. 2023,
    arXiv:2305.14314).

    Args:
        key: ``[B, Hkv, L, D]``, float16, bfloat16, float32, or float64 on the simulator. Any strides: only a tensor
            whose last dimension is strided is copied.
        value: ``[B, Hkv, L, Dv]`` in the dtype of `key`.
        format: of the numbers.
        group_size: columns that share a scale in formats of 4 bits: 16, 32, 64 or 128.

    Returns:
        A `QuantizedKV`.

    Raises:
        TypeError: an argument has the wrong type, or a tensor a dtype that is not accepted.
        ValueError: shapes, devices or options that contradict each other.
        UnsupportedError: a tensor that requires grad while gradients are recorded, forward-mode differentiation,
            ``torch.func`` gradients, D above 1024. It is a ``ValueError``.

    Numerics:
        Scales are float32. A row or group of zeros, or whose scale would be below 2^-126, gets the scale 0. One that
        holds NaN or infinity gets the scale NaN and so becomes NaN whole: it is not hidden.

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import quantize_kv
        >>> key, value = torch.randn(2, 1, 4, 100, 64).unbind()
        >>> cache = quantize_kv(key, value, "nf4")
        >>> cache.key.shape, cache.key_scale.shape
        (torch.Size([1, 4, 100, 32]), torch.Size([1, 4, 100, 2]))
        >>> near, _ = cache.dequantize()
        >>> bool((near - key).abs().max() <= 0.152 * key.abs().max())
        True
    """
    _require_format(format, group_size)
    for name, tensor in (("key", key), ("value", value)):
        require_tensor(name, tensor)
        if tensor.dim() != 4 or tensor.shape[-1] < 1:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted are [B, Hkv, L, D] with D from 1")
        if tensor.shape[-1] > plan.MAX_COLUMNS:
            raise UnsupportedError(f"{name} has shape {tuple(tensor.shape)}; accepted is D up to {plan.MAX_COLUMNS}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError(
                f"{name} requires grad and quantization has no gradient; accepted are detached tensors, or a call "
                "under torch.no_grad()"
            )
    require_match("value", value, "key", key)
    require_shape("value", value, (*key.shape[:3], value.shape[3]), "[B, Hkv, L] of the key and Dv")
    require_reverse_mode("quantize_kv")
    of = FORMATS[format]
    (stored_key, key_scale), (stored_value, value_scale) = (_quantize(x, format, group_size) for x in (key, value))
    dtype = of.dtype_on(key.device)
    return QuantizedKV(
        stored_key.view(dtype),
        stored_value.view(dtype),
        key_scale,
        value_scale,
        format,
        group_size,
        key.shape[-1],
        value.shape[-1],
        key.dtype,
    )


def _require_format(format: object, group_size: object) -> None:
    if not isinstance(format, str):
        raise TypeError(f"format is a {type(format).__name__}; accepted is a str")
    if isinstance(group_size, bool) or not isinstance(group_size, int):
        raise TypeError(f"group_size is a {type(group_size).__name__}; accepted is an int")
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; accepted are {', '.join(map(repr, FORMATS))}")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size is {group_size}; accepted are {', '.join(map(str, GROUP_SIZES))}")
