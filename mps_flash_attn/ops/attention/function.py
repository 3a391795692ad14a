"""The attention operators ``torch.ops.mps_flash_attn.attention_{forward,backward}``: launches, fakes and autograd.

Both take ``query [B, Hq, Lq, D]``, ``key [B, Hkv, Lk, D]`` and ``value [B, Hkv, Lk, Dv]`` with any strides but 1 in the
last dimension, and an ``attn_mask`` that broadcasts to ``[B, Hq, Lq, Lk]``. A call that was made before with the same
shapes and strides costs a dictionary look-up beyond its launches.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ... import launch, tune
from ...errors import UnsupportedError
from ...launch import CHUNK_BYTES, Launch, Runtime
from ...runtime.base import for_device
from ..calls import PreparedCalls, alignment, geometry
from ..dtypes import accumulator_dtype
from ..merge import function as merging
from ..merge import plan as merging_plan
from ..quantize.formats import FORMATS, Stored
from ..rope.function import turn_back
from . import plan
from .sequences import Lengths, Table, read

__all__ = ["Causal", "Options", "attention_backward", "attention_forward", "describe", "empty_output", "value_columns"]

#: A mask, tables of cosines and sines, slopes, sinks, a seed and a table of sequences: what a call may lack.
_Extras = tuple["Tensor | None", ...]
#: With whether every query belongs to a sequence.
_ForwardCall = Callable[[Tensor, Tensor, Tensor, _Extras, bool], "tuple[Tensor, Tensor]"]
_BackwardCalls = tuple[launch.BoundLaunch, launch.BoundLaunch, launch.BoundLaunch, "launch.BoundLaunch | None"]

_Plan = TypeVar("_Plan")

#: Keys and values are tensors as they are.
NO_CACHE = plan.Cache()

_forward_calls = PreparedCalls[_ForwardCall]()
_backward_calls = PreparedCalls[_BackwardCalls]()
_merges = PreparedCalls[launch.BoundLaunch]()


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


def value_columns(value: Tensor, stored: int = Stored.ELEMENTS) -> int:
    """Dv of values as they are stored."""
    return value.shape[3] * (2 if stored in (Stored.INT4, Stored.NF4) else 1)


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
    key_heads, keys = key.shape[1:3]
    batches = batch if options.sequences is None else key.shape[0]
    cache = options.cache
    stored = next(x for x in FORMATS.values() if x.stored == cache.stored) if cache.stored else None
    if cache.page_size:
        keys = cache.page_size * cache.table_pages
    columns = head_size if stored is None else stored.row_bytes(head_size)
    if key.shape != (key.shape[0], key_heads, key.shape[2], columns) or (not cache.page_size and batches != len(key)):
        raise ValueError(f"key has shape {tuple(key.shape)}; accepted: query's B {batch} and D {head_size}")
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


def _planned(
    kernel: plan.Kernel, problem: plan.Problem, device: torch.device, make: Callable[[plan.Tiling | None], _Plan]
) -> _Plan:
    """The kernel's plan with the tiling that was tuned for such problems, if any."""
    return tune.planned(f"attention_{kernel.name}", plan.shape_class(problem), problem.dtype, device, plan.Tiling, make)


