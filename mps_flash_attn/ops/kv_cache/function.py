"""The operators ``torch.ops.mps_flash_attn.{append_kv,rotate_queries}``: launches and fakes. They have no gradients.

Both are launches of one kernel: queries are rows that are turned and go nowhere else.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ... import launch
from ...errors import UnsupportedError
from ...runtime.base import for_device
from ..calls import PreparedCalls, alignment, geometry
from ..strides import dense_rows
from ..vmap import InDims, each
from . import plan
from .arguments import place_of, require_append, require_places, require_positions, require_rotate
from .plan import Place, Rotation

__all__ = ["append_kv", "append_kv_undispatched", "describe_append", "describe_rotate", "rotate_queries"]

_calls = PreparedCalls[launch.BoundLaunch]()


def _rotation(cos: Tensor | None, interleaved: bool, one_position: bool = False) -> Rotation | None:
    """By what rows are turned; ``sin`` lies as ``cos`` does."""
    if cos is None or cos.shape[1] == 0:
        return None
    return Rotation(cos.shape[1], cos.dtype, cos.shape[0], cos.stride(0), interleaved, one_position)


def _step(*rows: Tensor) -> int:
    """The largest number of bytes, up to 16, of which the address and length of every row is a multiple."""
    return math.gcd(*(alignment(x, *x.stride()[:3], x.shape[3]) for x in rows))


def _tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The tables, or copies where they do not lie alike in rows without gaps."""
    if cos.stride() == sin.stride() and cos.stride(1) == 1:
        return cos, sin
    return cos.contiguous(), sin.contiguous()


def describe_append(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    place: Place,
    block_table: Tensor | None,
    cos: Tensor | None,
    interleaved: bool,
) -> plan.Problem:
    """The problem of a call of `append_kv`."""
    rows = key, value, k_cache, v_cache
    batches, length, heads, columns = key.shape
    return plan.Problem(
        dtype=key.dtype,
        place=place,
        shape=(batches, length, heads, columns),
        value_columns=value.shape[3],
        strides=tuple(x.stride()[:3] for x in rows),
        batches=k_cache.shape[0],
        rows=k_cache.shape[1],
        max_pages=0 if block_table is None else block_table.shape[1],
        table_stride=0 if block_table is None else block_table.stride(0),
        step=_step(*rows),
        rotation=_rotation(cos, interleaved),
    )


def describe_rotate(query: Tensor, output: Tensor, cos: Tensor, interleaved: bool, one_position: bool) -> plan.Problem:
    """The problem of a call of `rotate_queries`."""
    batches, length, heads, columns = query.shape
    return plan.Problem(
        dtype=query.dtype,
        place=Place.SAME,
        shape=(batches, length, heads, columns),
        value_columns=0,
        strides=(query.stride()[:3], output.stride()[:3]),
        batches=batches,
        rows=length,
        max_pages=0,
        table_stride=0,
        step=_step(query, output),
        rotation=_rotation(cos, interleaved, one_position),
    )


def _operands(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    cache_seqlens: Tensor,
    cache_batch_idx: Tensor | None,
    block_table: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
) -> tuple[Tensor, ...]:
    """What the kernel of `append_kv` takes, in its order; for what is absent some memory, which it does not read."""
    lengths = cache_seqlens.contiguous()
    numbers = lengths
    if block_table is not None:
        numbers = dense_rows(block_table)
    elif cache_batch_idx is not None:
        numbers = cache_batch_idx.contiguous()
    tables = (lengths, lengths) if cos is None or sin is None else _tables(cos, sin)
    return dense_rows(key), dense_rows(value), *tables, lengths, numbers, k_cache, v_cache


def _prepare_append(place: Place, rotary: bool, interleaved: bool, *operands: Tensor) -> launch.BoundLaunch:
    key, value, cos, _, _, numbers, k_cache, v_cache = operands
    runtime = for_device(key.device.type)
    table, angles = numbers if place == Place.PAGED else None, cos if rotary else None
    described = describe_append(k_cache, v_cache, key, value, place, table, angles, interleaved)
    return launch.bind(plan.store(described, runtime.CAPABILITIES), runtime)


