"""The names of mps-flash-attn 0.5.2 (github.com/mpsops/mps-flash-attention) over this package's attention.

Names, argument order, defaults, layouts and results are that version's. All but `flash_attention` are names of the
package itself too, so that code written for it needs no edit; its `flash_attention`, whose arguments come in another
order than PyTorch's and whose masks are true where a key is hidden, is here::

    from mps_flash_attn.compatibility import flash_attention

What differs: float masks are added exactly instead of hiding what is below a threshold, the gradient of a bias is
computed instead of dropped, chunked attention and bfloat16 have gradients, grouped heads are not repeated in memory,
tensors need not be contiguous, and nothing falls back in silence: `replace_sdpa` counts what it passes on, in `stats`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import MPSFlashAttnError
from .ops.attention import api
from .ops.checks import require_number, require_tensor
from .patch import patch
from .runtime import base
from .runtime.cache import cache_folder

__all__ = [
    "clear_cache",
    "convert_mask",
    "flash_attention",
    "flash_attention_chunked",
    "flash_attention_with_bias",
    "is_available",
    "precompile",
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
    if isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool:
        attn_mask = attn_mask.logical_not()
    return _attention((query, key, value), attn_mask, is_causal, scale, window_size)


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
    _require_count("window_size", window_size, least=0)
    _require_scale(scale)
    window = (window_size, -1) if window_size else None
    query, key, value = operands
    return api.flash_attention(query, key, value, attn_mask, 0.0, is_causal, scale, True, window=window)


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
