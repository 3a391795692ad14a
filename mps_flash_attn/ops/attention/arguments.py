"""Which arguments attention accepts: a cheap test for the common call, and words for every call that is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ..checks import derivatives_supported, require_match, require_tensor
from .plan import MAX_HEAD_SIZE

__all__ = [
    "PLAIN",
    "Refusal",
    "Rotary",
    "Scoring",
    "autocast_dtype",
    "is_direct",
    "leading_sizes",
    "refuse_groups",
    "refuse_kinds",
    "refuse_mask",
    "refuse_mix",
    "refuse_operands",
    "refuse_scale",
    "refuse_scoring",
    "refuse_sizes",
]

_DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_DTYPE_NAMES = "float32, float16, bfloat16, or float64 on the simulator"
_AUTOCAST_DEVICES = frozenset(("cpu", "cuda", "mps"))


class Rotary(NamedTuple):
    """Rotary position embedding of queries and keys, by tables as `rope_tables` makes them.

    Attributes:
        cos, sin: ``[P, R / 2]``, any floating dtype, on the device of the queries, for all positions from 0 on that
            occur: ``P`` is at least ``Lk`` and ``query_offset + Lq``. The other ``D - R`` columns are not turned.
        interleaved: pair ``i`` is columns ``(2 i, 2 i + 1)``; otherwise ``(i, i + R / 2)``.
        query_offset: position of the first query, at least 0; that of the first key is 0. With a cache of keys it is
            ``Lk - Lq``.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False
    query_offset: int = 0


class Scoring(NamedTuple):
    """What a call asks beyond a mask, a causal edge and a scale; the names are those of `flash_attention`."""

    dropout_p: float = 0.0
    softcap: float = 0.0
    window: tuple[int, int] | None = None
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
    bottom_right: bool = False
    rotary: Rotary | None = None


#: What the common call asks.
PLAIN = Scoring()


@dataclass(frozen=True)
class Refusal:
    """Why a call is not computed.

    Attributes:
        reason: a short text without shapes, the same for every call that fails the same way, so it can be counted.
        error: what `flash_attention` raises: argument, what came, what is accepted.
    """

    reason: str
    error: Exception


