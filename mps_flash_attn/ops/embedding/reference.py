"""Embedding and its gradient written out: the one reference that tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["embedding_backward", "embedding_forward"]


def embedding_forward(indices: Tensor, weight: Tensor) -> Tensor:
    """``[*, D]``, the rows of ``weight [V, D]`` with the numbers in ``indices [*]``."""
    one_hot = (indices.unsqueeze(-1) == torch.arange(weight.shape[0])).to(weight.dtype)
    return one_hot @ weight


def embedding_backward(grad_output: Tensor, indices: Tensor, rows: int, padding_row: int) -> Tensor:
    """``[V, D]``, the gradient of ``weight``: the product of the transposed one-hot matrix and ``grad_output``.

    The row ``padding_row`` is 0; -1 for none.
    """
    one_hot = (indices.flatten().unsqueeze(-1) == torch.arange(rows)).to(grad_output.dtype)
    gradient = one_hot.T @ grad_output.reshape(indices.numel(), grad_output.shape[-1])
    if padding_row >= 0:
        gradient[padding_row] = 0
    return gradient
