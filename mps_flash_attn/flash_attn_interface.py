"""The functions of the package ``flash_attn`` (github.com/Dao-AILab/flash-attention) over `flash_attention`.

Names, argument order, layouts, defaults and results are that package's, so that code written for it needs another
import and nothing else::

    from mps_flash_attn.flash_attn_interface import flash_attn_func

What differs from `flash_attention`: lengths come before heads (``[B, L, H, D]``), grouped heads need no flag, and the
last query stands at the last key. Gradients are always deterministic, so ``deterministic`` changes nothing.
"""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from .ops.attention.api import flash_attention
from .ops.checks import require_tensor

__all__ = ["flash_attn_func", "flash_attn_kvpacked_func", "flash_attn_qkvpacked_func"]

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
    _require("qkv", qkv, "[B, L, 3, H, D]", 5, 3)
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
    _require("kv", kv, "[B, Lk, 2, Hkv, D]", 5, 2)
    k, v = kv.unbind(2)
    rest = softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    return flash_attn_func(q, k, v, dropout_p, *rest)


def _require(name: str, x: Tensor, shape: str, rank: int, packed: int | None = None) -> None:
    """A tensor of this rank, with so many matrices in dimension 2.

    Raises:
        TypeError, ValueError: another one.
    """
    require_tensor(name, x)
    if x.dim() != rank or (packed is not None and x.shape[2] != packed):
        raise ValueError(f"{name} has shape {list(x.shape)}; accepted is {shape}")
