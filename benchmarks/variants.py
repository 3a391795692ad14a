"""Attention in each of its variants, forward and backward, as the memory benchmark calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from attention import Problem
from torch import Tensor

import mps_flash_attn
from mps_flash_attn.flash_attn_interface import flash_attn_varlen_func, flash_attn_with_kvcache

__all__ = ["VARIANTS", "Variant"]

Tensors = Mapping[str, Tensor]
"""What a variant has beyond query, key and value, by the name of its argument."""


@dataclass(frozen=True)
class Variant:
    """What a variant's call has beyond a plain one of the same length N, batch, heads and head size.

    Attributes:
        groups: query heads of each key head.
        query_length: N times this many queries.
        head_dim, value_head_dim: in place of the problem's, of queries and keys, and of values.
        tensors: makes arguments of a problem; those of floating point get gradients, but for slopes.
        options: the others.
        lse: whether the log-sum-exps are asked for and have a gradient too.
        sequences: into how many the tokens are cut, as in `flash_attn_varlen_func`.
        cached: instead, one query to a cache of N keys, with its own key appended in place, without gradients.
    """

    groups: int = 1
    query_length: float = 1
    head_dim: int | None = None
    value_head_dim: int | None = None
    tensors: Callable[[Problem], Tensors] = field(default=lambda problem: {})
    options: Mapping[str, Any] = field(default_factory=dict)
    lse: bool = False
    sequences: int = 0
    cached: bool = False

    def prepare(self, problem: Problem) -> Callable[[], object]:
        """A call on random inputs, forward and backward; it returns its results."""
        batch, heads, length, dtype = problem.batch, problem.heads, problem.length, getattr(torch, problem.dtype)
        columns = self.head_dim or problem.head_dim
        shapes = (
            (batch, self.groups * heads, int(self.query_length * length), columns),
            (batch, heads, length, columns),
            (batch, heads, length, self.value_head_dim or columns),
        )
        query, key, value = (torch.randn(x, device=problem.device).to(dtype).requires_grad_() for x in shapes)
        if self.cached:
            return self._step(*(x.detach().transpose(1, 2).contiguous() for x in (query, key, value)))
        tensors = {name: x.to(problem.device) for name, x in self.tensors(problem).items()}
        learned = [
            x.requires_grad_() for name, x in tensors.items() if x.is_floating_point() and name != "alibi_slopes"
        ]

        arguments: dict[str, Any] = {**tensors, **self.options, "enable_gqa": self.groups > 1}

        def attend() -> tuple[Tensor, ...]:
            if self.sequences:
                return (self._packed(query, key, value),)
            results = mps_flash_attn.flash_attention(query, key, value, **arguments, return_lse=True)
            return results if self.lse else results[:1]

        def call() -> object:
            results = attend()
            gradients = [torch.ones_like(x) for x in results]
            return results, torch.autograd.grad(results, (query, key, value, *learned), gradients)

        return call

    def _step(self, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], object]:
        """The last token's, ``[B, L, H, D]``."""
        last = (x[:, -1:].clone() for x in (query, key, value))
        lengths = torch.full((len(key),), key.shape[1] - 1, dtype=torch.int32, device=key.device)
        q, k, v = last
        return lambda: flash_attn_with_kvcache(q, key, value, k, v, cache_seqlens=lengths, causal=True)

    def _packed(self, *operands: Tensor) -> Tensor:
        """All tokens of a batch of 1 as sequences of lengths that differ."""
        q, k, v = (x[0].transpose(0, 1) for x in operands)
        cuts = (torch.linspace(0, 1, self.sequences + 1) ** 2 * len(q)).to(torch.int32).to(q.device)
        out = flash_attn_varlen_func(q, k, v, cuts, cuts, len(q), len(q), causal=True)
        return out if isinstance(out, Tensor) else out[0]


def _one_a_key(dtype: torch.dtype) -> Callable[[Problem], Tensors]:
    """A mask with a number for each key, the same for all queries."""
    return lambda problem: {"attn_mask": torch.ones(problem.batch, 1, 1, problem.length, dtype=dtype)}


def _one_a_head(name: str) -> Callable[[Problem], Tensors]:
    return lambda problem: {name: torch.ones(problem.heads)}


VARIANTS: Mapping[str, Variant] = {
    "plain": Variant(),
    "causal": Variant(options={"is_causal": True}),
    "window": Variant(options={"window": (64, 64)}),
    "softcap": Variant(options={"softcap": 30.0}),
    "alibi": Variant(tensors=_one_a_head("alibi_slopes")),
    "sinks": Variant(tensors=_one_a_head("sinks")),
    "dropout": Variant(options={"dropout_p": 0.1}),
    "bias": Variant(tensors=_one_a_key(torch.float32)),
    "boolean-mask": Variant(tensors=_one_a_key(torch.bool)),
    "grouped-heads": Variant(groups=4),
    "fewer-queries": Variant(query_length=0.5),
    "lse": Variant(lse=True),
    "value-head-dim": Variant(head_dim=192, value_head_dim=128),
    "head-dim-320": Variant(head_dim=320),
    "sequences": Variant(sequences=5),
    "kv-cache": Variant(cached=True),
}
"""By name; biases and masks have a number for each key, as one of N x N would itself grow with the square."""
