"""The attention problem that the benchmarks measure, and the implementations they compare on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import baselines
import torch
from torch import Tensor
from torch.nn import functional

import mps_flash_attn

__all__ = ["IMPLEMENTATIONS", "Attention", "Problem"]

Attention = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""``(query, key, value, is_causal) -> output``, tensors [batch, heads, length, head_dim]."""


def _ours(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    return mps_flash_attn.flash_attention(query, key, value, is_causal=is_causal)


def _pytorch(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)


IMPLEMENTATIONS: Mapping[str, Attention] = {
    "ours": _ours,
    "PyTorch": _pytorch,
    "naive": baselines.naive_attention,
}


@dataclass(frozen=True)
class Problem:
    """One attention call: sizes, dtype by name (``float32``), and whether its gradients are wanted too."""

    batch: int
    heads: int
    length: int
    head_dim: int
    dtype: str
    causal: bool
    backward: bool
    device: str

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Random query, key and value, [batch, heads, length, head_dim] each."""
        shape = (self.batch, self.heads, self.length, self.head_dim)
        generator = torch.Generator().manual_seed(0)
        query, key, value = (
            torch.randn(shape, generator=generator).to(self.device, getattr(torch, self.dtype)) for _ in range(3)
        )
        return (
            query.requires_grad_(self.backward),
            key.requires_grad_(self.backward),
            value.requires_grad_(self.backward),
        )

    def call(self, attention: Attention, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        """One forward pass, with ``backward`` also the gradients of query, key and value."""
        output = attention(*inputs, self.causal)
        if self.backward:
            torch.autograd.grad(output, inputs, torch.ones_like(output))
