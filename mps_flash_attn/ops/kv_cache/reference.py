"""A cache that grows, written out with loops and indices: the one reference that tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rope import reference as rope

__all__ = ["append", "positions", "rotate"]


def rotate(rows: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """Rows ``[B, L, H, D]`` turned by the tables' rows for their positions ``[B, L]``, in the arguments' dtypes."""
    cos, sin = (table[positions].unsqueeze(2) for table in (cos, sin))
    return rope.rope(rows, cos, sin, interleaved)


def append(
    cache: Tensor, rows: Tensor, lengths: list[int], numbers: list[int] | None, table: list[list[int]] | None
) -> Tensor:
    """The cache ``[B_cache, L, H, D]`` or ``[pages, page size, H, D]`` with rows ``[B, L, H, D]`` in their places."""
    cache = cache.to(rows.dtype, copy=True)
    for batch, length in enumerate(lengths):
        for i, row in enumerate(rows[batch]):
            page, place = divmod(length + i, cache.shape[1])
            if table is not None:
                cache[table[batch][page], place] = row
            else:
                cache[batch if numbers is None else numbers[batch], length + i] = row
    return cache


def positions(lengths: Tensor, length: int) -> Tensor:
    """``[B, length]``, from each sequence's length on."""
    return lengths.long().unsqueeze(1) + torch.arange(length)
