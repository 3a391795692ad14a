"""What cross entropy has to give for a problem: exactly, and as PyTorch computes it in the problem's own dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .cases import Inputs
from .function import class_dim

__all__ = ["exact", "exact_target_gradient", "pytorch"]


def exact(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and weight of each row, and the gradient of the logits, from the reference in float64."""
    x, dim = inputs.x.double(), class_dim(inputs.x)
    last, target = x.movedim(dim, -1), inputs.target.reshape(-1)
    rows = last.reshape(-1, x.shape[dim])
    if inputs.target.is_floating_point():
        target = inputs.target.double().movedim(dim, -1).reshape(rows.shape)
    weight = x.new_ones(x.shape[dim]) if inputs.weight is None else inputs.weight.double()
    options = (target, weight, inputs.ignore_index, inputs.label_smoothing)
    loss, row_weight = reference.cross_entropy_forward(rows, *options)
    grad = reference.cross_entropy_backward(inputs.grad_loss.double().reshape(-1), rows, *options)
    shape = last.shape[:-1]
    return loss.view(shape), row_weight.view(shape), grad.view(last.shape).movedim(-1, dim)


def exact_target_gradient(inputs: Inputs) -> Tensor:
    """The gradient of probabilities from the reference in float64."""
    x, dim = inputs.x.double(), class_dim(inputs.x)
    last = x.movedim(dim, -1)
    weight = x.new_ones(x.shape[dim]) if inputs.weight is None else inputs.weight.double()
    operands = (inputs.grad_loss.double().reshape(-1), last.reshape(-1, x.shape[dim]), weight)
    gradient = reference.cross_entropy_target_backward(*operands, inputs.label_smoothing)
    return gradient.view(last.shape).movedim(-1, dim)


def pytorch(inputs: Inputs) -> tuple[Tensor, ...]:
    """Loss of each row and gradient of the logits from PyTorch, and that of probabilities if the target holds those."""
    x, target = (each.detach().clone() for each in (inputs.x, inputs.target))
    wanted = [leaf.requires_grad_() for leaf in (x, target) if leaf.is_floating_point()]
    loss = F.cross_entropy(
        x,
        target,
        inputs.weight,
        ignore_index=inputs.ignore_index,
        reduction="none",
        label_smoothing=inputs.label_smoothing,
    )
    return loss.detach(), *torch.autograd.grad(loss, wanted, inputs.grad_loss.to(loss.dtype))
