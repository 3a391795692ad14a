"""Merging two and more parts, rows without keys among them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...launch import Capabilities
from ...self_check import Expected, SelfCheck, in_each_dtype
from . import plan
from .cases import Case
from .expected import NAMES, exact, pytorch
from .function import describe

__all__ = ["self_checks"]

_CASES = (Case((70, 64)), Case((5, 7, 40), parts=5, unseen=0.2))


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of the forward and backward kernels in each dtype that Metal has."""
    return in_each_dtype(_CASES, _checks, capabilities)


def _checks(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Iterator[SelfCheck]:
    inputs = case.inputs(dtype)
    out, lse, *gradients = map(Expected, NAMES, exact(inputs), pytorch(inputs))
    d_first, d_first_lse, d_others, d_others_lse = gradients
    tensors = inputs.first, inputs.first_lse, inputs.others, inputs.others_lse
    read = inputs.first, inputs.others, inputs.first_lse, inputs.others_lse
    words = f"{case.parts} parts of {' x '.join(map(str, case.shape))}"
    forward = plan.forward(describe(*tensors, out.pytorch, lse.pytorch), capabilities)
    described = describe(*tensors, inputs.grad_out, inputs.grad_lse, *tensors, lse_gradient=True)
    yield SelfCheck(words, dtype, forward, read, (out, lse))
    yield SelfCheck(
        words,
        dtype,
        plan.backward(described, capabilities),
        (*read, inputs.grad_out, inputs.grad_lse),
        (d_first, d_others, d_first_lse, d_others_lse),
    )