def _planned_walk(kernel: plan.Kernel, problem: plan.Problem, runtime: Runtime, device: torch.device) -> Launch:
    return _planned(kernel, problem, device, lambda tiling: plan.walk(problem, runtime.CAPABILITIES, kernel, tiling))


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
        return (
            None if all(x is None for x in lengths.tensors().values()) else read(lengths, query, key, self.block_table)
        )

    def cache(self, query: Tensor, key: Tensor, value: Tensor) -> plan.Cache:
        """How keys and values are kept, once the tensors are known to fit.

        Raises:
            ValueError, TypeError: they do not.
        """
        table, of = self.block_table, self.stored
        if table is None and of == Stored.ELEMENTS:
            return NO_CACHE
        if table is not None and (table.dtype != torch.int32 or table.dim() != 2 or not table.is_contiguous()):
            raise TypeError(
                f"block_table is {table.dtype} of shape {tuple(table.shape)}; accepted: contiguous int32 [N, P]"
            )
        if table is not None and (
            table.device != query.device or (self.seqused_k is None and self.cu_seqlens_k is None)
        ):
            raise ValueError(f"block_table is on {table.device}; accepted: {query.device}, and with lengths of keys")
        steps = [(0, 0, 0), (0, 0, 0)]
        for n, (name, x, rows) in enumerate((("k_scale", self.k_scale, key), ("v_scale", self.v_scale, value))):
            if of == Stored.ELEMENTS:
                continue
            if x is None or x.dtype != torch.float32 or x.device != query.device:
                raise TypeError(f"{name} is {x if x is None else x.dtype}; accepted: float32 on {query.device}")
            columns = query.shape[3] if name == "k_scale" else value_columns(value, of)
            groups = -(-columns // self.group_size) if self.group_size else 1
            if x.shape != (*rows.shape[:3], groups) or (x.stride(3) != 1 and groups > 1):
                raise ValueError(f"{name} has shape {tuple(x.shape)}; accepted: {(*rows.shape[:3], groups)}")
            steps[n] = _layout(name, x).strides
        return plan.Cache(
            stored=Stored(of),
            group_size=self.group_size,
            scale_strides=(steps[0], steps[1]),
            page_size=0 if table is None else key.shape[2],
            pages=0 if table is None else key.shape[0],
            table_pages=0 if table is None else table.shape[1],
        )

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
_TENSORS = tuple(name for name, kind in Modifiers.__annotations__.items() if "Tensor" in str(kind))
_NO_MODIFIERS = Modifiers()


def _read(
    modifiers: tuple[Any, ...], query: Tensor, key: Tensor, value: Tensor, scale: float, causal: int
) -> tuple[Modifiers, Options, Table | None]:
    """An operator's last arguments by name, and its options; PyTorch leaves out those that have their defaults."""
    if not modifiers:
        return _NO_MODIFIERS, Options(scale, causal), None
    named = Modifiers(*modifiers)
    table = named.table(query, key)
    return named, named.options(query, key, value, scale, causal, None if table is None else table.shape), table


def _rows(table: Table | None) -> Tensor | None:
    return None if table is None else table.rows


_MODIFIERS = (
    "Tensor? cos=None, Tensor? sin=None, bool interleaved=False, SymInt query_position=0, "
    "Tensor? alibi_slopes=None, Tensor? sinks=None, Tensor? seed=None, float dropout_p=0.0, float softcap=0.0, "
    "SymInt window_left=-1, SymInt window_right=-1, bool bottom_right=False, Tensor? cu_seqlens_q=None, "
    "Tensor? cu_seqlens_k=None, Tensor? seqused_k=None, Tensor? cache_batch_idx=None, Tensor? cache_leftpad=None, "
    "SymInt appended=0, Tensor? block_table=None, Tensor? k_scale=None, Tensor? v_scale=None, int stored=0, "
    "int group_size=0"
)
_FORWARD = (
    "(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, float scale, SymInt causal, "
    f"{_MODIFIERS}) -> (Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor out, "
    f"Tensor lse, bool mask_gradient, float scale, SymInt causal, {_MODIFIERS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _prepare_forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, options: Options
) -> _ForwardCall:
    runtime = for_device(query.device.type)
    problem = describe(
        query, key, value, attn_mask, options, out=empty_output(query, value_columns(value, options.cache.stored))
    )
    columns = problem.value_head_size
    lse_shape, dtype, device = tuple(query.shape[:3]), accumulator_dtype(query.dtype), query.device
    nothing_to_do, no_keys = query.numel() == 0, key.numel() == 0 and options.sequences is None
    planned = _planned(
        plan.FORWARD,
        problem,
        device,
        lambda tiling: plan.forward_in_parts(problem, runtime.CAPABILITIES, tiling),
    )
    bound = launch.bind(planned.launch, runtime)
    merge = None
    if planned.splits > 1:  # the same for any number of keys
        of = (planned.splits, geometry(query), columns)
        merge = _merges.prepared(of, _prepare_merge, planned.splits, query, columns, runtime)

    def call(query: Tensor, key: Tensor, value: Tensor, extras: _Extras, whole: bool) -> tuple[Tensor, Tensor]:
        out = launch.poisoned(empty_output(query, columns), runtime)
        lse = launch.empty(lse_shape, dtype, device, runtime)
        if no_keys:
            sinks = extras[4]
            return out.zero_(), lse.fill_(-torch.inf) if sinks is None else lse.copy_(sinks[:, :, None])
        if nothing_to_do:
            return out, lse
        read = (query, key, value, *(query if x is None else x for x in extras))
        if not whole:
            out.zero_(), lse.fill_(-torch.inf)
        if merge is None:
            bound(*read, out, lse)
            return out, lse
        outs, lses = _parts(planned.splits, query, columns, runtime)
        if not whole:
            outs.zero_(), lses.fill_(-torch.inf)
        bound(*read, outs, lses)
        merge(outs, outs[1:], lses, lses[1:], out, lse)
        return out, lse

    return call


def _parts(splits: int, query: Tensor, columns: int, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Room for the results of parts of the keys, ``[S, B, Hq, Lq, Dv]`` and ``[S, B, Hq, Lq]``."""
    dtype, shape = accumulator_dtype(query.dtype), (splits, *query.shape[:3], columns)
    outs = launch.empty(shape, dtype, query.device, runtime)
    return outs, launch.empty(shape[:-1], dtype, query.device, runtime)


def _prepare_merge(splits: int, query: Tensor, columns: int, runtime: Runtime) -> launch.BoundLaunch:
    """Merges parts into results that lie as those of a call; takes parts, those from the second on, and results."""
    outs, lses = _parts(splits, query, columns, runtime)
    problem = merging.describe(outs[0], lses[0], outs[1:], lses[1:], empty_output(query, columns), lses[0])
    return launch.bind(merging_plan.forward(problem, runtime.CAPABILITIES), runtime)


@torch.library.custom_op("mps_flash_attn::attention_forward", mutates_args=(), schema=_FORWARD)
def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float, causal: int, *modifiers: Any
) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scores.

    Args:
        query: ``[B, Hq, Lq, D]``.
        key, value: ``[B, Hkv, Lk, D]`` and ``[B, Hkv, Lk, Dv]``; query head ``h`` uses head ``h // (Hq / Hkv)``.
        attn_mask: boolean (true takes part) or additive, broadcast to ``[B, Hq, Lq, Lk]``.
        scale: factor of the scores.
        causal: a `Causal`.
        modifiers: those of `Modifiers`.

    Returns:
        ``out [B, Hq, Lq, Dv]``, which lies as ``query`` does, and ``lse [B, Hq, Lq]``, natural logarithm, float32
        (float64 for float64).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not go together.
        UnsupportedError: a problem that no plan serves.
    """
    named, options, table = _read(modifiers, query, key, value, scale, causal)
    mask = None if attn_mask is None else geometry(attn_mask)
    problem = (geometry(query), geometry(key), geometry(value), mask, options)
    call = _forward_calls.prepared(problem, _prepare_forward, query, key, value, attn_mask, options)
    scores = (attn_mask, named.cos, named.sin, named.alibi_slopes, named.sinks, named.seed)
    extras = (*scores, _rows(table), named.block_table, named.k_scale, named.v_scale)
    return call(query, key, value, extras, table is None or table.all_queries)


def _prepare_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    options: Options,
    others: dict[str, Tensor],
    lse_gradient: bool,
    mask_gradient: bool,
) -> _BackwardCalls:
    runtime, device = for_device(query.device.type), query.device
    described = describe(query, key, value, attn_mask, options, **others)
    return (
        launch.bind(plan.delta(described, runtime.CAPABILITIES, lse_gradient), runtime),
        launch.bind(_planned_walk(plan.BACKWARD_DQ, described, runtime, device), runtime),
        launch.bind(_planned_walk(plan.BACKWARD_DKV, described, runtime, device), runtime),
        launch.bind(plan.on_mask(described, runtime.CAPABILITIES), runtime) if mask_gradient else None,
    )


@torch.library.custom_op("mps_flash_attn::attention_backward", mutates_args=(), schema=_BACKWARD)
def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    mask_gradient: bool,
    scale: float,
    causal: int,
    *modifiers: Any,
) -> tuple[Tensor, ...]:
    """Gradients of `attention_forward` from its inputs, its outputs and their gradients.

    Args:
        grad_out: like ``out``; made contiguous where its last dimension is strided.
        grad_lse: ``[B, Hq, Lq]`` or ``None`` for zeros.
        mask_gradient: whether that of an additive ``attn_mask`` is wanted.

    Returns:
        ``dq``, ``dk``, ``dv`` like ``query``, ``key``, ``value``; ``dmask`` of the mask's shape, contiguous, or empty;
        ``dsinks`` like ``sinks``, or empty.
    """
    shape = (*query.shape[:3], value.shape[3])
    for name, tensor in (("grad_out", grad_out), ("out", out)):
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted: [B, Hq, Lq, Dv], {shape}")
    if lse.shape != query.shape[:3] or lse.dtype != accumulator_dtype(query.dtype):
        raise ValueError(f"lse is {lse.dtype} of shape {tuple(lse.shape)}; accepted: that of attention_forward")
    if grad_lse is not None and (grad_lse.shape != lse.shape or grad_lse.dtype != lse.dtype):
        raise ValueError(f"grad_lse is {grad_lse.dtype} of shape {tuple(grad_lse.shape)}; accepted: that of lse")
    if mask_gradient and (attn_mask is None or attn_mask.dtype == torch.bool):
        raise ValueError("mask_gradient is True; accepted: False, or an additive attn_mask")
    named, options, table = _read(modifiers, query, key, value, scale, causal)
    if named.cache_batch_idx is not None or named.cache_leftpad is not None or options.cache != NO_CACHE:
        raise UnsupportedError("attention with a cache has no gradient")
    if grad_out.stride(3) != 1:
        grad_out = grad_out.contiguous()
    lse, grad_lse = lse.contiguous(), None if grad_lse is None else grad_lse.contiguous()
    runtime = for_device(query.device.type)
    dq, dk, dv = (launch.empty_like(x, runtime) for x in (query, key, value))
    delta = launch.empty_like(lse, runtime)
    dmask = query.new_empty(0)
    if mask_gradient and attn_mask is not None:
        dmask = launch.empty(tuple(attn_mask.shape), attn_mask.dtype, query.device, runtime)
    if query.numel() == 0 or key.numel() == 0:
        dsinks = _sink_gradient(named.sinks, lse, lse.new_zeros(()) if grad_lse is None else -grad_lse, table)
        return dq.zero_(), dk.zero_(), dv.zero_(), dmask.zero_(), dsinks

    if table is not None and not table.all_queries:
        dq.zero_()
    if table is not None and not table.all_keys:
        dk.zero_(), dv.zero_()
    tensors = {"out": out, "grad_out": grad_out, "dq": dq, "dk": dk, "dv": dv}
    inputs = (query, key, value, *tensors.values())
    masks = () if attn_mask is None else (attn_mask,)
    problem = (tuple(map(geometry, (*inputs, *masks))), options, grad_lse is None, mask_gradient)
    run_delta, run_dq, run_dkv, run_dmask = _backward_calls.prepared(
        problem, _prepare_backward, query, key, value, attn_mask, options, tensors, grad_lse is not None, mask_gradient
    )
    run_delta(out, grad_out, lse if grad_lse is None else grad_lse, lse, delta)
    extras = (attn_mask, named.cos, named.sin, named.alibi_slopes, named.seed, _rows(table))
    read = (query, key, value, *(query if x is None else x for x in extras), grad_out, lse, delta)
    run_dq(*read, dq)
    run_dkv(*read, dk, dv)
    if run_dmask is not None:
        run_dmask(*read, dmask)
    if named.cos is not None and named.sin is not None and named.cos.numel():  # dq and dk are of what was turned
        for gradient, first in ((dq, named.query_position), (dk, 0)):
            rows = slice(first, first + gradient.shape[2])
            turn_back(gradient, named.cos[rows], named.sin[rows], named.interleaved)
    return dq, dk, dv, dmask, _sink_gradient(named.sinks, lse, delta, table)


