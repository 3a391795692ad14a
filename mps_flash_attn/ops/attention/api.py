"""`flash_attention`: attention on tensors as PyTorch users have them, in front of the attention operators.

`attempt` is the one way to the operators, for `flash_attention` and for `mps_flash_attn.patch`, so that both accept the
same problems: it computes, or returns a `Refusal`. The common call passes one cheap test (`is_direct`) and its tensors
go to the operator as they are; only the others are diagnosed, cast, broadcast and folded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ..calls import shortcut
from ..dtypes import accumulator_dtype
from .arguments import (
    PLAIN,
    Refusal,
    Rotary,
    Scoring,
    autocast_dtype,
    is_direct,
    leading_sizes,
    refuse_kinds,
    refuse_mask,
    refuse_operands,
    refuse_scale,
    refuse_scoring,
)
from .function import attention_forward, backward, save_for_backward
from .layout import batch_operator, fold, with_rank
from .problem import Causal, Modifiers
from .sequences import Lengths

__all__ = ["Rotary", "aligned", "attempt", "autocast", "flash_attention", "forward_operator", "modifiers_of"]

_ALIGNMENTS = {"top-left": Causal.TOP_LEFT, "bottom-right": Causal.BOTTOM_RIGHT}

#: ``torch.ops.mps_flash_attn.attention_forward``.
forward_operator = shortcut(
    torch.ops.mps_flash_attn.attention_forward.default, attention_forward._init_fn, save_for_backward, backward
)
_backward = torch.ops.mps_flash_attn.attention_backward.default


@overload
def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = ...,
    dropout_p: float = ...,
    is_causal: bool = ...,
    scale: float | None = ...,
    enable_gqa: bool = ...,
    *,
    causal_alignment: Literal["top-left", "bottom-right"] = ...,
    window: tuple[int, int] | None = ...,
    softcap: float = ...,
    alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ...,
    rotary: Rotary | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = ...,
    dropout_p: float = ...,
    is_causal: bool = ...,
    scale: float | None = ...,
    enable_gqa: bool = ...,
    *,
    causal_alignment: Literal["top-left", "bottom-right"] = ...,
    window: tuple[int, int] | None = ...,
    softcap: float = ...,
    alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ...,
    rotary: Rotary | None = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal_alignment: Literal["top-left", "bottom-right"] = "top-left",
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    rotary: Rotary | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Attention ``softmax(scale * Q K^T + mask) V`` in memory that grows with the length, not with its square.

    Arguments and meaning follow :func:`torch.nn.functional.scaled_dot_product_attention`; gradients flow to `query`,
    `key`, `value`, a floating-point `attn_mask` and `sinks`. The scores are computed tile by tile with an online
    softmax (Milakov and Gimelshein 2018, arXiv:1805.02867) and recomputed in the backward pass from the log-sum-exp of
    each row, as in FlashAttention-2 (Dao 2023, arXiv:2307.08691). Nothing of size ``Lq x Lk`` is allocated, forward or
    backward, but for the gradient of a mask that has this size itself.

    Sizes: ``Hq`` query heads, ``Hkv`` key and value heads, lengths ``Lq`` and ``Lk``, head size ``D`` of
    queries and keys and ``Dv`` of values; ``...`` is any number of batch dimensions, none included. Batch dimensions
    broadcast.

    Args:
        query: ``[..., Hq, Lq, D]``, or ``[..., Lq, D]`` with fewer than four dimensions. float32, float16, bfloat16,
            or float64 on the simulator; ``1 <= D <= 576``. Any strides: only a tensor whose last dimension is strided
            is copied.
        key: ``[..., Hkv, Lk, D]`` with the dtype and device of `query`.
        value: ``[..., Hkv, Lk, Dv]`` with the dtype and device of `query`; ``1 <= Dv <= 576``.
        attn_mask: broadcasts to ``[..., Hq, Lq, Lk]``, any strides. Boolean (true: the key takes part) or floating
            point of any dtype (added to the scaled scores). It is read in place. Its gradient has its shape: it is
            summed over what the mask is broadcast over. A :class:`torch.nn.attention.bias.CausalBias` stands for
            `is_causal` with its alignment.
        dropout_p: the share of the weights that are dropped, in ``[0, 1)``; the others are divided by
            ``1 - dropout_p``. Whether one is dropped follows from PyTorch's random generator of the device (so
            :func:`torch.manual_seed` repeats it) and from its place, by Philox4x32-10 (Salmon et al., SC 2011).
        is_causal: hides later keys from each query, in addition to `attn_mask` where both are given.
        causal_alignment: where query ``i`` stands among the keys where ``Lq != Lk``: at key ``i`` (``"top-left"``, as
            in PyTorch) or at ``i + Lk - Lq`` (``"bottom-right"``). It counts for `is_causal`, `window` and
            `alibi_slopes`.
        scale: factor of the scores, finite and not zero; ``1 / sqrt(D)`` if None.
        enable_gqa: lets ``Hq`` be a multiple of ``Hkv``: query head ``h`` uses key head ``h // (Hq / Hkv)``. Keys and
            values are not repeated in memory. Without it, heads must be equal or broadcast from 1.
        window: the numbers of keys before and after its place that a query sees, -1 for all: ``(left, right)``. Blocks
            of keys that no query of a block sees are not read.
        softcap: ``c``: scaled scores become ``c tanh(s / c)`` before any mask (Gemma 2, arXiv:2408.00118); 0 for none.
        alibi_slopes: of each head, ``[Hq]`` or ``[..., Hq]``: a score loses the slope times the distance between key
            and query (Press et al. 2021, arXiv:2108.12409). No gradient.
        sinks: of each head, ``[Hq]`` or ``[..., Hq]``: a score that takes part in the softmax and has no value, so that
            weights may sum up to less than 1 (gpt-oss, arXiv:2508.10925). The log-sum-exp includes it.
        rotary: rotary position embedding, a `Rotary` with tables of cosines and sines: queries and keys are turned as
            they are loaded, forward and backward, and nothing of their size is written. The result is that of turning
            both by `rope` first, to the bit, or where few queries meet many keys of grouped heads, to rounding.
        return_lse: also returns the log-sum-exp of every row of scores.

    Returns:
        ``[..., Hq, Lq, Dv]`` in the dtype of `query` and, with `return_lse`, the natural logarithm of each row's sum of
        exponentials, ``[..., Hq, Lq]``, float32 (float64 for float64). Both are differentiable, once; no gradient
        flows through a log-sum-exp of ``-inf``.

    Raises:
        TypeError: an argument has the wrong type, or a tensor a dtype that attention has no meaning for.
        ValueError: shapes, devices or values that contradict each other.
        UnsupportedError: a well-formed problem outside what is implemented: ``D`` or ``Dv`` over 576, slopes that
            require grad, sparse or nested tensors, forward-mode differentiation, ``torch.func`` gradients. It is a
            ``ValueError``.

    Numerics:
        Sums are accumulated in float32 (float64 for float64). Compared with a float64 reference, the error is at most
        twice that of PyTorch's own attention in the same dtype, plus a small floor. A row whose keys are all masked
        gives output 0, log-sum-exp ``-inf`` and gradients 0. A NaN in the input reaches the output. The gradients are
        deterministic: they use no atomics.

    Autocast:
        Inside :class:`torch.autocast`, `query`, `key` and `value` are cast to its dtype, as PyTorch's attention does
        (float64 stays); the mask keeps its own.

    Example:
        >>> import torch
        >>> from mps_flash_attn import flash_attention
        >>> query = torch.randn(2, 8, 16, 64, requires_grad=True)
        >>> key, value = torch.randn(2, 2, 16, 64), torch.randn(2, 2, 16, 64)
        >>> out, lse = flash_attention(query, key, value, is_causal=True, enable_gqa=True, return_lse=True)
        >>> out.shape, lse.shape
        (torch.Size([2, 8, 16, 64]), torch.Size([2, 8, 16]))
        >>> out.sum().backward()
        >>> query.grad.shape
        torch.Size([2, 8, 16, 64])
    """
    causal = aligned(causal_alignment)
    if not is_causal:
        causal = Causal.NONE
    if attn_mask is not None and type(attn_mask) is not Tensor:
        attn_mask, causal = _unwrap_causal_bias(query, key, attn_mask, causal)
    scoring = PLAIN
    nothing = window is None and alibi_slopes is None and sinks is None and rotary is None
    if dropout_p != 0 or softcap != 0 or not nothing:
        bottom_right = causal_alignment == "bottom-right"
        scoring = Scoring(dropout_p, softcap, window, alibi_slopes, sinks, bottom_right, rotary)
    result = attempt(query, key, value, attn_mask, scale, causal, enable_gqa, scoring)
    if isinstance(result, Refusal):
        raise result.error
    return result if return_lse else result[0]


