"""Attention problems that tests and benchmarks share: shapes, layouts and masks, and the tensors they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from ..dtypes import accumulator_dtype
from ..quantize.formats import Stored
from ..rope import reference as rope
from ..rope.api import rope_tables
from . import plan, reference
from .problem import Causal, Modifiers

__all__ = ["HEAD_SIZES", "LENGTHS", "Case", "Inputs", "LayoutName", "MaskName", "launches"]

HEAD_SIZES = (1, 8, 17, 32, 40, 64, 72, 80, 96, 128, 160, 192, 256)
LENGTHS = (0, 1, 7, 31, 64, 77, 200, 513)

#: How the tensors lie in memory: contiguous; ``[B, L, H, D]`` seen as ``[B, H, L, D]``; a slice of a wider tensor, so
#: that rows start at odd addresses; one batch expanded to all.
LayoutName = Literal["contiguous", "transposed", "sliced", "expanded"]

#: The mask's kind and the dimensions it is broadcast over: keys are always full but in ``column``.
MaskName = Literal["none", "boolean", "boolean-keys", "additive", "additive-head", "additive-column", "additive-row"]


NO_MODIFIERS = Modifiers()


@dataclass(frozen=True)
class Inputs:
    """The arguments of ``attention_forward`` and a gradient for each of its outputs.

    Attributes:
        first_head: that these are numbered from, which decides what is dropped, where they are a sequence of several.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    scale: float
    causal: Causal
    grad_out: Tensor
    grad_lse: Tensor
    modifiers: Modifiers = NO_MODIFIERS
    first_head: int = 0

    @property
    def mask_gradient(self) -> bool:
        """Whether the mask has a gradient."""
        return self.attn_mask is not None and self.attn_mask.dtype != torch.bool

    def scoring(self) -> reference.Scoring:
        """The same for the reference."""
        m = self.modifiers
        shape = (*self.query.shape[:3], self.key.shape[2])
        return reference.Scoring(
            scale=self.scale,
            causal=int(self.causal),
            softcap=m.softcap,
            window=(m.window_left, m.window_right),
            bottom_right=m.bottom_right,
            alibi_slopes=m.alibi_slopes,
            sinks=m.sinks,
            dropout_p=m.dropout_p,
            dropped=None if m.seed is None else reference.dropped(shape, m.seed, m.dropout_p, self.first_head),
        )

    def turned(self) -> Inputs:
        """The problem without rotation that has the same results: query and key are turned, and rounded."""
        m = self.modifiers
        if m.cos is None or m.sin is None:
            return self
        tables = m.cos, m.sin

        def turn(x: Tensor, first: int) -> Tensor:
            cos, sin = (table[first : first + x.shape[2]] for table in tables)
            return rope.rope(x.to(cos.dtype), cos, sin, m.interleaved).to(x.dtype)

        query, key = turn(self.query, m.query_position), turn(self.key, 0)
        return dataclasses.replace(self, query=query, key=key, modifiers=m._replace(cos=None, sin=None))