def _sink_gradient(sinks: Tensor | None, lse: Tensor, delta: Tensor, table: Table | None) -> Tensor:
    """That of sinks ``[B, Hq]``: a sink has no value, so its ``dS = P (0 - delta)``, summed over the queries."""
    if sinks is None:
        return lse.new_empty(0)
    if table is not None and table.shape.of_queries:
        delta = delta.expand_as(lse)
        rows = [
            _sink_gradient(sinks[n : n + 1], lse[:, :, first:end], delta[:, :, first:end], None)
            for n, (first, end) in enumerate(table.query_bounds)
        ]
        return torch.cat(rows) if rows else torch.zeros_like(sinks)
    weights = torch.exp(sinks[:, :, None] - lse).masked_fill(lse == -torch.inf, 0)
    return -(weights * delta).sum(2)


@attention_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float, causal: int, *modifiers: Any
) -> tuple[Tensor, Tensor]:
    columns = value_columns(value, Modifiers(*modifiers).stored)
    return empty_output(query, columns), query.new_empty(query.shape[:3], dtype=accumulator_dtype(query.dtype))


@attention_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    mask_gradient: bool,
    scale: float,
    causal: int,
    *modifiers: Any,
) -> tuple[Tensor, ...]:
    sinks = Modifiers(*modifiers).sinks
    dmask = query.new_empty(0) if attn_mask is None or not mask_gradient else attn_mask.new_empty(attn_mask.shape)
    dsinks = lse.new_empty(0) if sinks is None else torch.empty_like(sinks)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), dmask, dsinks


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, attn_mask, ctx.scale, ctx.causal, *modifiers = inputs
    named = Modifiers(*modifiers)
    none: dict[str, Any] = dict.fromkeys(_TENSORS)
    ctx.numbers = named._replace(**none)
    ctx.save_for_backward(query, key, value, attn_mask, *output, *(getattr(named, name) for name in _TENSORS))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, attn_mask, out, lse, *tensors = ctx.saved_tensors
    modifiers = ctx.numbers._replace(**dict(zip(_TENSORS, tensors, strict=True)))
    before_sinks = 6 + Modifiers._fields.index("sinks")
    after_sinks = 5 + len(Modifiers._fields) - before_sinks
    if grad_out is None and grad_lse is None:
        return (None,) * (before_sinks + 1 + after_sinks)
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    wants_mask = ctx.needs_input_grad[3]
    dq, dk, dv, dmask, dsinks = torch.ops.mps_flash_attn.attention_backward(
        grad_out, grad_lse, query, key, value, attn_mask, out, lse, wants_mask, ctx.scale, ctx.causal, *modifiers
    )
    dmask, dsinks = dmask if wants_mask else None, None if modifiers.sinks is None else dsinks
    return dq, dk, dv, dmask, *(None,) * (before_sinks - 4), dsinks, *(None,) * after_sinks


attention_forward.register_autograd(_backward, setup_context=_save_for_backward)
