"""Checks of the arguments of the operators: first what tensors are, then what those of integers hold."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import require_match, require_shape, require_tensor
from ..dtypes import ELEMENTS
from ..host_values import host_values, require_distinct, require_entries
from .plan import PAGE_SIZES, Place

__all__ = ["place_of", "require_append", "require_places", "require_positions", "require_rotate"]


def place_of(cache_batch_idx: Tensor | None, block_table: Tensor | None) -> Place:
    """How the place of a row is found."""
    if block_table is not None:
        return Place.PAGED
    return Place.BATCH if cache_batch_idx is None else Place.NUMBERED


def require_append(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    cache_seqlens: Tensor,
    cache_batch_idx: Tensor | None,
    block_table: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
) -> None:
    """Tensors that go together as `append_kv` takes them.

    Raises:
        TypeError, ValueError: naming one that does not.
    """
    for name, tensor in (("key", key), ("value", value), ("k_cache", k_cache), ("v_cache", v_cache)):
        require_tensor(name, tensor)
        require_match(name, tensor, "key", key)
        if tensor.dim() != 4 or tensor.shape[3] == 0:
            layout = "[B, L, Hkv, D]" if "cache" not in name else "[B, L, Hkv, D], or [pages, page size, Hkv, D]"
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted are {layout} with D from 1")
    batches, _, heads, _ = key.shape
    require_shape("value", value, (*key.shape[:3], value.shape[3]), "[B, L, Hkv] of the key and Dv")
    for name, cache, new in (("k_cache", k_cache, key), ("v_cache", v_cache, value)):
        require_shape(name, cache, (*k_cache.shape[:2], heads, new.shape[3]), "[.., .., Hkv, D] of what is appended")
        strides = [stride for size, stride in zip(cache.shape, cache.stride(), strict=True) if size > 1]
        if 0 in strides or (cache.shape[3] > 1 and strides[-1] != 1):
            raise ValueError(
                f"{name} has strides {cache.stride()}; accepted, to be written in place, is a last one of 1 and no 0"
            )
    _require_integers("cache_seqlens", cache_seqlens, key, (batches,), "[B]")
    if block_table is not None:
        if cache_batch_idx is not None:
            raise ValueError("cache_batch_idx and block_table are given; accepted is one of them")
        if block_table.dim() != 2:
            raise ValueError(f"block_table has shape {tuple(block_table.shape)}; accepted is [B, max_pages]")
        _require_integers("block_table", block_table, key, (batches, block_table.shape[1]), "[B, max_pages]")
        if k_cache.shape[1] not in PAGE_SIZES:
            raise ValueError(
                f"k_cache has pages of {k_cache.shape[1]} rows; accepted are {PAGE_SIZES[0]} to {PAGE_SIZES[-1]}"
            )
    elif cache_batch_idx is not None:
        _require_integers("cache_batch_idx", cache_batch_idx, key, (batches,), "[B]")
    elif k_cache.shape[0] < batches:
        raise ValueError(
            f"k_cache has shape {tuple(k_cache.shape)}; accepted is one of at least as many batches as key, {batches}"
        )
    _require_tables("key", key, cos, sin)


def require_rotate(query: Tensor, cos: Tensor, sin: Tensor, cache_seqlens: Tensor) -> None:
    """Tensors that go together as `rotate_queries` takes them.

    Raises:
        TypeError, ValueError: naming one that does not.
    """
    require_tensor("query", query)
    if query.dim() != 4 or query.shape[3] == 0:
        raise ValueError(f"query has shape {tuple(query.shape)}; accepted are [B, L, H, D] with D from 1")
    _require_integers("cache_seqlens", cache_seqlens, query, query.shape[:1], "[B]")
    _require_tables("query", query, cos, sin)


def require_places(
    k_cache: Tensor,
    key: Tensor,
    cache_seqlens: Tensor,
    cache_batch_idx: Tensor | None,
    block_table: Tensor | None,
) -> None:
    """Each new row has a place in the cache, and no two have the same.

    Raises:
        ValueError: naming argument, entry and what is accepted.
    """
    batches, rows = k_cache.shape[:2]
    new = key.shape[1]
    most = rows if block_table is None else block_table.shape[1] * rows
    if new > most:
        raise ValueError(f"key has shape {tuple(key.shape)}; accepted are up to {most} rows, which the cache has")
    lengths = host_values(cache_seqlens, "cache_seqlens")
    require_entries("cache_seqlens", lengths, 0, most - new, f"so that {new} more rows fit into {most}")
    if cache_batch_idx is not None:
        numbers = host_values(cache_batch_idx, "cache_batch_idx")
        require_entries("cache_batch_idx", numbers, 0, batches - 1, "batches of k_cache")
        require_distinct("cache_batch_idx", numbers, "since two sequences would be written to one place")
    if block_table is not None and new > 0:
        _require_pages(host_values(block_table, "block_table"), block_table.shape[1], lengths, new, batches, rows)


def _require_pages(
    table: tuple[int, ...], max_pages: int, lengths: tuple[int, ...], new: int, pages: int, rows: int
) -> None:
    """The pages that new rows go to exist and are distinct. What a table says of others is not looked at."""
    users: dict[int, str] = {}
    for batch, length in enumerate(lengths):
        for number in range(length // rows, (length + new - 1) // rows + 1):
            page, entry = table[batch * max_pages + number], f"block_table[{batch}, {number}]"
            if not 0 <= page < pages:
                raise ValueError(f"{entry} is {page}; accepted are 0 to {pages - 1}, pages of k_cache")
            if users.setdefault(page, entry) != entry:
                raise ValueError(
                    f"{entry} is {page}, as {users[page]} is; accepted are distinct pages to append to, since two "
                    "sequences would be written to one place"
                )


def require_positions(cos: Tensor, cache_seqlens: Tensor, length: int) -> None:
    """The tables have a row for each of so many positions from the lengths on.

    Raises:
        ValueError: naming the length that has none.
    """
    positions = cos.shape[0]
    if length > positions:
        raise ValueError(f"cos has shape {tuple(cos.shape)}; accepted are {length} rows or more, one a position")
    lengths = host_values(cache_seqlens, "cache_seqlens")
    words = f"so that cos and sin have rows for {length} positions from there on"
    require_entries("cache_seqlens", lengths, 0, positions - length, words)


def _require_integers(name: str, tensor: Tensor, of: Tensor, shape: tuple[int, ...], words: str) -> None:
    """An int32 tensor of this shape.

    Raises:
        TypeError, ValueError: another one.
    """
    require_tensor(name, tensor, (torch.int32,), "int32")
    require_match(name, tensor, "key", of, dtype=False)
    require_shape(name, tensor, tuple(shape), words)


def _require_tables(of: str, rows: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
    """Cosines and sines for the columns of these rows, or none of both.

    Raises:
        TypeError, ValueError: others.
    """
    if cos is None or sin is None:
        if cos is not sin:
            raise ValueError(
                f"{'cos' if cos is None else 'sin'} is None; accepted are both cos and sin, or none of them"
            )
        return
    for name, table in (("cos", cos), ("sin", sin)):
        require_tensor(name, table, ELEMENTS)
        require_match(name, table, of, rows, dtype=False)
        if table.dim() != 2 or 2 * table.shape[1] > rows.shape[3]:
            raise ValueError(
                f"{name} has shape {tuple(table.shape)}; accepted are [positions, R / 2], R up to {rows.shape[3]}"
            )
    require_match("sin", sin, "cos", cos)
    require_shape("sin", sin, tuple(cos.shape), "the shape of cos")
