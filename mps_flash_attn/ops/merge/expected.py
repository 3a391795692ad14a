"""What merging has to give: exactly, and as PyTorch's operations compute it in the parts' own dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .cases import Inputs

__all__ = ["NAMES", "exact", "pytorch"]

#: What `exact` and `pytorch` return, in this order.
NAMES = ("out", "lse", "d_first", "d_first_lse", "d_others", "d_others_lse")


def exact(inputs: Inputs) -> tuple[Tensor, ...]:
    """The results and gradients in float64."""
    return _results(inputs, inputs.outs.double(), inputs.lses.double(), torch.float64)


def pytorch(inputs: Inputs) -> tuple[Tensor, ...]:
    """The same in the dtypes of the parts, the result, and their log-sum-exps."""
    return _results(inputs, inputs.outs, inputs.lses, inputs.grad_out.dtype)


def _results(inputs: Inputs, outs: Tensor, lses: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    out, lse = reference.merge_forward(outs, lses)
    d_outs, d_lses = reference.merge_backward(
        inputs.grad_out.to(outs.dtype), inputs.grad_lse.to(lses.dtype), outs, lses
    )
    return out.to(dtype), lse, d_outs[0], d_lses[0], d_outs[1:], d_lses[1:]
