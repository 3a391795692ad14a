"""Every attention kernel on small problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ...launch import Capabilities
from ...self_check import SelfCheck
from . import plan
from .cases import Case
from .function import Causal
from .operands import operands, problem, words

__all__ = ["self_checks"]

_PLAIN = Case(128, 128, 64, batch=1)
#: All at once: grouped heads, odd lengths, keys hidden by their place and by a mask.
_MASKED = Case(
    70, 90, 80, query_heads=4, key_heads=2, causal=Causal.BOTTOM_RIGHT, mask="additive", mask_dtype=torch.float16
)
#: Some columns turned and some not, and queries that begin after the keys.
_ROTARY = Case(40, 60, 48, batch=1, causal=Causal.BOTTOM_RIGHT, rotation=plan.Rotation(16, False, 20))


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of the forward and backward kernels in each dtype that Metal has, made one problem at a time."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for case in (_PLAIN, _MASKED, _ROTARY):
            yield from _checks(case, dtype, capabilities)


def _checks(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Iterator[SelfCheck]:
    inputs = case.inputs(dtype)
    if inputs.attn_mask is not None:
        inputs = dataclasses.replace(inputs, attn_mask=inputs.attn_mask.contiguous())
    described, of = problem(inputs), operands(inputs)
    for launch in (plan.forward(described, capabilities), *plan.backward(described, capabilities, lse_gradient=True)):
        yield SelfCheck(words(case), dtype, launch, *of[launch.kernel])
