"""Decides how rows are stored in a cache. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass

import torch

from ...errors import UnsupportedError
from ...launch import CHUNK_BYTES, Capabilities, Launch, ParamStruct
from ..dtypes import ELEMENTS, accumulator, refuse_dtype

__all__ = ["PAGE_SIZES", "Place", "Problem", "Rotation", "store"]

#: Rows that a page of a cache may have.
PAGE_SIZES = range(8, 257)

_FOLDER = "ops/kv_cache"
_THREADS = 256
_NO_STRIDES = (0, 0, 0)


class Place(enum.IntEnum):
    """How the place of a row is found; as in place.h."""

    SAME = 0
    BATCH = 1
    NUMBERED = 2
    PAGED = 3


@dataclass(frozen=True)
class Rotation:
    """By what keys are turned.

    Attributes:
        pairs: R / 2.
        dtype: of the tables of cosines and sines.
        positions: their rows.
        stride: between their rows, in elements.
        interleaved: whether pair i is columns ``(2 i, 2 i + 1)``.
        one_position: whether all new rows of a sequence are turned as the first one.
    """

    pairs: int
    dtype: torch.dtype
    positions: int
    stride: int
    interleaved: bool
    one_position: bool = False


@dataclass(frozen=True)
class Problem:
    """Everything about a call that a plan may depend on.

    Attributes:
        place: how the place of a row is found.
        shape: of the new keys, ``[B, L, H, D]``.
        value_columns: Dv, or 0 where there are only keys.
        strides: of key, value, and their caches, over batch (or page), row and head; of the keys' two alone where there
            are no values.
        batches, rows: of the cache: its batches and their rows, or its pages and theirs.
        max_pages, table_stride: of the table of pages, and between its rows.
        step: the largest number of bytes, up to 16, of which the address and length of every row is a multiple.
    """

    dtype: torch.dtype
    place: Place
    shape: tuple[int, int, int, int]
    value_columns: int
    strides: tuple[tuple[int, ...], ...]
    batches: int
    rows: int
    max_pages: int
    table_stride: int
    step: int
    rotation: Rotation | None = None


@functools.lru_cache(maxsize=1024)
def store(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``kv_cache_store``.

    Raises:
        UnsupportedError: with the reason.
    """
    rotation = problem.rotation or Rotation(0, torch.float32, 0, 0, interleaved=False)
    for dtype in (problem.dtype, rotation.dtype):
        refuse_dtype(dtype, capabilities)
    batches, length, heads, columns = problem.shape
    if max(batches * heads, length, columns, problem.value_columns) >= 2**31:
        raise UnsupportedError(f"rows {problem.shape} do not fit in 32 bits")
    params = ParamStruct.read(f"{_FOLDER}/args.h", "KvCacheArgs")
    pack = CHUNK_BYTES // problem.dtype.itemsize  # elements that a thread moves at once
    if problem.step != CHUNK_BYTES or rotation.pairs % pack:
        pack = 1
    width = max(columns - rotation.pairs, problem.value_columns) // pack
    across = min(1 << (width - 1).bit_length(), _THREADS)
    key, value, k_cache, v_cache = (
        problem.strides
        if len(problem.strides) == 4
        else (problem.strides[0], _NO_STRIDES, problem.strides[1], _NO_STRIDES)
    )
    return Launch(
        file=f"{_FOLDER}/store.metal",
        kernel="kv_cache_store",
        defines=(
            ("ELEMENT", ELEMENTS[problem.dtype]),
            ("ACCUMULATOR", accumulator(problem.dtype)),
            ("TABLE", ELEMENTS[rotation.dtype]),
            ("PLACE", int(problem.place)),
            ("INTERLEAVED", int(rotation.interleaved)),
            ("PACK", pack),
            ("ARGS_BYTES", params.size),
        ),
        words=params.pack(
            {
                "key_stride": key,
                "value_stride": value,
                "k_cache_stride": k_cache,
                "v_cache_stride": v_cache,
                "heads": heads,
                "columns": columns,
                "value_columns": problem.value_columns,
                "batches": problem.batches,
                "rows": problem.rows,
                "max_pages": problem.max_pages,
                "table_stride": problem.table_stride,
                "rotary_pairs": rotation.pairs,
                "positions": rotation.positions,
                "angle_stride": rotation.stride,
                "step": int(not rotation.one_position),
            },
            accumulator(problem.dtype),
        ),
        threads=(width, length, batches * heads),
        group_size=(across, _THREADS // across, 1),
        threadgroup_bytes=0,
    )
