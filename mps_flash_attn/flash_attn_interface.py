"""The functions of the package ``flash_attn`` (github.com/Dao-AILab/flash-attention) over `flash_attention`.

Names, argument order, layouts, defaults and results are that package's, so that code written for it needs another
import and nothing else::

    from mps_flash_attn.flash_attn_interface import flash_attn_func

What differs from `flash_attention`: lengths come before heads (``[B, L, H, D]``), grouped heads need no flag, and the
last query stands at the last key. Gradients are always deterministic, so ``deterministic`` changes nothing.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from .ops.attention.api import flash_attention
from .ops.attention.arguments import Scoring
from .ops.attention.sequence_api import attend, refuse_gradients
from .ops.attention.sequences import Lengths
from .ops.checks import require_tensor
from .ops.kv_cache.api import append_kv, lengths_of, rotate_queries

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]

_Result: TypeAlias = "Tensor | tuple[Tensor, Tensor, None]"


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Result:
    """Attention; see `flash_attention` for the mathematics, dtypes and errors.

    Args:
        q: ``[B, Lq, Hq, D]``.
        k, v: ``[B, Lk, Hkv, D]``; ``Hq`` is a multiple of ``Hkv``.
        dropout_p: 0.0 during evaluation.
        softmax_scale: ``1 / sqrt(D)`` if None.
        causal: query ``i`` sees the keys ``j <= i + Lk - Lq``.
        window_size: ``(left, right)``: query ``i`` sees the keys from ``i + Lk - Lq - left`` to
            ``i + Lk - Lq + right``; -1 stands for no limit.
        softcap: ``c`` of ``c tanh(scores / c)``; 0 for none.
        alibi_slopes: ``[Hq]`` or ``[B, Hq]``, float32: ``-slope * abs(i + Lk - Lq - j)`` is added to the scores.
        deterministic: without effect: gradients always are.
        return_attn_probs: also returns the log-sum-exps.

    Returns:
        ``[B, Lq, Hq, D]``, or with ``return_attn_probs`` three: that, the log-sum-exp ``[B, Hq, Lq]``, and None in the
        place of the probabilities that ``flash_attn`` returns for its own tests, which are never in memory here.

    Raises:
        TypeError, ValueError: as `flash_attention`.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        _require(name, x, "[B, L, H, D]", 4)
    out, lse = flash_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        None,
        dropout_p,
        causal,
        softmax_scale,
        True,
        causal_alignment="bottom-right",
        window=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        return_lse=True,
    )
    out = out.transpose(1, 2)
    return (out, lse, None) if return_attn_probs else out


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Result:
    """`flash_attn_func` of queries, keys and values in one tensor ``[B, L, 3, H, D]``, which is read in place."""
    _require("qkv", qkv, "[B, L, 3, H, D]", 5, (2, 3))
    q, k, v = qkv.unbind(2)
    rest = softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    return flash_attn_func(q, k, v, dropout_p, *rest)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Result:
    """`flash_attn_func` of queries ``[B, Lq, Hq, D]`` with keys and values in one tensor ``[B, Lk, 2, Hkv, D]``."""
    _require("kv", kv, "[B, Lk, 2, Hkv, D]", 5, (2, 2))
    k, v = kv.unbind(2)
    rest = softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    return flash_attn_func(q, k, v, dropout_p, *rest)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> _Result:
    """Attention of sequences that lie one after the other, without padding; the rest as `flash_attn_func`.

    Args:
        q: ``[Tq, Hq, D]``, the queries of all sequences.
        k, v: ``[Tk, Hkv, D]``, their keys and values; or with ``block_table`` pages ``[pages, page_size, Hkv, D]``.
        cu_seqlens_q, cu_seqlens_k: ``[N + 1]``, int32: sequence ``n`` has the rows from entry ``n`` to entry ``n + 1``.
        max_seqlen_q, max_seqlen_k: without effect: the lengths themselves are known.
        alibi_slopes: ``[Hq]`` or ``[N, Hq]``.
        block_table: ``[N, P]``, int32: row ``j`` of sequence ``n`` is row ``j % page_size`` of page
            ``block_table[n, j // page_size]``. No gradients then.
        seqused_k: ``[N]``, int32: how many of its keys each sequence uses, from the first; all of them if None.

    Returns:
        ``[Tq, Hq, D]``; with ``return_attn_probs`` also the log-sum-exp ``[Hq, Tq]``, and None.

    Raises:
        TypeError, ValueError: as `flash_attention`, and lengths that do not fit: they are read before the launch.
    """
    _require("q", q, "[T, H, D]", 3)
    for name, x in (("k", k), ("v", v)):
        _require(
            name, x, "[T, H, D]" if block_table is None else "[pages, page_size, H, D]", 3 + (block_table is not None)
        )
    for name, ends in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        require_tensor(name, ends, (torch.int32,), "int32")
    if block_table is None:
        k, v = (x.transpose(0, 1)[None] for x in (k, v))
    else:
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    out, lse = attend(
        q.transpose(0, 1)[None],
        k,
        v,
        Lengths(cu_seqlens_q, cu_seqlens_k, seqused_k),
        block_table=block_table,
        scale=softmax_scale,
        causal=causal,
        scoring=Scoring(dropout_p, softcap, window_size, alibi_slopes),
    )
    out = out[0].transpose(0, 1)
    return (out, lse[0], None) if return_attn_probs else out


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Result:
    """`flash_attn_varlen_func` of queries, keys and values in one tensor ``[T, 3, H, D]``, which is read in place."""
    _require("qkv", qkv, "[T, 3, H, D]", 4, (1, 3))
    q, k, v = qkv.unbind(1)
    rest = dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, *rest)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Result:
    """`flash_attn_varlen_func` with keys and values in one tensor ``[T, 2, Hkv, D]``."""
    _require("kv", kv, "[T, 2, Hkv, D]", 4, (1, 2))
    k, v = kv.unbind(1)
    rest = dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    return flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *rest)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention to a cache of keys and values, to which new ones are appended first, in place. No gradients.

    Args:
        q: ``[B, Lq, Hq, D]``.
        k_cache, v_cache: ``[B_cache, L_cache, Hkv, D]``, or with ``block_table`` ``[pages, page_size, Hkv, D]`` with
            pages of 8 to 256 rows. Any strides but a last one other than 1.
        k, v: ``[B, L_new, Hkv, D]``: what is appended at ``cache_seqlens``, or None.
        rotary_cos, rotary_sin: ``[positions, R / 2]``: new keys are turned by their positions as they are written, and
            queries too: query ``i`` by ``cache_seqlens + i`` where ``causal`` or a window is given, else all by
            ``cache_seqlens``. They come with ``k`` and ``v``.
        cache_seqlens: ``[B]``, int32, or an int for all: how many keys the cache has, the new ones not counted. It is
            not changed. None without ``k`` stands for all of ``L_cache``.
        cache_batch_idx: ``[B]``, int32: the batch of the cache that each batch of queries uses; not with
            ``block_table``.
        cache_leftpad: ``[B]``, int32: the first row of each cache that counts.
        block_table: ``[B, P]``, int32: row ``j`` of sequence ``b`` is row ``j % page_size`` of page
            ``block_table[b, j // page_size]``.
        softmax_scale, causal, window_size, softcap, alibi_slopes: as in `flash_attn_func`; the last query stands at the
            last key, a new one if there are any.
        rotary_interleaved: pair ``i`` is columns ``(2 i, 2 i + 1)``; otherwise ``(i, i + R / 2)``.
        num_splits: without effect: into how many parts keys are cut follows from their number and the GPU.
        return_softmax_lse: also returns the log-sum-exps.

    Returns:
        ``[B, Lq, Hq, D]``, with ``return_softmax_lse`` also ``[B, Hq, Lq]``.

    Raises:
        TypeError, ValueError: as `flash_attention` and `append_kv`. Lengths and tables are read before the launch.
        UnsupportedError: a tensor that requires grad while gradients are recorded.
    """
    _require("q", q, "[B, L, H, D]", 4)
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        _require(name, x, "[B, L, H, D]" if block_table is None else "[pages, page_size, H, D]", 4)
    refuse_gradients("a cache", q=q, k_cache=k_cache, v_cache=v_cache)
    if (k is None) != (v is None) or (rotary_cos is None) != (rotary_sin is None):
        raise ValueError("k and v, and rotary_cos and rotary_sin, come together; accepted are both or none")
    if cache_seqlens is not None and not isinstance(cache_seqlens, Tensor):
        cache_seqlens = lengths_of(cache_seqlens, q)
    if k is None or v is None:
        if rotary_cos is not None:
            raise ValueError("rotary_cos comes without k and v; accepted are both or none")
    else:
        if cache_seqlens is None:
            raise ValueError("cache_seqlens is None and k is not; accepted are the lengths at which k is appended")
        append_kv(
            k_cache,
            v_cache,
            k,
            v,
            cache_seqlens=cache_seqlens,
            cache_batch_idx=cache_batch_idx,
            block_table=block_table,
            cos=rotary_cos,
            sin=rotary_sin,
            interleaved=rotary_interleaved,
        )
        if rotary_cos is not None and rotary_sin is not None:
            turned = {"interleaved": rotary_interleaved, "one_position": not causal and tuple(window_size) == (-1, -1)}
            q = rotate_queries(q, rotary_cos, rotary_sin, cache_seqlens=cache_seqlens, **turned)
    new = 0 if k is None else k.shape[1]
    q, key, value = (x.transpose(1, 2) for x in (q, k_cache, v_cache))
    lengths = Lengths(None, None, cache_seqlens, cache_batch_idx, cache_leftpad, new)
    scoring = Scoring(0.0, softcap, window_size, alibi_slopes)
    if block_table is not None and cache_seqlens is None:
        lengths = lengths._replace(seqused_k=lengths_of(block_table.shape[1] * k_cache.shape[1], q))
    with torch.no_grad():
        out, lse = attend(
            q, key, value, lengths, scale=softmax_scale, causal=causal, scoring=scoring, block_table=block_table
        )
    out = out.transpose(1, 2)
    return (out, lse) if return_softmax_lse else out


def _require(name: str, x: Tensor, shape: str, rank: int, packed: tuple[int, int] | None = None) -> None:
    """A tensor of this rank, ``packed`` saying which dimension has which size.

    Raises:
        TypeError, ValueError: another one.
    """
    require_tensor(name, x)
    if x.dim() != rank or (packed is not None and x.shape[packed[0]] != packed[1]):
        raise ValueError(f"{name} has shape {list(x.shape)}; accepted is {shape}")
