"""What a case has to give: from the reference in float64, and from PyTorch in the case's own dtype."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .cases import Inputs

__all__ = ["exact", "pytorch"]


def exact(inputs: Inputs) -> dict[str, Tensor]:
    """``y sum dx dweight dbias`` in float64, those that there are."""
    total = inputs.input.double() if inputs.residual is None else inputs.input.double() + inputs.residual.double()
    lead = total.dim() - inputs.dims
    flat = math.prod(total.shape[:lead]), math.prod(total.shape[lead:])
    x, grad = total.reshape(flat), inputs.grad.double().reshape(flat)
    weight, bias = (None if p is None else p.double().flatten() for p in (inputs.weight, inputs.bias))
    y, statistics = reference.norm_forward(x, weight, bias, inputs.eps, centred=inputs.centred)
    dx = reference.norm_backward(grad, x, weight, statistics).view_as(total)
    dweight, dbias = reference.norm_backward_parameters(grad, x, statistics)
    results = {"y": y.view_as(total), "dx": dx if inputs.grad_sum is None else dx + inputs.grad_sum.double()}
    if inputs.residual is not None:
        results["sum"] = total
    if inputs.weight is not None:
        results["dweight"] = dweight.view_as(inputs.weight)
    if inputs.bias is not None:
        results["dbias"] = dbias.view_as(inputs.bias)
    return results


def pytorch(inputs: Inputs) -> dict[str, Tensor]:
    """The same from PyTorch's own functions."""
    names = [name for name in ("input", "weight", "bias") if getattr(inputs, name) is not None]
    leaves = {name: getattr(inputs, name).detach().requires_grad_() for name in names}
    x = leaves["input"] if inputs.residual is None else leaves["input"] + inputs.residual
    shape = x.shape[x.dim() - inputs.dims :]
    if inputs.centred:
        y = F.layer_norm(x, shape, leaves.get("weight"), leaves.get("bias"), inputs.eps)
    else:
        y = F.rms_norm(x, shape, leaves.get("weight"), inputs.eps)
    outputs = (y,) if inputs.grad_sum is None else (y, x)
    grads = (inputs.grad,) if inputs.grad_sum is None else (inputs.grad, inputs.grad_sum)
    gradients = torch.autograd.grad(outputs, tuple(leaves.values()), grads)
    results = {"y": y.detach(), **dict(zip(("dx", *(f"d{name}" for name in names[1:])), gradients, strict=True))}
    if inputs.residual is not None:
        results["sum"] = x.detach()
    return results
