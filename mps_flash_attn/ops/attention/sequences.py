"""Which rows of packed or padded tensors, or of a cache, are a sequence: what the kernels read as a table.

The host reads lengths before a launch, to check them and to know how many threadgroups there are; on a GPU that waits
for what was queued before, once for each tensor as long as nobody changes it.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..checks import require_tensor
from ..host_values import host_values, require_entries
from . import plan

__all__ = ["Lengths", "Table", "read", "sequences_of"]


class Lengths(NamedTuple):
    """The arguments of the operators that say which rows are a sequence; all int32 on the device of the queries.

    Attributes:
        cu_seqlens_q: ``[N + 1]``: sequence ``n`` has the queries from the n-th entry to the next, of a tensor with one
            batch. Without it each batch is one.
        cu_seqlens_k: likewise of keys.
        seqused_k: ``[N]``: how many keys of each sequence, from its first, are there.
        cache_batch_idx: ``[N]``: the batch of its keys.
        cache_leftpad: ``[N]``: how many of the first keys are none.
        appended: how many more keys each sequence has than ``seqused_k`` says.
    """

    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    seqused_k: Tensor | None = None
    cache_batch_idx: Tensor | None = None
    cache_leftpad: Tensor | None = None
    appended: int = 0

    def tensors(self) -> dict[str, Tensor | None]:
        return {name: x for name, x in self._asdict().items() if name != "appended"}


@dataclass(frozen=True)
class Table:
    """The sequences of a call.

    Attributes:
        rows: ``[N, 6]`` int32: batch of the queries, first query, queries, and the same of the keys.
        shape: what a plan depends on.
        key_ends: the row after the last of the keys of each, counted in its own batch or pages.
        query_bounds: the first row of the queries of each, and the one after its last.
        all_queries, all_keys: whether every row of the tensors belongs to a sequence.
    """

    rows: Tensor
    shape: plan.Sequences
    key_ends: tuple[int, ...]
    query_bounds: tuple[tuple[int, int], ...]
    all_queries: bool
    all_keys: bool


def sequences_of(name: str, entries: int) -> int:
    """How many sequences one of the `Lengths` with so many entries is for."""
    return entries - 1 if name.startswith("cu_") else entries


def read(lengths: Lengths, query: Tensor, key: Tensor, block_table: Tensor | None = None) -> Table:
    """The table of a call with some of the lengths.

    Args:
        query: ``[B, Hq, Lq, D]``.
        key: ``[B, Hkv, Lk, D]``, or pages of it, ``[pages, Hkv, page_size, D]``.
        block_table: ``[N, P]`` int32: the pages of each sequence, where keys are in pages.

    Raises:
        ValueError, TypeError: lengths that do not fit.
    """
    values = {name: _values(name, x, query) for name, x in lengths.tensors().items()}
    sizes = {sequences_of(name, len(x)) for name, x in values.items() if x is not None}
    if len(sizes) != 1:
        found = ", ".join(f"{name} has {len(x)} entries" for name, x in values.items() if x is not None)
        raise ValueError(f"{found}; accepted are N + 1 of cu_seqlens_q and cu_seqlens_k and N of the others")
    pages, page_size = key.shape[0], key.shape[2]
    capacity = None if block_table is None else block_table.shape[1] * page_size
    table = _table(
        sizes.pop(),
        (query.shape[0], query.shape[2]),
        (pages, page_size) if capacity is None else (None, capacity),
        query.device,
        lengths.appended,
        **values,
    )
    if block_table is not None:
        _check_pages(block_table, table.key_ends, pages, page_size)
    return table


def _check_pages(block_table: Tensor, ends: tuple[int, ...], pages: int, page_size: int) -> None:
    """Entries of the pages that are read."""
    if len(block_table) != len(ends):
        raise ValueError(f"block_table has {len(block_table)} rows; accepted is one a sequence, {len(ends)}")
    values = host_values(block_table, "block_table")
    known: tuple[object, ...] | None = _checked.get(block_table)
    state = (values, ends, pages, page_size)
    if known is not None and all(a is b for a, b in zip(known[:2], state[:2], strict=True)) and known[2:] == state[2:]:
        return
    for n, end in enumerate(ends):
        first = n * block_table.shape[1]
        for place, page in enumerate(values[first : first + -(-end // page_size)]):
            if not 0 <= page < pages:
                raise ValueError(
                    f"block_table[{n}, {place}] is {page}; accepted are 0 to {pages - 1}, the pages that there are"
                )
    _checked[block_table] = state


#: The values of a table of pages, and the lengths, with which it was checked last.
_checked = WeakTensorKeyDictionary()


def _values(name: str, x: Tensor | None, query: Tensor) -> tuple[int, ...] | None:
    if x is None:
        return None
    require_tensor(name, x, (torch.int32,), "int32")
    if x.dim() != 1:
        raise ValueError(f"{name} has shape {list(x.shape)}; accepted is one dimension")
    if x.device != query.device:
        raise ValueError(f"{name} is on {x.device}; accepted is the device of query, {query.device}")
    if name.startswith("cu_") and len(x) == 0:
        raise ValueError(f"{name} has no entries; accepted are N + 1")
    return host_values(x, name)


def _bounds(name: str, ends: tuple[int, ...], batches: int | None, length: int | None) -> list[tuple[int, int]]:
    """The first row and the number of rows of each sequence of one batch."""
    if batches != 1:
        raise ValueError(
            f"{name} comes with {batches} batches; accepted is one, with all sequences one after the other"
        )
    if ends[0] != 0:
        raise ValueError(f"{name}[0] is {ends[0]}; accepted is 0")
    for n, (start, end) in enumerate(itertools.pairwise(ends)):
        if end < start:
            raise ValueError(f"{name}[{n + 1}] is {end} after {start}; accepted are entries that do not decrease")
    if length is not None and ends[-1] > length:
        raise ValueError(
            f"{name}[{len(ends) - 1}] is {ends[-1]}; accepted are at most {length}, the rows that there are"
        )
    return [(start, end - start) for start, end in itertools.pairwise(ends)]


@functools.lru_cache(maxsize=64)
def _table(
    count: int,
    queries: tuple[int, int],
    keys: tuple[int | None, int],
    device: torch.device,
    appended: int,
    *,
    cu_seqlens_q: tuple[int, ...] | None,
    cu_seqlens_k: tuple[int, ...] | None,
    seqused_k: tuple[int, ...] | None,
    cache_batch_idx: tuple[int, ...] | None,
    cache_leftpad: tuple[int, ...] | None,
) -> Table:
    """Kept for calls with the same lengths, of which each layer of a model makes one."""
    (q_batches, q_length), (k_batches, k_length) = queries, keys
    if cu_seqlens_q is None:
        if q_batches != count:
            raise ValueError(f"query has {q_batches} batches; accepted are as many as lengths are given, {count}")
        q_rows = [(n, 0, q_length) for n in range(count)]
    else:
        q_rows = [(0, *rows) for rows in _bounds("cu_seqlens_q", cu_seqlens_q, q_batches, q_length)]

    if cu_seqlens_k is not None and k_batches is None:
        k_rows = [(n, 0, length) for n, (_, length) in enumerate(_bounds("cu_seqlens_k", cu_seqlens_k, 1, None))]
    elif cu_seqlens_k is not None:
        k_rows = [(0, *rows) for rows in _bounds("cu_seqlens_k", cu_seqlens_k, k_batches, k_length)]
    elif cache_batch_idx is not None:
        if k_batches is None:
            raise ValueError("cache_batch_idx comes with block_table; accepted is one of them")
        require_entries("cache_batch_idx", cache_batch_idx, 0, k_batches - 1, "the batches of the cache")
        k_rows = [(n, 0, k_length) for n in cache_batch_idx]
    else:
        if k_batches is not None and k_batches != count:
            raise ValueError(f"key has {k_batches} batches; accepted are as many as lengths are given, {count}")
        k_rows = [(n, 0, k_length) for n in range(count)]
    used = tuple(n + appended for n in seqused_k) if seqused_k else tuple(rows for _, _, rows in k_rows)
    padding = cache_leftpad or (0,) * count
    for n, ((_, _, rows), length, pad) in enumerate(zip(k_rows, used, padding, strict=True)):
        most = min(rows, k_length)
        if not 0 <= length <= most:
            raise ValueError(f"seqused_k[{n}] is {length}; accepted are 0 to {most}, the keys that there are")
        if not 0 <= pad <= length:
            raise ValueError(f"cache_leftpad[{n}] is {pad}; accepted are 0 to {length}, the keys of the sequence")
    k_rows = [
        (batch, first + pad, length - pad) for (batch, first, _), length, pad in zip(k_rows, used, padding, strict=True)
    ]
    table = [(*q, *k) for q, k in zip(q_rows, k_rows, strict=True)]
    k_total = k_length * (k_batches or count)
    return Table(
        torch.tensor(table, dtype=torch.int32, device=device).reshape(count, 6),
        plan.Sequences(
            count,
            _coarse(max((n for _, _, n in q_rows), default=0)),
            _coarse(max((n for _, _, n in k_rows), default=0)),
            cu_seqlens_q is not None,
        ),
        tuple(first + n for _, first, n in k_rows),
        tuple((first, first + n) for _, first, n in q_rows),
        sum(n for _, _, n in q_rows) == q_length * q_batches,
        len(set(k_rows)) == len(k_rows) and sum(n for _, _, n in k_rows) == k_total,
    )


def _coarse(n: int) -> int:
    """At least n, by at most a quarter more, so that lengths which grow are not planned again each time."""
    step = max(1 << max(n.bit_length() - 3, 0), 16)
    return -(-n // step) * step
