"""Merging written out, and its gradients: the one reference that tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["merge_backward", "merge_forward"]


def _weights(lses: Tensor) -> Tensor:
    """``exp(lse_s - lse)``; 0 for every part of a row without keys."""
    lse = torch.logsumexp(lses, 0)
    return torch.exp(lses - torch.where(lse == -torch.inf, 0, lse))


def merge_forward(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over all keys from attentions over disjoint parts of them.

    Args:
        outs: ``[S, ..., D]``.
        lses: ``[S, ...]``, natural logarithm.

    Returns:
        ``[..., D]`` and ``[...]``, in the dtypes of ``outs`` and ``lses``.
    """
    weights = _weights(lses).to(outs.dtype).unsqueeze(-1)
    return (weights * torch.where(weights == 0, 0, outs)).sum(0), torch.logsumexp(lses, 0)


def merge_backward(grad_out: Tensor, grad_lse: Tensor | None, outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``outs`` and ``lses``: ``w_s dO`` and ``w_s (dO . (O_s - O) + dlse)``."""
    weights = _weights(lses)
    seen = torch.where(weights.unsqueeze(-1) == 0, 0, outs)
    out, _ = merge_forward(outs, lses)
    inner = (grad_out * (seen - out)).sum(-1).to(lses.dtype)
    if grad_lse is not None:
        inner = inner + torch.where(torch.isinf(lses).all(0), 0, grad_lse)
    return weights.unsqueeze(-1).to(outs.dtype) * grad_out, weights * inner
