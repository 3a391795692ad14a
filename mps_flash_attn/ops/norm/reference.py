"""Normalisation and its gradients written out: the one reference that tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["norm_backward", "norm_backward_parameters", "norm_forward"]


def norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, centred: bool
) -> tuple[Tensor, Tensor]:
    """``(x - mean) rstd weight + bias`` over the last dimension, the mean 0 unless ``centred``.

    Args:
        x: ``[rows, columns]``.
        weight, bias: ``[columns]``.

    Returns:
        ``y`` like ``x``, and ``statistics [3 or 1, rows]``: ``rstd`` and, if ``centred``, the mean in two parts, of
        which the second is 0 here.
    """
    mean = x.mean(-1) if centred else torch.zeros_like(x[:, 0])
    deviation = x - mean[:, None]
    rstd = (deviation.square().mean(-1) + eps).rsqrt()
    y = deviation * rstd[:, None]
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y, torch.stack((rstd, mean, torch.zeros_like(mean)) if centred else (rstd,))


def _normalised(x: Tensor, statistics: Tensor) -> Tensor:
    rstd, *mean = statistics
    return (x - sum(mean)[:, None] if mean else x) * rstd[:, None]


def norm_backward(grad: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor) -> Tensor:
    """The gradient of ``x``: ``rstd (g - mean(g) - xhat mean(g xhat))`` with ``g = grad weight``."""
    g = grad if weight is None else grad * weight
    xhat = _normalised(x, statistics)
    value = g - xhat * (g * xhat).mean(-1, keepdim=True)
    if len(statistics) > 1:
        value = value - g.mean(-1, keepdim=True)
    return value * statistics[0][:, None]


def norm_backward_parameters(grad: Tensor, x: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias, ``[columns]`` each."""
    return (grad * _normalised(x, statistics)).sum(0), grad.sum(0)
