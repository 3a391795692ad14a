"""Attention of sequences whose lengths are in tensors: packed one after the other, padded, or in a cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ..checks import require_tensor
from ..strides import dense_rows
from .api import autocast, forward_operator, modifiers_of
from .arguments import (
    PLAIN,
    Refusal,
    Scoring,
    refuse_groups,
    refuse_kinds,
    refuse_mix,
    refuse_scale,
    refuse_scoring,
    refuse_sizes,
)
from .problem import Causal
from .sequences import Lengths, sequences_of

__all__ = ["attend", "refuse_gradients"]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Lengths,
    *,
    scale: float | None = None,
    causal: bool = False,
    scoring: Scoring = PLAIN,
    block_table: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of each sequence to its own keys, nothing of what pads them computed; the last query at the last key.

    Args:
        query: ``[1, Hq, T, D]`` with ``cu_seqlens_q``, else ``[N, Hq, Lq, D]``.
        key, value: ``[1, Hkv, T, D]`` with ``cu_seqlens_k``, else ``[B, Hkv, Lk, D]``, the values with ``Dv`` columns;
            ``Hq`` is a multiple of ``Hkv``.
        lengths: at least one of them.
        scale: ``1 / sqrt(D)`` if None.
        causal: query ``i`` sees the keys ``j <= i + keys - queries`` of its sequence.
        scoring: without rotary; slopes and sinks are ``[Hq]`` or ``[N, Hq]``.
        block_table: ``[N, P]`` int32: keys and values are pages ``[pages, Hkv, page_size, D]``, the rows of sequence
            ``n`` in those of row ``n``; with lengths of the keys.

    Returns:
        out like ``query`` but for ``Dv``, and lse, one a row, float32 (float64 for float64). Rows of no sequence are 0,
        and -inf.

    Raises:
        TypeError, ValueError: as `flash_attention`, and lengths that do not fit.
    """
    refusal = refuse_kinds(query, key, value)
    if refusal is None:
        query, key, value = autocast(query, key, value)
        refusal = refuse_mix(query, key, value) or refuse_sizes(query, key, value) or refuse_groups(query, key, value)
    if refusal is None and scale is not None:
        refusal = refuse_scale(scale)
    count = _count(query, lengths)
    if refusal is None and scoring is not PLAIN:
        refusal = refuse_scoring(scoring, query, key, (count, query.shape[1]))
    if isinstance(refusal, Refusal):
        raise refusal.error
    caches = {**lengths.tensors(), "block_table": block_table}
    for name in ("cache_batch_idx", "cache_leftpad", "block_table"):
        if caches[name] is not None:
            refuse_gradients(name, query=query, key=key, value=value, sinks=scoring.sinks)
    if block_table is not None:
        require_tensor("block_table", block_table, (torch.int32,), "int32")
        block_table = block_table if block_table.is_contiguous() else block_table.contiguous()
    rows = (count, query.shape[1])
    modifiers = modifiers_of(scoring._replace(bottom_right=True), query, rows, rows)
    out, lse = forward_operator(
        dense_rows(query),
        dense_rows(key),
        dense_rows(value),
        None,
        1.0 / math.sqrt(query.shape[-1]) if scale is None else scale,
        Causal.BOTTOM_RIGHT if causal else Causal.NONE,
        *modifiers._replace(**lengths._asdict(), block_table=block_table),
    )
    return out, lse


def _count(query: Tensor, lengths: Lengths) -> int:
    """Of sequences; what lengths contradict it is refused when they are read."""
    for name, x in lengths.tensors().items():
        if isinstance(x, Tensor) and x.dim() == 1:
            return max(sequences_of(name, x.shape[0]), 0)
    return query.shape[0]


def refuse_gradients(why: str, **tensors: Tensor | None) -> None:
    """Of attention with something that has none.

    Raises:
        UnsupportedError: naming a tensor that requires grad while gradients are recorded.
    """
    for name, x in tensors.items():
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError(
                f"{name} requires grad and attention with {why} has no gradient; accepted is torch.no_grad()"
            )