def aligned(causal_alignment: str) -> Causal:
    """The causal edge of this name.

    Raises:
        ValueError: there is none.
    """
    causal = _ALIGNMENTS.get(causal_alignment)
    if causal is None:
        raise ValueError(f"causal_alignment is {causal_alignment!r}; accepted are 'top-left' and 'bottom-right'")
    return causal


def attempt(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    scale: float | None,
    causal: Causal,
    enable_gqa: bool,
    scoring: Scoring = PLAIN,
) -> tuple[Tensor, Tensor] | Refusal:
    """Computes attention, or says why not; nothing is launched before every argument is known to be good.

    Returns:
        out ``[..., Hq, Lq, D]`` and lse ``[..., Hq, Lq]``, or the refusal.
    """
    direct = is_direct(query, key, value, enable_gqa)
    lead: Sequence[int]
    kv_lead: Sequence[int]
    if direct:
        lead = kv_lead = query.shape[:2]
    else:
        refusal = refuse_kinds(query, key, value)
        if refusal is not None:
            return refusal
        query, key, value = autocast(query, key, value)
        refusal = refuse_operands(query, key, value, enable_gqa)
        if refusal is not None:
            return refusal
        sizes = leading_sizes(query, key, value, enable_gqa)
        if isinstance(sizes, Refusal):
            return sizes
        lead, kv_lead = sizes
    if attn_mask is not None:
        refusal = refuse_mask(attn_mask, query.device, (*lead, query.shape[-2], key.shape[-2]))
        if refusal is not None:
            return refusal
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1])
    else:
        refusal = refuse_scale(scale)
        if refusal is not None:
            return refusal
    if scoring is not PLAIN:
        refusal = refuse_scoring(scoring, query, key, lead)
        if refusal is not None:
            return refusal
    if direct:
        if attn_mask is not None and attn_mask.dim() != 4:
            attn_mask = with_rank(attn_mask, 4)
        q, k, v, mask = query, key, value, attn_mask
    else:
        q, k, v, mask = fold(query, key, value, attn_mask, lead, kv_lead)
    if scoring is PLAIN:
        out, lse = forward_operator(q, k, v, mask, scale, causal)
    else:
        out, lse = forward_operator(q, k, v, mask, scale, causal, *modifiers_of(scoring, q, lead, q.shape[:2]))
    if direct:
        return out, lse
    shape = (*lead, *out.shape[2:])
    return out.reshape(shape), lse.reshape(shape[:-1])


