"""Every attention kernel on small problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ...launch import Capabilities
from ...self_check import Expected, SelfCheck
from . import plan
from .cases import Case
from .expected import exact, pytorch
from .operands import operands, problem, words
from .problem import Causal

__all__ = ["self_checks"]

_PLAIN = Case(128, 128, 64, batch=1)
#: All at once: grouped heads, odd lengths, keys hidden by their place and by a mask.
_MASKED = Case(
    70, 90, 80, query_heads=4, key_heads=2, causal=Causal.BOTTOM_RIGHT, mask="additive", mask_dtype=torch.float16
)
#: Some columns turned and some not, and queries that begin after the keys.
_ROTARY = Case(40, 60, 48, batch=1, causal=Causal.BOTTOM_RIGHT, rotation=plan.Rotation(16, False, 20))
#: One query and a cache of keys, which are cut into parts.
_DECODING = Case(1, 600, 64, batch=1, query_heads=4, key_heads=2)
#: All that changes scores and weights.
_MODIFIED = Case(
    70,
    90,
    64,
    batch=1,
    query_heads=4,
    key_heads=2,
    window=(20, 9),
    softcap=5.0,
    alibi=True,
    sinks=True,
    dropout_p=0.2,
)


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of the forward and backward kernels in each dtype that Metal has, made one problem at a time."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        yield _check_of_parts(_DECODING, dtype, capabilities)
        for case in (_PLAIN, _MASKED, _ROTARY, _MODIFIED):
            yield from _checks(case, dtype, capabilities)


def _checks(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Iterator[SelfCheck]:
    inputs = case.inputs(dtype)
    if inputs.attn_mask is not None:
        inputs = dataclasses.replace(inputs, attn_mask=inputs.attn_mask.contiguous())
    described, of = problem(inputs), operands(inputs)
    backward = plan.backward(described, capabilities, lse_gradient=True, mask_gradient=inputs.mask_gradient)
    for launch in (plan.forward(described, capabilities), *backward):
        yield SelfCheck(words(case), dtype, launch, *of[launch.kernel])


def _check_of_parts(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> SelfCheck:
    inputs = case.inputs(dtype)
    forward = plan.forward_in_parts(problem(inputs), capabilities)
    chunks = [
        dataclasses.replace(inputs, key=key, value=value)
        for key, value in zip(*(x.split(forward.split_keys, dim=2) for x in (inputs.key, inputs.value)), strict=True)
    ]
    of_chunks = [(exact(chunk)[:2], pytorch(chunk)[:2]) for chunk in chunks]
    (outs, lses), (their_outs, their_lses) = (
        map(torch.stack, zip(*results, strict=True)) for results in zip(*of_chunks, strict=True)
    )
    read, _ = operands(inputs)["attention_forward"]
    written = Expected("outs", outs, their_outs.to(their_lses.dtype)), Expected("lses", lses, their_lses)
    return SelfCheck(f"{words(case)}, {forward.splits} parts", dtype, forward.launch, read, written)
