"""What a case has to give: from the reference in float64, and from PyTorch in the case's own dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .cases import Inputs

__all__ = ["PYTORCH", "exact", "pytorch"]

#: PyTorch's own activations.
PYTORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def exact(inputs: Inputs) -> dict[str, Tensor]:
    """``out``, ``dx`` and for a tensor ``y`` also ``dy`` in float64."""
    x, y = inputs.x.double(), inputs.y.double() if isinstance(inputs.y, Tensor) else inputs.y
    out = reference.forward(x, y, inputs.activation, inputs.combine)
    dx, dy = reference.backward(inputs.grad.double(), x, y, inputs.activation, inputs.combine)
    results = {"out": out, "dx": dx.sum_to_size(x.shape)}
    if isinstance(y, Tensor) and dy is not None:
        results["dy"] = dy.sum_to_size(y.shape)
    return results


def pytorch(inputs: Inputs) -> dict[str, Tensor]:
    """The same from PyTorch's own functions."""
    x = inputs.x.detach().requires_grad_()
    y = inputs.y.detach().requires_grad_() if isinstance(inputs.y, Tensor) else inputs.y
    out = PYTORCH[inputs.activation](x)
    if y is not None:
        out = out + y if inputs.combine == "add" else out * y
    leaves = (x, y) if isinstance(y, Tensor) else (x,)
    gradients = torch.autograd.grad(out, leaves, inputs.grad)
    return {"out": out.detach(), **dict(zip(("dx", "dy"), gradients, strict=False))}
