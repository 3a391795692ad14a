"""Embedding and its gradient written out: the one reference that tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["embedding_backward", "embedding_forward", "renormalise"]


def embedding_forward(indices: Tensor, weight: Tensor) -> Tensor:
    """``[*, D]``, the rows of ``weight [V, D]`` with the numbers in ``indices [*]``."""
    one_hot = (indices.unsqueeze(-1) == torch.arange(weight.shape[0])).to(weight.dtype)
    return one_hot @ weight


def renormalise(indices: Tensor, weight: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """``weight`` with the rows that are in ``indices`` divided so that their norm is at most ``max_norm``."""
    norms = torch.linalg.vector_norm(weight, norm_type, dim=1)
    used = (indices.flatten().unsqueeze(-1) == torch.arange(weight.shape[0])).any(0)
    return weight * torch.where(used & (norms > max_norm), max_norm / (norms + 1e-7), 1).unsqueeze(-1)


def embedding_backward(
    grad_output: Tensor, indices: Tensor, rows: int, padding_row: int, by_count: bool = False
) -> Tensor:
    """``[V, D]``, the gradient of ``weight``: the product of the transposed one-hot matrix and ``grad_output``.

    The row ``padding_row`` is 0; -1 for none. With ``by_count`` each row is divided by the number of its tokens.
    """
    one_hot = (indices.flatten().unsqueeze(-1) == torch.arange(rows)).to(grad_output.dtype)
    gradient = one_hot.T @ grad_output.reshape(indices.numel(), grad_output.shape[-1])
    if by_count:
        gradient /= one_hot.sum(0).clamp(min=1).unsqueeze(-1)
    if padding_row >= 0:
        gradient[padding_row] = 0
    return gradient
