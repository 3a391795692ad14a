"""PyTorch's attention through the patch, with gradients: the whole way that a user's call takes."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import MPSFlashAttnError
from .ops.attention.cases import Case
from .ops.attention.operands import outputs
from .ops.attention.problem import Causal
from .patch import DeviceStats, patched, stats
from .self_check import Measured, measure

__all__ = ["PROBLEM", "measure_patched"]

_CASE = Case(100, 100, 64, batch=1, causal=Causal.TOP_LEFT)

#: What is computed, in a few words.
PROBLEM = "patched, with gradients, 100 x 100, D 64, causal"


def measure_patched(device: str) -> Measured:
    """Computes attention in float32 on a device, as code does that knows nothing of this package.

    Raises:
        MPSFlashAttnError: PyTorch computed it, with the reason.
    """
    inputs = _CASE.inputs(torch.float32)
    inputs = dataclasses.replace(inputs, grad_lse=torch.zeros_like(inputs.grad_lse))
    query, key, value = (x.to(device).detach().requires_grad_() for x in (inputs.query, inputs.key, inputs.value))
    grad_out = inputs.grad_out.to(device)

    def call() -> tuple[Tensor, ...]:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out, *torch.autograd.grad(out, (query, key, value), grad_out)

    expected = [output for name, output in outputs(inputs).items() if name != "lse"]
    before = stats().devices.get(device, DeviceStats())
    with patched(devices=(device,)):
        measured = measure(call, expected, device)
    after = stats().devices.get(device, DeviceStats())
    if after.accelerated == before.accelerated:
        raise MPSFlashAttnError(f"the patch left the call to PyTorch: {', '.join(after.reasons) or 'it was not seen'}")
    return measured