def is_direct(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> bool:
    """Whether the operator takes these three as they are: nothing to refuse, cast, copy, broadcast or fold."""
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        return False
    dtype = query.dtype
    if dtype not in _DTYPES or key.dtype is not dtype or value.dtype is not dtype:
        return False
    if query.is_nested or key.is_nested or value.is_nested or query.dim() != 4 or key.dim() != 4:
        return False
    batch, heads, _, head_size = query.shape
    kv_shape = key.shape
    kv_heads = kv_shape[1]
    device = query.device
    return (
        batch == kv_shape[0]
        and kv_heads > 0
        and (heads == kv_heads or (enable_gqa and heads % kv_heads == 0))
        and head_size == kv_shape[3]
        and 0 < head_size <= MAX_HEAD_SIZE
        and (kv_shape == value.shape or (kv_shape[:3] == value.shape[:3] and 0 < value.shape[3] <= MAX_HEAD_SIZE))
        and device == key.device
        and device == value.device
        and query.layout is key.layout is value.layout is torch.strided
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and derivatives_supported()
        and autocast_dtype(device.type) is None
    )


def autocast_dtype(device_type: str) -> torch.dtype | None:
    if device_type in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def refuse_kinds(query: Tensor, key: Tensor, value: Tensor) -> Refusal | None:
    """Checks of each operand by itself: type, layout, dtype, rank; then of the kind of differentiation."""
    for name, operand in (("query", query), ("key", key), ("value", value)):
        if not isinstance(operand, Tensor):
            return Refusal("not a tensor", TypeError(f"{name} is a {type(operand).__name__}; accepted is a Tensor"))
        if operand.is_nested or operand.layout is not torch.strided:
            kind = "nested" if operand.is_nested else f"of layout {operand.layout}"
            return Refusal(
                "sparse or nested tensor", UnsupportedError(f"{name} is {kind}; accepted are dense strided tensors")
            )
        if operand.dtype not in _DTYPES:
            return Refusal(
                "dtype not supported", TypeError(f"{name} has dtype {operand.dtype}; accepted are {_DTYPE_NAMES}")
            )
        if operand.dim() < 2:
            return Refusal(
                "fewer than two dimensions",
                ValueError(f"{name} has shape {list(operand.shape)}; accepted are two dimensions or more: [..., L, D]"),
            )
    if not derivatives_supported():
        return Refusal(
            "forward-mode or torch.func differentiation",
            UnsupportedError(
                "forward-mode differentiation and torch.func gradients of attention are not supported; accepted are "
                "torch.autograd.grad and backward()"
            ),
        )
    return None


def refuse_operands(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> Refusal | None:
    """Checks of query, key and value against each other, after `refuse_kinds`."""
    return (
        refuse_mix(query, key, value)
        or refuse_sizes(query, key, value)
        or (refuse_groups(query, key, value) if enable_gqa else None)
    )


def refuse_mix(query: Tensor, key: Tensor, value: Tensor) -> Refusal | None:
    for name, operand in (("key", key), ("value", value)):
        if operand.device != query.device:
            return Refusal(
                "devices differ",
                ValueError(f"{name} is on {operand.device} and query on {query.device}; accepted is one device"),
            )
        if operand.dtype != query.dtype:
            return Refusal(
                "dtypes differ",
                TypeError(f"{name} has dtype {operand.dtype} and query {query.dtype}; accepted is one dtype"),
            )
    return None


def refuse_sizes(query: Tensor, key: Tensor, value: Tensor) -> Refusal | None:
    """Checks of lengths, head sizes, and that there are heads."""
    head_size = query.shape[-1]
    if key.shape[-1] != head_size:
        return Refusal(
            "head sizes of query and key differ",
            ValueError(f"key has head size {key.shape[-1]} and query {head_size}; accepted is one head size"),
        )
    for name, size in (("query", head_size), ("value", value.shape[-1])):
        if not 0 < size <= MAX_HEAD_SIZE:
            reason = f"head size over {MAX_HEAD_SIZE}" if size > 0 else "head size 0"
            return Refusal(reason, UnsupportedError(f"{name} has head size {size}; accepted are 1 to {MAX_HEAD_SIZE}"))
    if key.shape[-2] != value.shape[-2]:
        return Refusal(
            "lengths of key and value differ",
            ValueError(f"value has length {value.shape[-2]} and key {key.shape[-2]}; accepted is one length"),
        )
    if key.dim() > 2 and key.shape[-3] == 0:
        return Refusal("no key heads", UnsupportedError("key has 0 heads; accepted are 1 or more"))
    return None


def refuse_groups(query: Tensor, key: Tensor, value: Tensor) -> Refusal | None:
    """Checks of the heads under ``enable_gqa``."""
    ranks = (query.dim(), key.dim(), value.dim())
    if min(ranks) < 3:
        return Refusal(
            "grouped heads without a head dimension",
            ValueError(
                f"enable_gqa is True and query, key, value have {ranks} dimensions; accepted are three or more: "
                "[..., H, L, D]"
            ),
        )
    heads, kv_heads = query.shape[-3], key.shape[-3]
    if kv_heads != value.shape[-3]:
        return Refusal(
            "heads of key and value differ",
            UnsupportedError(f"value has {value.shape[-3]} heads and key {kv_heads}; accepted is one number"),
        )
    if heads % kv_heads != 0:
        return Refusal(
            "heads do not divide",
            ValueError(f"query has {heads} heads and key {kv_heads}; accepted is a multiple of the key's heads"),
        )
    return None


def refuse_mask(mask: Tensor, device: torch.device, full: Sequence[int]) -> Refusal | None:
    """Checks of a mask that has to broadcast to `full`."""
    if not isinstance(mask, Tensor):
        return Refusal(
            "mask is not a tensor", TypeError(f"attn_mask is a {type(mask).__name__}; accepted is a Tensor or None")
        )
    if mask.is_nested or mask.layout is not torch.strided:
        return Refusal(
            "sparse or nested mask", UnsupportedError("attn_mask is sparse or nested; accepted is a dense strided one")
        )
    if mask.device != device:
        return Refusal(
            "mask on another device",
            ValueError(f"attn_mask is on {mask.device} and query on {device}; accepted is one device"),
        )
    if mask.dtype is not torch.bool and mask.dtype not in _DTYPES:
        return Refusal(
            "mask dtype not supported",
            TypeError(f"attn_mask has dtype {mask.dtype}; accepted are bool (true takes part) and floating point"),
        )
    shape = mask.shape
    offset = len(full) - len(shape)
    if offset < 0 or any(n != 1 and n != full[offset + i] for i, n in enumerate(shape)):
        return Refusal(
            "mask does not broadcast",
            ValueError(f"attn_mask has shape {list(mask.shape)}; accepted is what broadcasts to {list(full)}"),
        )
    return None


def refuse_scale(scale: float) -> Refusal | None:
    if isinstance(scale, bool) or not isinstance(scale, (float, int, torch.SymFloat, torch.SymInt)):
        return Refusal(
            "scale is not a number", TypeError(f"scale is a {type(scale).__name__}; accepted are a float or None")
        )
    if scale == 0 or not -math.inf < scale < math.inf:
        return Refusal(
            "scale is zero or not finite",
            ValueError(f"scale is {scale}; accepted are finite numbers other than 0, or None for 1 / sqrt(D)"),
        )
    return None


def refuse_scoring(scoring: Scoring, query: Tensor, key: Tensor, lead: Sequence[int]) -> Refusal | None:
    """Checks of all that `Scoring` holds, after those of the operands; ``lead`` are the sizes before the last two."""
    return (
        _refuse_rates(scoring)
        or _refuse_window(scoring.window)
        or _refuse_per_head("alibi_slopes", scoring.alibi_slopes, query, lead, differentiable=False)
        or _refuse_per_head("sinks", scoring.sinks, query, lead, differentiable=True)
        or (None if scoring.rotary is None else _refuse_rotary(scoring.rotary, query, key))
    )


def _refuse_rates(scoring: Scoring) -> Refusal | None:
    for name, value, accepted in (
        ("dropout_p", scoring.dropout_p, "0 and more, below 1"),
        ("softcap", scoring.softcap, "finite numbers from 0"),
    ):
        if isinstance(value, bool) or not isinstance(value, (float, int)):
            return Refusal(
                f"{name} is not a number", TypeError(f"{name} is a {type(value).__name__}; accepted is a number")
            )
        if not 0 <= value < (1 if name == "dropout_p" else math.inf):
            return Refusal(f"{name} is out of range", ValueError(f"{name} is {value}; accepted are {accepted}"))
    return None


def _refuse_window(window: tuple[int, int] | None) -> Refusal | None:
    if window is None:
        return None
    if (
        not isinstance(window, (tuple, list))
        or len(window) != 2
        or any(isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) for n in window)
    ):
        return Refusal(
            "window is no pair of ints",
            TypeError(f"window is {window!r}; accepted are two ints (left, right), or None"),
        )
    if any(n < -1 for n in window):
        return Refusal(
            "window is negative", ValueError(f"window is {tuple(window)}; accepted are 0 and more, or -1 for all keys")
        )
    return None


def _refuse_per_head(
    name: str, values: Tensor | None, query: Tensor, lead: Sequence[int], *, differentiable: bool
) -> Refusal | None:
    """Checks of a tensor with a value for each head."""
    if values is None:
        return None
    try:
        require_tensor(name, values)
        require_match(name, values, "query", query, dtype=False)
    except (TypeError, ValueError) as error:
        return Refusal(f"{name} is not usable", error)
    if values.dim() > len(lead) or any(
        n != 1 and n != full for n, full in zip(reversed(values.shape), reversed(lead), strict=False)
    ):
        return Refusal(
            f"{name} does not fit",
            ValueError(
                f"{name} has shape {list(values.shape)}; accepted is a value for each head, what broadcasts to "
                f"{list(lead)}"
            ),
        )
    if not differentiable and values.requires_grad and torch.is_grad_enabled():
        return Refusal(
            f"{name} requires grad",
            UnsupportedError(f"{name} requires grad and its gradient is not implemented; accepted is a detached one"),
        )
    return None


def _refuse_rotary(rotary: Rotary, query: Tensor, key: Tensor) -> Refusal | None:
    """Checks of the tables, after those of the operands."""
    if not isinstance(rotary, Rotary):
        return Refusal(
            "rotary is no Rotary", TypeError(f"rotary is a {type(rotary).__name__}; accepted are a Rotary or None")
        )
    offset = rotary.query_offset
    if isinstance(offset, bool) or not isinstance(offset, (int, torch.SymInt)):
        return Refusal(
            "rotary's offset is no int",
            TypeError(f"rotary.query_offset is a {type(offset).__name__}; accepted is an int"),
        )
    if offset < 0:
        return Refusal(
            "rotary's offset is negative", ValueError(f"rotary.query_offset is {offset}; accepted are 0 and more")
        )
    rows, columns = max(offset + query.shape[-2], key.shape[-2]), query.shape[-1]
    for name, table in (("rotary.cos", rotary.cos), ("rotary.sin", rotary.sin)):
        try:
            require_tensor(name, table)
            require_match(name, table, "query", query, dtype=False)
        except (TypeError, ValueError) as error:
            return Refusal("rotary's tables are not usable", error)
        if table.dim() != 2 or table.shape[0] < rows or 2 * table.shape[1] > columns or table.shape != rotary.cos.shape:
            return Refusal(
                "rotary's tables do not fit",
                ValueError(
                    f"{name} has shape {list(table.shape)}; accepted is [P, R / 2], the same for cos and sin, with P "
                    f"at least {rows} and R at most {columns}"
                ),
            )
        if table.requires_grad and torch.is_grad_enabled():
            return Refusal(
                "rotary's tables require grad",
                UnsupportedError(
                    f"{name} requires grad and its gradient is not implemented; accepted is a detached one"
                ),
            )
    return None


def leading_sizes(
    query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[tuple[int, ...], tuple[int, ...]] | Refusal:
    """Sizes of all dimensions before the last two (batches, then heads) after broadcasting.

    Returns:
        Those of the queries and of the keys and values. They differ in the heads alone: grouped heads stay few, and so
        does a single key head that broadcasts.
    """
    q, k, v = query.shape[:-2], key.shape[:-2], value.shape[:-2]
    if enable_gqa:
        batch = _broadcast_sizes(q[:-1], k[:-1], v[:-1])
        if batch is not None:
            return (*batch, q[-1]), (*batch, k[-1])
    else:
        kv = _broadcast_sizes(k, v)
        full = None if kv is None else _broadcast_sizes(q, kv)
        if kv is not None and full is not None:
            return full, (*full[:-1], kv[-1] if kv else 1) if full else full
    hint = "" if enable_gqa else "; grouped heads need enable_gqa=True"
    return Refusal(
        "batch dimensions or heads do not broadcast",
        ValueError(
            f"query, key, value have shapes {list(query.shape)}, {list(key.shape)}, {list(value.shape)}; accepted are "
            f"equal or broadcastable dimensions before the last two{hint}"
        ),
    )


def _broadcast_sizes(*shapes: Sequence[int]) -> tuple[int, ...] | None:
    """The shape that all broadcast to, or None."""
    rank = max(len(shape) for shape in shapes)
    result = []
    for sizes in zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True):
        size = 1
        for n in sizes:
            if n != 1 and size != 1 and n != size:
                return None
            size = size if n == 1 else n
        result.append(size)
    return tuple(result)
