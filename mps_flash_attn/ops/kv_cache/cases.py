"""Caches and what is appended to them that tests and checks share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from ..dtypes import accumulator_dtype
from ..layouts import LayoutName, lay
from ..rope.reference import angles
from . import plan, reference
from .arguments import place_of
from .function import describe_append, describe_rotate

__all__ = ["CHECKED", "Case", "Inputs", "launches"]

PlaceName = Literal["batch", "numbered", "paged"]


@dataclass(frozen=True)
class Inputs:
    """The arguments of `append_kv` by their names; what is absent is ``None``."""

    k_cache: Tensor
    v_cache: Tensor
    key: Tensor
    value: Tensor
    cache_seqlens: Tensor
    cache_batch_idx: Tensor | None
    block_table: Tensor | None
    cos: Tensor | None
    sin: Tensor | None

    @property
    def options(self) -> dict[str, Any]:
        """All but the caches and what is appended."""
        rows = ("k_cache", "v_cache", "key", "value")
        return {name: tensor for name, tensor in vars(self).items() if name not in rows}

    def problem(self, interleaved: bool) -> plan.Problem:
        rows = self.k_cache, self.v_cache, self.key, self.value
        place = place_of(self.cache_batch_idx, self.block_table)
        return describe_append(*rows, place, self.block_table, self.cos, interleaved)

    def expected(self, interleaved: bool, *, exact: bool) -> tuple[Tensor, Tensor]:
        """Both caches afterwards: in float64, or in the dtype of the keys and tables rounded to it."""
        key, value = (x.double() if exact else x for x in (self.key, self.value))
        if self.cos is not None and self.sin is not None:
            cos, sin = self.cos.to(key.dtype), self.sin.to(key.dtype)
            positions = reference.positions(self.cache_seqlens, key.shape[1])
            key = reference.rotate(key, cos, sin, positions, interleaved)
        numbers = None if self.cache_batch_idx is None else self.cache_batch_idx.tolist()
        table = None if self.block_table is None else self.block_table.tolist()
        lengths = self.cache_seqlens.tolist()
        k_cache, v_cache = (
            reference.append(cache, rows, lengths, numbers, table)
            for cache, rows in ((self.k_cache, key), (self.v_cache, value))
        )
        return k_cache, v_cache


@dataclass(frozen=True)
class Case:
    """``length`` rows for each of some sequences, which have room for ``capacity`` rows each.

    Attributes:
        columns, value_columns: D and Dv.
        rotary_dim: R, or 0 where keys are not turned.
        page_size: of a paged cache.
        spare: batches or pages of the cache that no sequence has; a cache without a list of batches has none.
        layout: of new keys and values, and as far as it can be written to of the caches.
    """

    batches: int = 2
    length: int = 3
    heads: int = 2
    columns: int = 64
    value_columns: int = 64
    rotary_dim: int = 0
    interleaved: bool = False
    place: PlaceName = "batch"
    capacity: int = 32
    page_size: int = 8
    spare: int = 2
    layout: LayoutName = "contiguous"
    table_dtype: torch.dtype | None = None

    def inputs(self, dtype: torch.dtype) -> Inputs:
        """Random tensors from PyTorch's generator, the caches full of what must not change."""
        pages = -(-self.capacity // self.page_size)
        capacity = pages * self.page_size if self.place == "paged" else self.capacity
        lengths = torch.randint(0, capacity - self.length + 1, (self.batches,), dtype=torch.int32)
        of_paged, used = self.place == "paged", self.batches * (pages if self.place == "paged" else 1)
        shape = used + (0 if self.place == "batch" else self.spare), self.page_size if of_paged else self.capacity
        numbers = torch.randperm(shape[0], dtype=torch.int32)[:used]
        new = self.batches, self.length

        def rows(outer: tuple[int, int], columns: int, layout: LayoutName) -> Tensor:
            return lay(torch.randn(*outer, self.heads, columns).to(dtype), layout)

        cos, sin = None, None
        if self.rotary_dim:
            radians = angles(torch.arange(capacity + 1), self.rotary_dim, 10000.0)
            table_dtype = self.table_dtype or accumulator_dtype(dtype)
            cos, sin = radians.cos().to(table_dtype), radians.sin().to(table_dtype)
        writable: LayoutName = "sliced" if self.layout == "sliced" else "contiguous"
        return Inputs(
            k_cache=rows(shape, self.columns, writable),
            v_cache=rows(shape, self.value_columns, writable),
            key=rows(new, self.columns, self.layout if math.prod(new) else "contiguous"),
            value=rows(new, self.value_columns, self.layout if math.prod(new) else "contiguous"),
            cache_seqlens=lengths,
            cache_batch_idx=numbers if self.place == "numbered" else None,
            block_table=numbers.view(self.batches, pages) if of_paged else None,
            cos=cos,
            sin=sin,
        )


#: One of each way to find a place and to turn, in rows of whole packs and of odd length. They fill their caches.
CHECKED = (
    Case(length=16, capacity=16),
    Case(length=12, capacity=12, spare=0, rotary_dim=32, place="numbered", columns=96),
    Case(
        length=16,
        capacity=16,
        spare=0,
        rotary_dim=10,
        place="paged",
        columns=17,
        value_columns=24,
        interleaved=True,
        table_dtype=torch.float16,
    ),
)


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernel's preprocessor, in each dtype that Metal has."""
    capabilities = capabilities or Capabilities()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for case in CHECKED:
            x = case.inputs(dtype)
            yield plan.store(x.problem(case.interleaved), capabilities)
            if x.cos is not None:
                described = describe_rotate(x.key, x.key, x.cos, case.interleaved, one_position=True)
                yield plan.store(described, capabilities)