def modifiers_of(scoring: Scoring, query: Tensor, lead: Sequence[int], rows: Sequence[int]) -> Modifiers:
    """The operator's: what has a value for each head broadcasts to ``lead`` and becomes ``[*rows]``."""
    dtype, rotary = accumulator_dtype(query.dtype), scoring.rotary
    left, right = scoring.window or (-1, -1)
    slopes, sinks = (
        None if x is None else x.to(dtype).expand(*lead).reshape(rows).contiguous()
        for x in (scoring.alibi_slopes, scoring.sinks)
    )
    modifiers = Modifiers(
        alibi_slopes=slopes,
        sinks=sinks,
        softcap=float(scoring.softcap),
        window_left=left,
        window_right=right,
        bottom_right=scoring.bottom_right,
    )
    if scoring.dropout_p > 0:
        seed = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=query.device)
        modifiers = modifiers._replace(seed=seed, dropout_p=float(scoring.dropout_p))
    if rotary is not None:
        cos, sin = (x.to(dtype).contiguous() for x in rotary[:2])
        modifiers = modifiers._replace(
            cos=cos, sin=sin, interleaved=bool(rotary.interleaved), query_position=rotary.query_offset
        )
    return modifiers


def autocast(*operands: Tensor) -> tuple[Tensor, ...]:
    """The operands in autocast's dtype where it is on; PyTorch's rule: float64 stays as it is."""
    dtype = autocast_dtype(operands[0].device.type)
    if dtype is None:
        return operands
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in operands)


