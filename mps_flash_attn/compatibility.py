"""The names of mps-flash-attn 0.5.2 (github.com/mpsops/mps-flash-attention) over this package's attention.

Names, argument order, defaults, layouts and results are that version's. All but `flash_attention` are names of the
package itself too, so that code written for it needs no edit; its `flash_attention`, whose arguments come in another
order than PyTorch's and whose masks are true where a key is hidden, is here::

    from mps_flash_attn.compatibility import flash_attention

What differs: float masks are added exactly instead of hiding what is below a threshold, the gradient of a bias is
computed instead of dropped, chunked attention has gradients, grouped heads are not repeated in memory, tensors need not
be contiguous, fp8 is that of the Open Compute Project instead of 8 bits evenly apart, and nothing falls back in
silence: `replace_sdpa` counts what it passes on, in `stats`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import MPSFlashAttnError, UnsupportedError
from .ops.attention import api
from .ops.attention.cache_api import flash_attention_with_quantized_kv
from .ops.checks import require_match, require_number, require_tensor
from .ops.quantize.api import FormatName, QuantizedKV, quantize_kv
from .ops.quantize.formats import FORMATS, GROUP_SIZES
from .ops.quantize.reference import NF4
from .patch import patch
from .runtime import base
from .runtime.cache import cache_folder

__all__ = [
    "QUANT_FP8_E4M3",
    "QUANT_FP8_E5M2",
    "QUANT_INT8",
    "QUANT_NF4",
    "clear_cache",
    "convert_mask",
    "flash_attention",
    "flash_attention_chunked",
    "flash_attention_fp8",
    "flash_attention_int8",
    "flash_attention_nf4",
    "flash_attention_quantized",
    "flash_attention_with_bias",
    "is_available",
    "precompile",
    "quantize_kv_fp8",
    "quantize_kv_int8",
    "quantize_kv_nf4",
    "register_custom_op",
    "replace_sdpa",
]

#: Float masks hide a key where they are at most this; so 0.5.2 reads them.
_HIDDEN = -1e3
#: What `precompile` prepares unless it is told otherwise.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_HEAD_SIZES = (32, 48, 64, 80, 96, 128)


def is_available() -> bool:
    """Whether attention runs on an Apple GPU here."""
    return any(base.why_not(name) is None for name in base.RUNTIMES["mps"])


def replace_sdpa() -> None:
    """Accelerates ``scaled_dot_product_attention`` on the ``mps`` device: `mps_flash_attn.patch` with its defaults."""
    patch()


def convert_mask(attn_mask: Tensor | None) -> Tensor | None:
    """A mask for `flash_attention` of this module, true where a key is hidden.

    It loses what an additive mask holds beyond that. `mps_flash_attn.flash_attention` takes additive masks as they
    are, and boolean ones that are true where a key takes part.

    Args:
        attn_mask: None; boolean, returned as it is; or additive, in which at most -1000 stands for a hidden key.

    Raises:
        TypeError: neither.
    """
    if attn_mask is None:
        return None
    require_tensor("attn_mask", attn_mask, (torch.bool, *_DTYPES, torch.float64), "bool and floating point")
    return attn_mask if attn_mask.dtype == torch.bool else attn_mask <= _HIDDEN


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    attn_mask: Tensor | None = None,
    window_size: int = 0,
    bf16_backward: bool = False,
) -> Tensor:
    """Attention; `mps_flash_attn.flash_attention` says more of the mathematics, dtypes and errors.

    Args:
        query: ``[B, Hq, Lq, D]``.
        key, value: ``[B, Hkv, Lk, D]``; ``Hq`` is a multiple of ``Hkv``.
        is_causal: query ``i`` sees the keys ``j <= i``.
        scale: factor of the scores, positive; ``1 / sqrt(D)`` if None.
        attn_mask: broadcasts to ``[B, Hq, Lq, Lk]``; boolean, **true where a key is hidden**, or additive.
        window_size: ``w``: query ``i`` sees no keys before ``i - w``; 0 for all.
        bf16_backward: without effect: gradients are computed in the dtype of the tensors, sums in float32.

    Returns:
        ``[B, Hq, Lq, D]``. Rows whose keys are all hidden are 0.

    Raises:
        TypeError, ValueError: as `mps_flash_attn.flash_attention`; a negative window, a scale that is not positive.
    """
    return _attention((query, key, value), _seen(attn_mask), is_causal, scale, window_size)


def flash_attention_with_bias(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: int = 0,
    bias_repeat_count: int = 0,
) -> Tensor:
    """Attention ``softmax((Q K^T + bias) * scale) V``, with gradients of all four tensors.

    The bias is scaled too. What PyTorch adds to scaled scores is ``sqrt(D)`` times smaller, with the default scale.

    Args:
        query: ``[B, Hq, Lq, D]``.
        key, value: ``[B, Hkv, Lk, D]``; ``Hq`` is a multiple of ``Hkv``.
        attn_bias: any floating dtype, ``[B, Hq, Lq, Lk]`` or ``[Hq, Lq, Lk]``; each size may be 1. A scaled copy of it
            is made.
        is_causal, scale, window_size: as in `flash_attention`.
        bias_repeat_count: ``n``, if not 0: ``attn_bias`` has its first size at least n, and batch ``b`` has bias
            ``b % n``, as when n windows of each image share a bias. Nothing is repeated in memory.

    Returns:
        ``[B, Hq, Lq, D]``.

    Raises:
        TypeError, ValueError: as `flash_attention`; a bias that does not fit.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        require_tensor(name, x)
        if x.dim() != 4 or x.shape[0] != query.shape[0]:
            raise ValueError(f"{name} has shape {list(x.shape)}; accepted is [B, H, L, D] with the B of query")
    require_tensor("attn_bias", attn_bias)
    _require_scale(scale)
    _require_count("bias_repeat_count", bias_repeat_count, least=0)
    if attn_bias.dim() not in (3, 4):
        raise ValueError(f"attn_bias has shape {list(attn_bias.shape)}; accepted is [B, Hq, Lq, Lk] or [Hq, Lq, Lk]")
    mask = attn_bias * (1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale)
    operands, rest = (query, key, value), (is_causal, scale, window_size)
    period = bias_repeat_count if mask.dim() == 4 and len(mask) > 1 else 0
    if period == 0:
        return _attention(operands, mask, *rest)
    if period > len(mask):
        raise ValueError(
            f"bias_repeat_count is {period} and attn_bias has shape {list(attn_bias.shape)}; accepted is at most its "
            "first size"
        )
    # Whole periods get a dimension of their own, over which the bias is broadcast; the rest is a call of its own.
    mask, whole = mask[:period], len(query) - len(query) % period
    periods = _attention([x[:whole].unflatten(0, (-1, period)) for x in operands], mask, *rest).flatten(0, 1)
    if whole == len(query):
        return periods
    return torch.cat((periods, _attention([x[whole:] for x in operands], mask[: len(query) - whole], *rest)))