def _prepare_rotate(query: Tensor, *args: Any) -> launch.BoundLaunch:
    runtime = for_device(query.device.type)
    described = describe_rotate(query, torch.empty_like(query), *args)
    return launch.bind(plan.store(described, runtime.CAPABILITIES), runtime)


@torch.library.custom_op("mps_flash_attn::append_kv", mutates_args={"k_cache", "v_cache"})
def append_kv(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    cache_seqlens: Tensor,
    cache_batch_idx: Tensor | None,
    block_table: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    interleaved: bool,
) -> None:
    """Writes new keys and values behind those of their sequences, in place; see `api.append_kv` for the arguments.

    Raises:
        ValueError, TypeError: tensors that do not go together, or hold what has no place, before anything is written.
            To know, a GPU's queue is waited for where `host_values` has not read them before.
        UnsupportedError: a problem that no plan serves.
    """
    tensors = k_cache, v_cache, key, value, cache_seqlens, cache_batch_idx, block_table, cos, sin
    problem = *(None if x is None else geometry(x) for x in tensors), interleaved
    bound = _calls.get(problem)
    if bound is None:  # others that are alike have passed
        require_append(*tensors)
    if cos is not None:
        require_positions(cos, cache_seqlens, key.shape[1])
    require_places(k_cache, key, cache_seqlens, cache_batch_idx, block_table)
    if key.numel() == 0:
        return
    operands = _operands(*tensors)
    if bound is None:
        place = place_of(cache_batch_idx, block_table)
        bound = _calls[problem] = _prepare_append(place, cos is not None, interleaved, *operands)
    bound(*operands)


def append_kv_undispatched(k_cache: Tensor, v_cache: Tensor, *others: Any) -> None:
    """The kernel of `append_kv` and what the dispatcher does around it: PyTorch's counts of changes grow."""
    append_kv._init_fn(k_cache, v_cache, *others)
    increment_version((k_cache, v_cache))


@torch.library.custom_op("mps_flash_attn::rotate_queries", mutates_args=())
def rotate_queries(
    query: Tensor, cos: Tensor, sin: Tensor, cache_seqlens: Tensor, interleaved: bool, one_position: bool
) -> Tensor:
    """Queries turned by the angles of their positions; see `api.rotate_queries` for the arguments.

    Returns:
        Like ``query``.

    Raises:
        ValueError, TypeError, UnsupportedError: as `append_kv`.
    """
    require_rotate(query, cos, sin, cache_seqlens)
    require_positions(cos, cache_seqlens, 1 if one_position else query.shape[1])
    query = dense_rows(query)
    if query.numel() == 0 or cos.shape[1] == 0:
        return query.clone()
    output = launch.empty_like(query, for_device(query.device.type))
    first, second = _tables(cos, sin)
    problem = geometry(query), geometry(first), interleaved, one_position
    bound = _calls.prepared(problem, _prepare_rotate, query, first, interleaved, one_position)
    lengths = cache_seqlens.contiguous()
    bound(query, query, first, second, lengths, lengths, output, output)
    return output


@append_kv.register_fake
def _(k_cache: Tensor, v_cache: Tensor, key: Tensor, value: Tensor, *others: Any) -> None:
    require_append(k_cache, v_cache, key, value, *others[:-1])


@rotate_queries.register_fake
def _(query: Tensor, cos: Tensor, sin: Tensor, cache_seqlens: Tensor, *options: bool) -> Tensor:
    require_rotate(query, cos, sin, cache_seqlens)
    return torch.empty_like(dense_rows(query))


@append_kv.register_vmap
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[None, None]:
    """One call after the other: each has caches of its own."""
    if any(dim is None for dim in in_dims[:2]):
        raise UnsupportedError("vmap maps new keys and values over one cache; accepted are caches that are mapped too")
    for i in range(info.batch_size):
        torch.ops.mps_flash_attn.append_kv(
            *(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True))
        )
    return None, None


@rotate_queries.register_vmap
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[Tensor, int]:
    rotated, dim = each(torch.ops.mps_flash_attn.rotate_queries, info.batch_size, args, in_dims)
    return rotated, dim
