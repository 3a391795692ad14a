"""Cross entropy and its gradient written out: the one reference that tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cross_entropy_backward", "cross_entropy_forward", "cross_entropy_target_backward"]


def _spread(x: Tensor, target: Tensor, weight: Tensor, ignore_index: int, smoothing: float) -> Tensor:
    """What each class weighs in its row's loss, ``[rows, C]``; 0 throughout in a row that is ignored."""
    rows, classes = x.shape
    if target.is_floating_point():
        return (target * (1 - smoothing) + smoothing / classes) * weight
    on_target = torch.zeros_like(x).scatter(1, target.clamp(0, classes - 1).view(rows, 1), 1 - smoothing)
    return (on_target + smoothing / classes) * weight * (target != ignore_index).view(rows, 1)


def _log_softmax(x: Tensor) -> Tensor:
    log_p = x - x.amax(1, keepdim=True)
    return log_p - log_p.exp().sum(1, keepdim=True).log()


def cross_entropy_forward(
    x: Tensor, target: Tensor, weight: Tensor, ignore_index: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """The loss of each row and the weight of its class, 0 where it is ignored, 1 for probabilities.

    Args:
        x: logits ``[rows, C]``.
        target: classes ``[rows]``, or probabilities ``[rows, C]``.
        weight: of the classes, ``[C]``.
    """
    log_p = _log_softmax(x)
    spread = _spread(x, target, weight, ignore_index, smoothing)
    terms = torch.where(spread == 0, 0, spread * log_p)
    if target.is_floating_point():
        return -terms.sum(1), torch.ones_like(terms[:, 0])
    counts = target != ignore_index
    return -terms.sum(1), torch.where(counts, weight[target.clamp(0, x.shape[1] - 1)], 0)


def cross_entropy_backward(
    grad_loss: Tensor, x: Tensor, target: Tensor, weight: Tensor, ignore_index: int, smoothing: float
) -> Tensor:
    """The gradient of the logits, ``dloss (p sum(spread) - spread)``, from that of the rows' losses."""
    p = (x - x.amax(1, keepdim=True)).exp()
    p = p / p.sum(1, keepdim=True)
    spread = _spread(x, target, weight, ignore_index, smoothing)
    return grad_loss.view(-1, 1) * (p * spread.sum(1, keepdim=True) - spread)


def cross_entropy_target_backward(grad_loss: Tensor, x: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """The gradient of probabilities, ``[rows, C]``."""
    return -grad_loss.view(-1, 1) * (1 - smoothing) * weight * _log_softmax(x)
