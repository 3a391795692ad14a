"""Reductions written out: the one reference that tests compare with."""

from __future__ import annotations

from torch import Tensor

__all__ = ["amax_backward", "amax_forward", "sum_forward"]


def sum_forward(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The sum over dimensions that stay, with size 1."""
    for dim in dims:
        x = x.sum(dim, keepdim=True)
    return x


def amax_forward(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The largest value over dimensions that stay, with size 1; NaN where there is one."""
    for dim in dims:
        x = x.max(dim, keepdim=True).values
    return x


def amax_backward(grad_out: Tensor, x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """``[x = y] dy / ties``: equal largest elements share the gradient evenly."""
    largest = x == amax_forward(x, dims)
    return largest * grad_out / sum_forward(largest.to(grad_out.dtype), dims)