@dataclass(frozen=True)
class Case:
    """One problem; sizes as in the kernels: ``query [B, Hq, Lq, D]``, ``key`` and ``value [B, Hkv, Lk, D or Dv]``."""

    queries: int
    keys: int
    head_size: int
    batch: int = 2
    query_heads: int = 2
    key_heads: int = 2
    causal: Causal = Causal.NONE
    layout: LayoutName = "contiguous"
    mask: MaskName = "none"
    mask_dtype: torch.dtype = torch.float32
    scale: float | None = None
    rotation: plan.Rotation | None = None
    window: tuple[int, int] = (-1, -1)
    bottom_right: bool = False
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    dropout_p: float = 0.0
    value_head_size: int | None = None

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> Inputs:
        """Random tensors from PyTorch's generator: standard normal values, and about a quarter of the keys masked."""
        query, key, value, grad_out = (
            self._tensor(heads, length, size, dtype, device)
            for heads, length, size in (
                (self.query_heads, self.queries, self.head_size),
                (self.key_heads, self.keys, self.head_size),
                (self.key_heads, self.keys, self.value_head_size or self.head_size),
                (self.query_heads, self.queries, self.value_head_size or self.head_size),
            )
        )
        grad_lse = self.head_size**0.5 * torch.randn(query.shape[:3], device=device)  # about as large as dO V^T
        return Inputs(
            query=query,
            key=key,
            value=value,
            attn_mask=self._mask(device),
            scale=self.head_size**-0.5 if self.scale is None else self.scale,
            causal=self.causal,
            grad_out=grad_out,
            grad_lse=grad_lse.to(accumulator_dtype(dtype)),
            modifiers=self._modifiers(accumulator_dtype(dtype), device),
        )

    def _modifiers(self, dtype: torch.dtype, device: str) -> Modifiers:
        heads = (self.batch, self.query_heads)
        modifiers = Modifiers(
            alibi_slopes=torch.rand(heads, dtype=dtype, device=device) if self.alibi else None,
            sinks=torch.randn(heads, dtype=dtype, device=device) if self.sinks else None,
            seed=torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=device) if self.dropout_p else None,
            dropout_p=self.dropout_p,
            softcap=self.softcap,
            window_left=self.window[0],
            window_right=self.window[1],
            bottom_right=self.bottom_right,
        )
        if self.rotation is None:
            return modifiers
        position = self.rotation.query_position
        rows = max(position + self.queries, self.keys)
        cos, sin = rope_tables(rows, 2 * self.rotation.pairs, dtype=dtype, device=device)
        return modifiers._replace(cos=cos, sin=sin, interleaved=self.rotation.interleaved, query_position=position)

    def _tensor(self, heads: int, length: int, size: int, dtype: torch.dtype, device: str) -> Tensor:
        batch = self.batch
        if self.layout == "transposed":
            return torch.randn(batch, length, heads, size, device=device).to(dtype).transpose(1, 2)
        if self.layout == "sliced":
            return torch.randn(batch, heads + 1, length + 2, size + 3, device=device).to(dtype)[:, 1:, 1:-1, 1:-2]
        if self.layout == "expanded":
            return torch.randn(1, heads, length, size, device=device).to(dtype).expand(batch, -1, -1, -1)
        return torch.randn(batch, heads, length, size, device=device).to(dtype)

    def _mask(self, device: str) -> Tensor | None:
        shape = (self.batch, self.query_heads, self.queries, self.keys)
        if self.mask == "none":
            return None
        if self.mask == "boolean":
            return torch.rand(shape, device=device) > 0.25
        if self.mask == "boolean-keys":
            return torch.rand(self.batch, 1, 1, self.keys, device=device) > 0.25
        if self.mask == "additive-head":
            return torch.randn(1, *shape[1:], device=device).to(self.mask_dtype)
        if self.mask == "additive-column":
            return torch.randn(*shape[:3], 1, device=device).to(self.mask_dtype)
        if self.mask == "additive-row":
            return torch.randn(self.batch, 1, 1, self.keys, device=device).to(self.mask_dtype)
        bias = torch.randn(self.keys, self.queries, device=device).to(self.mask_dtype).t()[None, None]
        return bias.masked_fill(torch.rand(bias.shape, device=device) > 0.75, -torch.inf)


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernels' preprocessor, in each dtype that Metal has.

    The head of 17 stands for the tilings that are no default.
    """
    capabilities = capabilities or Capabilities()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for head_size, value_head_size, aligned, mask, causal_offset, rotation, modified in (
            (64, 64, True, None, None, None, False),
            (64, 64, False, torch.bool, 0, None, True),
            (80, 80, True, dtype, None, plan.Rotation(32, interleaved=False, query_position=30), False),
            (288, 256, False, dtype, 0, None, False),
            (17, 24, False, torch.float32, None, plan.Rotation(8, interleaved=True, query_position=0), True),
        ):
            problem = plan.Problem(
                dtype=dtype,
                batch=2,
                query_heads=4,
                key_heads=2,
                queries=100,
                keys=130,
                head_size=head_size,
                value_head_size=value_head_size,
                scale=0.125,
                causal_offset=causal_offset,
                mask=None if mask is None else plan.MaskLayout(mask, (1, 1, 1, 1), (2, 1, 100 if aligned else 1, 130)),
                layouts=(plan.Layout((4 * 100 * 300, 100 * 300, 300), aligned=aligned),) * 8,
                rotation=rotation,
                window_offset=-40 if modified else None,
                softcap=30.0 if modified else 0.0,
                alibi=modified,
                sinks=modified,
                dropout_p=0.1 if modified else 0.0,
            )
            yield plan.forward(problem, capabilities)
            additive = mask is not None and mask != torch.bool
            yield from plan.backward(problem, capabilities, lse_gradient=aligned, mask_gradient=additive)
            if aligned and mask is None:
                yield from _from_tables(problem, capabilities)
            if head_size == 17:
                yield plan.forward_in_parts(dataclasses.replace(problem, keys=10_000, batch=1), capabilities).launch
                for kernel in (plan.FORWARD, plan.BACKWARD_DQ, plan.BACKWARD_DKV):
                    all_staged = plan.Tiling(16, 2, 2, plan.Hold.STAGED, buffers=kernel.most_buffers)
                    nothing_staged = plan.Tiling(16, 2, 2, stage_values=False, staged=False, heads_first=True)
                    for tiling in (all_staged, nothing_staged):
                        yield plan.walk(problem, capabilities, kernel, tiling)


def _from_tables(problem: plan.Problem, capabilities: Capabilities) -> Iterator[Launch]:
    """Packed sequences, forward and backward, and caches of each kind."""
    packed = dataclasses.replace(problem, batch=1, sequences=plan.Sequences(3, 64, 80, of_queries=True))
    yield plan.forward(packed, capabilities)
    yield from plan.backward(packed, capabilities, lse_gradient=False)
    sequences = plan.Sequences(2, 100, 96, of_queries=False)
    for stored in Stored:
        group = 32 if stored in (Stored.INT4, Stored.NF4) else 0
        page_size = 16 if stored in (Stored.ELEMENTS, Stored.INT4) else 0
        cache = plan.Cache(stored, group, page_size=page_size, pages=20, table_pages=8 if page_size else 0)
        yield plan.forward(dataclasses.replace(problem, sequences=sequences, cache=cache), capabilities)
