"""Rotary position embedding written out: the one reference that tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["angles", "rope"]


def angles(positions: Tensor, rotary_dim: int, base: float) -> Tensor:
    """``[..., R / 2]`` in radians, float64: ``positions * base ** (-2 i / R)``."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=positions.device) / -max(rotary_dim, 1)
    return positions.double().unsqueeze(-1) * base**exponents


def rope(input: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:  # noqa: A002
    """Turns pairs of the first ``R`` columns, with operations in the dtypes of the arguments.

    Args:
        input: ``[..., L, D]``.
        cos, sin: ``[..., L, R / 2]``, of as many dimensions as broadcast to input's.
    """
    turned, rest = input[..., : 2 * cos.shape[-1]], input[..., 2 * cos.shape[-1] :]
    x, y = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    both = x * cos - y * sin, x * sin + y * cos
    return torch.cat([torch.stack(both, -1).flatten(-2) if interleaved else torch.cat(both, -1), rest], dim=-1)