def flash_attention_chunked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chunk_size: int = 16384,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """`flash_attention` of long sequences, with gradients.

    Keys are read block by block and no memory grows with the square of a length, so nothing is gained by chunks.

    Args:
        query: ``[B, Hq, Lq, D]``.
        key, value: ``[B, Hkv, Lk, D]``.
        chunk_size: at least 1; without effect.
        is_causal, scale: as in `flash_attention`.

    Raises:
        TypeError, ValueError: as `flash_attention`.
    """
    _require_count("chunk_size", chunk_size, least=1)
    return _attention((query, key, value), None, is_causal, scale, 0)


#: What ``quant_type`` may be.
QUANT_FP8_E4M3, QUANT_FP8_E5M2, QUANT_INT8, QUANT_NF4 = 3, 4, 5, 6

_QUANTIZED: dict[int, FormatName] = {
    QUANT_FP8_E4M3: "fp8_e4m3",
    QUANT_FP8_E5M2: "fp8_e5m2",
    QUANT_INT8: "int8",
    QUANT_NF4: "nf4",
}
#: In that version's int8 this byte is 0; in ours, which is two's complement, byte 0.
_INT8_ZERO = 128
_GROUP_SIZE = max(GROUP_SIZES)


def quantize_kv_fp8(key: Tensor, value: Tensor, use_e5m2: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values in 8 bits of floating point, with a scale for each head of each batch.

    `mps_flash_attn.functional.quantize_kv` has a scale for each token, which is closer and takes tokens as they come.

    Args:
        key, value: ``[B, H, L, D]``.
        use_e5m2: 5 bits of exponent and 2 of mantissa, instead of 4 and 3.

    Returns:
        Keys and values, uint8 ``[B, H, L, D]``, and their scales, float32 ``[B, H]``: a number is its scale times what
        the bits stand for.

    Raises:
        TypeError, ValueError: as `quantize_kv`; among them tensors that require grad while gradients are recorded.
    """
    return _quantized_by_head(key, value, "fp8_e5m2" if use_e5m2 else "fp8_e4m3")


def quantize_kv_int8(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `quantize_kv_fp8`, in whole numbers of 8 bits: a number is its scale times its byte less 128."""
    key, value, *scales = _quantized_by_head(key, value, "int8")
    return key ^ _INT8_ZERO, value ^ _INT8_ZERO, scales[0], scales[1]


def quantize_kv_nf4(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `quantize_kv_fp8`, in 4 bits that number the values of NF4 (Dettmers et al. 2023, arXiv:2305.14314).

    Returns:
        Keys and values, uint8 ``[B, H, L, D / 2]`` with the even one of two columns in the low half of a byte, and
        their scales.

    Raises:
        TypeError, ValueError: as `quantize_kv_fp8`; D that is odd.
    """
    for name, x in (("key", key), ("value", value)):
        _require_quantizable(name, x)
        if x.shape[-1] % 2:
            raise ValueError(f"{name} has shape {list(x.shape)}; accepted is [B, H, L, D] with an even D")
    (stored_key, k_scale), (stored_value, v_scale) = map(_nf4_by_head, (key, value))
    return stored_key, stored_value, k_scale, v_scale


def flash_attention_fp8(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    window_size: int = 0,
    use_e5m2: bool = False,
    scale: float | None = None,
) -> Tensor:
    """`flash_attention_quantized` of what `quantize_kv_fp8` returns."""
    quant_type = QUANT_FP8_E5M2 if use_e5m2 else QUANT_FP8_E4M3
    return flash_attention_quantized(
        query, key, value, k_scale, v_scale, quant_type, is_causal, attn_mask, window_size, scale
    )


def flash_attention_int8(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    window_size: int = 0,
    scale: float | None = None,
) -> Tensor:
    """`flash_attention_quantized` of what `quantize_kv_int8` returns."""
    return flash_attention_quantized(
        query, key, value, k_scale, v_scale, QUANT_INT8, is_causal, attn_mask, window_size, scale
    )


def flash_attention_nf4(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    window_size: int = 0,
    scale: float | None = None,
) -> Tensor:
    """`flash_attention_quantized` of what `quantize_kv_nf4` returns."""
    return flash_attention_quantized(
        query, key, value, k_scale, v_scale, QUANT_NF4, is_causal, attn_mask, window_size, scale
    )


def flash_attention_quantized(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    quant_type: int,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    window_size: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Attention to keys and values in 8 or 4 bits, which the kernel turns into numbers as it loads them.

    Args:
        query: ``[B, Hq, Lq, D]``.
        key, value: uint8, ``[B, Hkv, Lk, D]``, or ``D / 2`` for NF4. Bytes of int8 are copied, the others are not.
        k_scale, v_scale: float32, ``[B, Hkv]`` or ``[Hkv]``.
        quant_type: one of ``QUANT_FP8_E4M3``, ``QUANT_FP8_E5M2``, ``QUANT_INT8`` and ``QUANT_NF4``.
        is_causal, attn_mask, window_size, scale: as in `flash_attention`.

    Returns:
        ``[B, Hq, Lq, D]``. There are no gradients.

    Raises:
        TypeError, ValueError: arguments that do not fit; a query that requires grad while gradients are recorded.
    """
    require_tensor("query", query)
    if quant_type not in _QUANTIZED:
        raise ValueError(f"quant_type is {quant_type!r}; accepted are {', '.join(map(str, _QUANTIZED))}")
    name = _QUANTIZED[quant_type]
    if quant_type == QUANT_INT8:
        key, value = (x ^ _INT8_ZERO if isinstance(x, Tensor) and x.dtype == torch.uint8 else x for x in (key, value))
    (k, k_scales, columns), (v, v_scales, value_columns) = (
        _stored(name, "key", key, k_scale),
        _stored(name, "value", value, v_scale),
    )
    kv = QuantizedKV(k, v, k_scales, v_scales, name, _GROUP_SIZE, columns, value_columns, query.dtype)
    _require_scale(scale)
    out = flash_attention_with_quantized_kv(
        query, kv, _seen(attn_mask), is_causal, scale, causal_alignment="top-left", window=_window(window_size)
    )
    return out if isinstance(out, Tensor) else out[0]


def _stored(format_name: FormatName, name: str, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, int]:
    """Bytes and scales as a `QuantizedKV` has them, the scales by strides of 0 over the tokens; and D."""
    of = FORMATS[format_name]
    require_tensor(name, x, (torch.uint8,), "uint8")
    require_tensor(f"{name[0]}_scale", scale, (torch.float32,), "float32")
    require_match(f"{name[0]}_scale", scale, name, x, dtype=False)
    if x.dim() != 4:
        raise ValueError(f"{name} has shape {list(x.shape)}; accepted is [B, Hkv, Lk, D]")
    by_head = [list(x.shape[:2]), list(x.shape[1:2])]
    if list(scale.shape) not in by_head:
        raise ValueError(f"{name[0]}_scale has shape {list(scale.shape)}; accepted are {by_head[0]} and {by_head[1]}")
    columns = x.shape[3] * 8 // of.bits
    scale = scale.expand(x.shape[:2])[:, :, None, None].expand(-1, -1, 1, of.groups(columns, _GROUP_SIZE)).contiguous()
    return x, scale.expand(-1, -1, x.shape[2], -1), columns


def _quantized_by_head(key: Tensor, value: Tensor, name: FormatName) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values as bytes of 8 bits, and one scale a head: that of its largest magnitude.

    With that magnitude as one more column, every token's scale is its head's.
    """
    largest = []
    for side, x in (("key", key), ("value", value)):
        _require_quantizable(side, x)
        largest.append(x.abs().amax((2, 3), keepdim=True).expand(-1, -1, x.shape[2], -1))
    kv = quantize_kv(torch.cat((key, largest[0]), -1), torch.cat((value, largest[1]), -1), name)
    stored_key, stored_value = (x.view(torch.uint8)[..., :-1].contiguous() for x in (kv.key, kv.value))
    return stored_key, stored_value, kv.key_scale[:, :, 0, 0], kv.value_scale[:, :, 0, 0]


def _nf4_by_head(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest value of NF4 to each number, two to a byte, and one scale a head."""
    scale = x.abs().amax((2, 3)).float()
    values = torch.tensor(NF4, dtype=torch.float32, device=x.device)
    halfway = values[:-1].lerp(values[1:], 0.5)
    nearest = torch.bucketize(x / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None, None], halfway)
    nearest = nearest.to(torch.uint8)
    return nearest[..., ::2] | nearest[..., 1::2] << 4, scale


def precompile(
    device: str = "mps", dtypes: Sequence[torch.dtype] = _DTYPES, head_sizes: Sequence[int] = _HEAD_SIZES
) -> None:
    """Compiles the kernels of common calls, so that no later one waits for a compiler; it is kept on disk.

    Those are attention with and without a causal mask, forward and backward, and of one query. Lengths do not matter:
    no kernel is compiled for one.

    Args:
        device: ``"mps"``, ``"cuda"`` or ``"cpu"``, which is the simulator.
        dtypes: of the tensors.
        head_sizes: D.

    Raises:
        ValueError: another device.
        MPSFlashAttnError: no kernels can run on the device here. It is a ``RuntimeError``.
    """
    if device not in base.RUNTIMES:
        raise ValueError(f"device is {device!r}; accepted are {', '.join(map(repr, base.RUNTIMES))}")
    reasons = {name: base.why_not(name) for name in base.RUNTIMES[device]}
    if None not in reasons.values():
        raise MPSFlashAttnError(f"device is {device!r}, for which no runtime can be used here: {reasons}")
    for dtype in dtypes:
        for size in head_sizes:
            rows = torch.zeros(1, 1, 4096, size, dtype=dtype, device=device)
            api.flash_attention(rows[:, :, :1], rows, rows)
            some = rows[:, :, :16].clone().requires_grad_()
            for is_causal in (False, True):
                torch.autograd.grad(api.flash_attention(some, some, some, is_causal=is_causal).sum(), some)


def clear_cache() -> None:
    """Deletes the compiled kernels on disk, of all runtimes. Those in memory stay, and so do tuned tilings."""
    for name in {name for names in base.RUNTIMES.values() for name in names}:
        for file in cache_folder(name).rglob("*"):
            if file.is_file():
                file.unlink(missing_ok=True)


@functools.cache
def register_custom_op() -> bool:
    """Registers ``torch.ops.mfa.flash_attention`` and ``torch.ops.mfa.forward``; once, however often it is called.

    ``flash_attention`` takes the arguments of this module's up to the window in their order, ``forward`` those without
    the scale. Both are made of this package's operators, which compilers trace and which have gradients, so that code
    that calls functions needs neither.

    Returns:
        True.
    """
    first, last = "Tensor query, Tensor key, Tensor value, bool is_causal=False", "Tensor? attn_mask=None"
    last += ", SymInt window_size=0"
    library = _new_library("mfa", "FRAGMENT")
    library.define(f"flash_attention({first}, float? scale=None, {last}) -> Tensor")
    library.define(f"forward({first}, {last}) -> Tensor")
    library.impl("flash_attention", flash_attention, "CompositeImplicitAutograd")
    library.impl("forward", _forward, "CompositeImplicitAutograd")
    _registered.append(library)
    return True


_new_library: Callable[[str, str], Any] = torch.library.Library  # which PyTorch leaves untyped
#: PyTorch takes back what a library registered when nobody holds it.
_registered: list[Any] = []


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    window_size: int = 0,
) -> Tensor:
    return flash_attention(query, key, value, is_causal, None, attn_mask, window_size)


