"""What cross entropy has to give for a problem: exactly, and as PyTorch computes it in the problem's own dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .cases import Inputs
from .function import class_dim

__all__ = ["exact", "pytorch"]


def exact(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and weight of each row, and the gradient of the logits, from the reference in float64."""
    x, dim = inputs.x.double(), class_dim(inputs.x)
    last = x.movedim(dim, -1)
    rows, target = last.reshape(-1, x.shape[dim]), inputs.target.reshape(-1)
    weight = x.new_ones(x.shape[dim]) if inputs.weight is None else inputs.weight.double()
    options = (target, weight, inputs.ignore_index, inputs.label_smoothing)
    loss, row_weight = reference.cross_entropy_forward(rows, *options)
    grad = reference.cross_entropy_backward(inputs.grad_loss.double().reshape(-1), rows, *options)
    shape = inputs.target.shape
    return loss.view(shape), row_weight.view(shape), grad.view(last.shape).movedim(-1, dim)


def pytorch(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Loss of each row and gradient of the logits from PyTorch."""
    leaf = inputs.x.detach().clone().requires_grad_()
    loss = F.cross_entropy(
        leaf,
        inputs.target,
        inputs.weight,
        ignore_index=inputs.ignore_index,
        reduction="none",
        label_smoothing=inputs.label_smoothing,
    )
    return loss.detach(), torch.autograd.grad(loss, leaf, inputs.grad_loss)[0]