def _unwrap_causal_bias(query: Tensor, key: Tensor, attn_mask: Tensor, causal: Causal) -> tuple[Tensor | None, Causal]:
    """What a `CausalBias` stands for, once it is known to fit; any other mask as it is."""
    # That module loads PyTorch's compiler, over a second of work: not for every import of this package.
    from torch.nn.attention.bias import CausalBias, CausalVariant

    if not isinstance(attn_mask, CausalBias):
        return attn_mask, causal
    if causal is not Causal.NONE:
        raise ValueError("attn_mask is a CausalBias and is_causal is True; accepted is one of them")
    lengths = (attn_mask.seq_len_q, attn_mask.seq_len_kv)
    if lengths != (query.shape[-2], key.shape[-2]):
        raise ValueError(
            f"attn_mask is a CausalBias of {lengths[0]} queries and {lengths[1]} keys; query and key have "
            f"{query.shape[-2]} and {key.shape[-2]}"
        )
    return None, Causal.TOP_LEFT if attn_mask.variant is CausalVariant.UPPER_LEFT else Causal.BOTTOM_RIGHT


_SLOPES, _SINKS = (Modifiers._fields.index(name) for name in ("alibi_slopes", "sinks"))


def _refuse_lengths(modifiers: tuple[Any, ...]) -> None:
    if any(isinstance(getattr(Modifiers(*modifiers), name), Tensor) for name in Lengths._fields):
        raise UnsupportedError("lengths of sequences inside torch.vmap; accepted are sequences that are more")


def _vmap_forward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    _refuse_lengths(args[6:])
    batched = (*range(4), 6 + _SLOPES, 6 + _SINKS)
    return batch_operator(forward_operator, info.batch_size, args, in_dims, batched), (0, 0)


def _vmap_backward(
    info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    _refuse_lengths(args[11:])
    batched = (*range(8), 11 + _SLOPES, 11 + _SINKS)
    *gradients, dmask, dsinks = batch_operator(_backward, info.batch_size, args, in_dims, batched)
    mask, dim = args[5], in_dims[5]
    if dmask.dim() > 1 and mask.shape[0 if dim is None or dim > 0 else 1] == 1:
        dmask = dmask.sum(1, keepdim=True)
    return (*gradients, dmask, dsinks), (0, 0, 0, *(None if x.dim() == 1 else 0 for x in (dmask, dsinks)))


def _refuse_second_derivatives(ctx: Any, *grads: Tensor) -> None:
    raise UnsupportedError(
        "second derivatives of attention are not supported; accepted are first derivatives. PyTorch's own attention "
        "has them under torch.nn.attention.sdpa_kernel(SDPBackend.MATH), patched or not"
    )


torch.library.register_vmap("mps_flash_attn::attention_forward", _vmap_forward)
torch.library.register_vmap("mps_flash_attn::attention_backward", _vmap_backward)
torch.library.register_autograd("mps_flash_attn::attention_backward", _refuse_second_derivatives)