def _attention(
    operands: Sequence[Tensor], attn_mask: Tensor | None, is_causal: bool, scale: float | None, window_size: int
) -> Tensor:
    _require_scale(scale)
    query, key, value = operands
    return api.flash_attention(query, key, value, attn_mask, 0.0, is_causal, scale, True, window=_window(window_size))


def _seen(attn_mask: Tensor | None) -> Tensor | None:
    """A boolean mask that is true where a key is hidden as one that is true where it takes part; others as they are."""
    return attn_mask.logical_not() if isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool else attn_mask


def _window(size: int) -> tuple[int, int] | None:
    _require_count("window_size", size, least=0)
    return (size, -1) if size else None


def _require_quantizable(name: str, x: Tensor) -> None:
    """Raises unless it has numbers in four dimensions, and no gradient is wanted that would be lost."""
    require_tensor(name, x)
    if x.dim() != 4 or x.shape[2] * x.shape[3] == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}; accepted is [B, H, L, D] with L and D from 1")
    if x.requires_grad and torch.is_grad_enabled():
        raise UnsupportedError(f"{name} requires grad and quantization has no gradient; accepted is a detached one")


def _require_scale(scale: float | None) -> None:
    """Raises unless it is None or positive."""
    if scale is not None and require_number("scale", scale) <= 0:
        raise ValueError(f"scale is {scale}; accepted are positive numbers, or None for 1 / sqrt(D)")


def _require_count(name: str, value: int, *, least: int) -> None:
    """Raises unless it is an int from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} is a {type(value).__name__}; accepted is an int")
    if value < least:
        raise ValueError(f"{name} is {value}; accepted are {least} and more")
