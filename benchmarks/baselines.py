"""What our attention is compared with: the textbook formula, and PyTorch's own Metal kernel in the simulator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["naive_attention"]


def naive_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    """Attention as the textbook writes it: the [length, length] matrices exist, and autograd keeps them.

    Tensors are [batch, heads, length, head_dim].
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if is_causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ value
