"""What the arguments of attention's operators ask for, once they are known to go together: a plan's problem."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...launch import CHUNK_BYTES
from ..calls import alignment
from ..dtypes import accumulator_dtype
from ..quantize.formats import FORMATS, Format, Stored
from . import plan
from .sequences import Lengths, Table, read

__all__ = [
    "NO_CACHE",
    "TENSORS",
    "Causal",
    "Modifiers",
    "Options",
    "describe",
    "empty_output",
    "read_modifiers",
    "value_columns",
]


#: Keys and values are tensors as they are.
NO_CACHE = plan.Cache()


class Causal(enum.IntEnum):
    """Which keys a query may see: all; ``j <= i``; ``j <= i + Lk - Lq``."""

    NONE = 0
    TOP_LEFT = 1
    BOTTOM_RIGHT = 2


class Options(NamedTuple):
    """What shapes a call beside its tensors; as the operators take it, tensors by whether they are there.

    Attributes:
        causal: a `Causal`.
        window: keys before and after a query's place that it sees, -1 for all.
        bottom_right: whether the last query stands at the last key, for windows and slopes, instead of the first at the
            first. So it does where ``causal`` says so.
        sequences: where lengths are in a table.
        cache: where keys are in pages, or quantized.
    """

    scale: float
    causal: int = Causal.NONE
    rotation: plan.Rotation | None = None
    alibi: bool = False
    sinks: bool = False
    dropout_p: float = 0.0
    softcap: float = 0.0
    window: tuple[int, int] = (-1, -1)
    bottom_right: bool = False
    sequences: plan.Sequences | None = None
    cache: plan.Cache = NO_CACHE

    def offsets(self, queries: int, keys: int) -> dict[str, Any]:
        """Where queries stand among keys, for a problem of these lengths."""
        bottom_right = self.bottom_right or self.causal == Causal.BOTTOM_RIGHT
        diagonal = keys - queries if bottom_right and self.sequences is None else 0
        left, right = (min(n, queries + keys) for n in self.window)
        if self.causal:
            right = 0
        if queries == 1 and bottom_right:
            right = -1  # a query at the last key sees all before
        return {
            "diagonal": diagonal,
            "window_offset": None if left < 0 else diagonal - left,
            "causal_offset": None if right < 0 else diagonal + right,
            "sequences": self.sequences,
            "bottom_right": bottom_right,
        }


def _format(stored: int) -> Format | None:
    return next((x for x in FORMATS.values() if x.stored == stored), None)


def row_columns(head_size: int, stored: int) -> int:
    """Columns of keys as they are stored: bytes, where they are quantized."""
    of = _format(stored)
    return head_size if of is None else of.row_bytes(head_size)


def value_columns(value: Tensor, stored: int = Stored.ELEMENTS) -> int:
    """Dv of values as they are stored."""
    of = _format(stored)
    return value.shape[3] if of is None else value.shape[3] * 8 // of.bits


def empty_output(query: Tensor, columns: int) -> Tensor:
    """Room for outputs ``[B, Hq, Lq, Dv]`` that lie as the queries do."""
    batch, heads, queries, head_size = query.shape
    if columns == head_size:
        return torch.empty_like(query)
    if query.stride(1) < query.stride(2):
        return query.new_empty(batch, queries, heads, columns).transpose(1, 2)
    return query.new_empty(batch, heads, queries, columns)


def _layout(name: str, tensor: Tensor) -> plan.Layout:
    if tensor.stride(3) != 1 and tensor.shape[3] > 1:
        raise ValueError(f"{name} has stride {tensor.stride(3)} in its last dimension; accepted: 1")
    batch, head, row = (0 if n == 1 else s for n, s in zip(tensor.shape[:3], tensor.stride()[:3], strict=True))
    aligned = alignment(tensor, batch, head, row, tensor.shape[3]) == CHUNK_BYTES
    return plan.Layout((batch, head, row), aligned)


def _mask_layout(mask: Tensor, shape: tuple[int, ...]) -> plan.MaskLayout:
    if mask.dim() != 4 or any(n not in (1, full) for n, full in zip(mask.shape, shape, strict=True)):
        raise ValueError(f"attn_mask has shape {tuple(mask.shape)}; accepted: 1 or full in each of {shape}")
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise TypeError(f"attn_mask has dtype {mask.dtype}; accepted: bool or a floating-point dtype")
    batch, head, row, column = (0 if n == 1 else s for n, s in zip(mask.shape, mask.stride(), strict=True))
    b, h, i, j = mask.shape
    return plan.MaskLayout(mask.dtype, (batch, head, row, column), (b, h, i, j))


def describe(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, options: Options, **others: Tensor
) -> plan.Problem:
    """The problem of a call; ``others`` are the tensors that have the layout of an output, in the plan's order."""
    named = {"query": query, "key": key, "value": value, **others}
    for name, tensor in named.items():
        if tensor.dim() != 4:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted: 4 dimensions [B, H, L, D]")
        dtype = torch.uint8 if options.cache.stored and name in ("key", "value") else query.dtype
        if tensor.dtype != dtype or tensor.device != query.device:
            raise TypeError(f"{name} is {tensor.dtype} on {tensor.device}; accepted: {dtype} on {query.device}")
    batch, query_heads, queries, head_size = query.shape
    batches, key_heads, keys, columns = key.shape
    cache = options.cache
    if options.sequences is None and batches != batch:
        raise ValueError(f"key has shape {tuple(key.shape)}; accepted: query's B {batch}")
    if columns != row_columns(head_size, cache.stored):
        raise ValueError(f"key has shape {tuple(key.shape)}; accepted: query's D {head_size}")
    if cache.page_size:
        keys = cache.page_size * cache.table_pages
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(f"value has shape {tuple(value.shape)}; accepted: that of key but for D, {tuple(key.shape)}")
    if key_heads == 0 or query_heads % key_heads:
        raise ValueError(f"key has {key_heads} heads; accepted: a divisor of query's {query_heads}")
    if attn_mask is not None and attn_mask.device != query.device:
        raise ValueError(f"attn_mask is on {attn_mask.device}; accepted: query's {query.device}")
    return plan.Problem(
        dtype=query.dtype,
        batch=batch,
        query_heads=query_heads,
        key_heads=key_heads,
        queries=queries,
        keys=keys,
        head_size=head_size,
        value_head_size=value_columns(value, cache.stored),
        scale=options.scale,
        mask=None if attn_mask is None else _mask_layout(attn_mask, (batch, query_heads, queries, keys)),
        layouts=tuple(_layout(name, tensor) for name, tensor in named.items()),
        rotation=options.rotation,
        softcap=options.softcap,
        alibi=options.alibi,
        sinks=options.sinks,
        dropout_p=options.dropout_p,
        cache=cache,
        **options.offsets(queries, keys),
    )


