"""Softmax and its gradient written out: the one reference that tests compare with."""

from __future__ import annotations

from torch import Tensor

__all__ = ["softmax_backward", "softmax_forward"]


def softmax_forward(x: Tensor, dim: int, log: bool) -> Tensor:
    """``exp(x - m) / l``, or its logarithm ``x - m - log l``: ``m`` the largest, ``l`` the sum of ``exp(x - m)``."""
    if x.numel() == 0:
        return x.clone()
    shifted = x - x.amax(dim, keepdim=True)
    total = shifted.exp().sum(dim, keepdim=True)
    return shifted - total.log() if log else shifted.exp() / total


def softmax_backward(grad_out: Tensor, out: Tensor, dim: int, log: bool) -> Tensor:
    """The Jacobian's product: ``y (dy - sum(y dy))``, or ``dy - exp(y) sum(dy)`` for the logarithm."""
    if log:
        return grad_out - out.exp() * grad_out.sum(dim, keepdim=True)
    return out * (grad_out - (out * grad_out).sum(dim, keepdim=True))