def _rotation(
    query: Tensor, key: Tensor, cos: Tensor | None, sin: Tensor | None, interleaved: bool, query_position: int
) -> plan.Rotation | None:
    """By what a call turns its queries and keys, once the tables are known to fit."""
    if cos is None or sin is None or cos.numel() == 0:
        return None
    rows, dtype = max(query_position + query.shape[2], key.shape[2]), accumulator_dtype(query.dtype)
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype != dtype or table.device != query.device or not table.is_contiguous():
            raise TypeError(
                f"{name} is {table.dtype} on {table.device}; accepted: contiguous {dtype} on {query.device}"
            )
        if table.dim() != 2 or table.shape != cos.shape or len(table) < rows or 2 * table.shape[1] > query.shape[3]:
            raise ValueError(f"{name} has shape {tuple(table.shape)}; accepted: [P, R / 2] with P >= {rows} and R <= D")
    if query_position < 0:
        raise ValueError(f"query_position is {query_position}; accepted: 0 and more")
    return plan.Rotation(cos.shape[1], interleaved, query_position)


class Modifiers(NamedTuple):
    """The operators' last arguments, in this order: what becomes of queries, keys, scores and weights beyond a mask.

    Attributes:
        cos, sin: tables ``[P, R / 2]``, contiguous, float32 (float64 for float64), or ``None``: query ``i`` is turned
            as `rope` does by row ``query_position + i``, key ``j`` by row ``j``.
        interleaved: which columns are pairs, as in `rope`.
        query_position: the first query's, at least 0.
        alibi_slopes: ``[B, Hq]``, contiguous, float32 (float64 for float64): a score loses its head's slope times the
            distance of key and query.
        sinks: likewise: a score for each head that takes its share of the weights and has no value.
        seed: two int32 that decide, with a weight's place, whether it is dropped; with ``dropout_p`` over 0.
        dropout_p: the share of weights that are dropped; the others are divided by ``1 - dropout_p``.
        softcap: ``c`` of ``c tanh(scores / c)``, before any mask; 0 for none.
        window_left, window_right: keys before and after a query's place that it sees; -1 for all.
        bottom_right: whether query ``i`` stands at key ``i + Lk - Lq`` instead of ``i``; so it does where ``causal``
            says so.
        cu_seqlens_q, cu_seqlens_k, seqused_k, cache_batch_idx, cache_leftpad, appended: those of `Lengths`; slopes,
            sinks and dropped weights are those of sequences then, in the place of batches.
        block_table: ``[N, P]`` int32, contiguous: keys and values are pages ``[pages, Hkv, page_size, D]``, and
            sequence ``n`` has its rows in the pages of row ``n``; with lengths of keys.
        stored: a `Stored`: how keys and values are quantized, which then are uint8, rows of bytes.
        k_scale, v_scale: their scales, ``[B, Hkv, Lk, groups]`` float32, or of pages.
        group_size: columns that share a scale where the format has groups; else 0.
    """

    cos: Tensor | None = None
    sin: Tensor | None = None
    interleaved: bool = False
    query_position: int = 0
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
    seed: Tensor | None = None
    dropout_p: float = 0.0
    softcap: float = 0.0
    window_left: int = -1
    window_right: int = -1
    bottom_right: bool = False
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    seqused_k: Tensor | None = None
    cache_batch_idx: Tensor | None = None
    cache_leftpad: Tensor | None = None
    appended: int = 0
    block_table: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None
    stored: int = Stored.ELEMENTS
    group_size: int = 0

    def table(self, query: Tensor, key: Tensor) -> Table | None:
        """That of the sequences, if there is one."""
        lengths = Lengths(*(getattr(self, name) for name in Lengths._fields))
        if all(x is None for x in lengths.tensors().values()):
            return None
        return read(lengths, query, key, self.block_table)

    def cache(self, query: Tensor, key: Tensor, value: Tensor) -> plan.Cache:
        """How keys and values are kept, once the tensors are known to fit.

        Raises:
            ValueError, TypeError: they do not.
        """
        cache = NO_CACHE
        if self.stored != Stored.ELEMENTS:
            columns = value_columns(value, self.stored)
            strides = (
                self._scale_strides("k_scale", self.k_scale, key, query.shape[3]),
                self._scale_strides("v_scale", self.v_scale, value, columns),
            )
            cache = plan.Cache(Stored(self.stored), self.group_size, strides)
        table = self.block_table
        if table is None:
            return cache
        if table.dtype != torch.int32 or table.dim() != 2 or not table.is_contiguous() or table.device != query.device:
            raise TypeError(
                f"block_table is {table.dtype} of shape {tuple(table.shape)} on {table.device}; accepted: contiguous "
                f"int32 [N, P] on {query.device}"
            )
        if self.seqused_k is None and self.cu_seqlens_k is None:
            raise ValueError("block_table comes without lengths of keys; accepted: with them")
        return dataclasses.replace(cache, page_size=key.shape[2], pages=key.shape[0], table_pages=table.shape[1])

    def _scale_strides(self, name: str, scales: Tensor | None, rows: Tensor, columns: int) -> tuple[int, int, int]:
        groups = -(-columns // self.group_size) if self.group_size else 1
        shape = (*rows.shape[:3], groups)
        if scales is None or scales.dtype != torch.float32 or scales.device != rows.device or scales.shape != shape:
            found = "None" if scales is None else f"{scales.dtype} of shape {tuple(scales.shape)} on {scales.device}"
            raise ValueError(f"{name} is {found}; accepted: float32 of shape {shape} on {rows.device}")
        return _layout(name, scales).strides

    def options(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        causal: int,
        sequences: plan.Sequences | None = None,
    ) -> Options:
        """What a plan depends on, once the tensors are known to fit.

        Raises:
            ValueError, TypeError: they do not.
        """
        rows = (sequences.count if sequences else query.shape[0], query.shape[1])
        dtype = accumulator_dtype(query.dtype)
        for name, x in (("alibi_slopes", self.alibi_slopes), ("sinks", self.sinks)):
            if x is not None and not (
                x.shape == rows and x.dtype == dtype and x.device == query.device and x.is_contiguous()
            ):
                raise ValueError(
                    f"{name} is {x.dtype} of shape {tuple(x.shape)} on {x.device}; accepted: contiguous {dtype} of "
                    f"shape {rows} on {query.device}"
                )
        seed = self.seed
        if not 0 <= self.dropout_p < 1 or (seed is None) != (self.dropout_p == 0):
            raise ValueError(f"dropout_p is {self.dropout_p}; accepted: 0, or more with a seed, and below 1")
        if seed is not None and (seed.shape != (2,) or seed.dtype != torch.int32 or seed.device != query.device):
            raise ValueError(
                f"seed is {seed.dtype} of shape {tuple(seed.shape)}; accepted: two int32 on {query.device}"
            )
        return Options(
            scale=scale,
            causal=causal,
            rotation=_rotation(query, key, self.cos, self.sin, self.interleaved, self.query_position),
            alibi=self.alibi_slopes is not None,
            sinks=self.sinks is not None,
            dropout_p=self.dropout_p,
            softcap=self.softcap,
            window=(self.window_left, self.window_right),
            bottom_right=self.bottom_right,
            sequences=sequences,
            cache=self.cache(query, key, value),
        )


#: The places of the modifiers that are tensors.
TENSORS = tuple(name for name, kind in Modifiers.__annotations__.items() if "Tensor" in str(kind))


_NO_MODIFIERS = Modifiers()


def read_modifiers(
    modifiers: tuple[Any, ...], query: Tensor, key: Tensor, value: Tensor, scale: float, causal: int
) -> tuple[Modifiers, Options, Table | None]:
    """An operator's last arguments by name, and its options; PyTorch leaves out those that have their defaults."""
    if not modifiers:
        return _NO_MODIFIERS, Options(scale, causal), None
    named = Modifiers(*modifiers)
    table = named.table(query, key)
    return named, named.options(query, key, value, scale, causal, None if table is None else table.shape), table
