"""Both cross entropy kernels on small problems, the backward one fed with exact results: each stands for itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ...launch import Capabilities
from ...self_check import Expected, SelfCheck, in_each_dtype
from . import plan
from .cases import Case, Inputs
from .expected import exact, exact_target_gradient, pytorch
from .function import class_dim, describe

__all__ = ["self_checks"]

#: Rows of a part of a simdgroup, with every option; of a threadgroup; side by side.
_CASES = (
    Case((7, 24), weighted=True, label_smoothing=0.1, ignored=True),
    Case((3, 5001), values="offset"),
    Case((2, 30, 600), ignored=True),
    Case((7, 24), weighted=True, label_smoothing=0.1, probabilities=torch.float32),
)


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of the forward and backward kernels in each dtype that Metal has."""
    return in_each_dtype(_CASES, _checks, capabilities)


def _checks(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Iterator[SelfCheck]:
    inputs = case.inputs(dtype)
    x, target, weight = inputs.x, inputs.target, None if inputs.weight is None else inputs.weight.float()
    grad_loss = inputs.grad_loss.float()
    exact_loss, row_weight, exact_grad = exact(inputs)
    in_float = dataclasses.replace(inputs, x=x.float(), weight=weight, grad_loss=grad_loss)
    loss, (_, grad, *of_target) = pytorch(in_float)[0], pytorch(inputs)
    statistics = _statistics(inputs)
    options = (weight, case.ignore_index, case.label_smoothing)
    words = f"logits {' x '.join(map(str, case.shape))}{', every option' if case.weighted else ''}"
    if of_target:
        words += ", probabilities"
    forward = plan.forward(describe({"x": x, "target": target, "loss": loss}, *options), capabilities)
    yield SelfCheck(
        words,
        dtype,
        forward,
        (x, target, x if weight is None else weight),
        (
            Expected("loss", exact_loss, loss),
            Expected("row_weight", row_weight, row_weight.float()),
            Expected("statistics", statistics, statistics.float()),
        ),
    )
    tensors = {"x": x, "target": target, "loss": loss, "d_loss": grad_loss, "dx": grad}
    read: tuple[Tensor, ...] = (x, target, x if weight is None else weight, grad_loss, statistics.float())
    results = [Expected("grad", exact_grad, grad)]
    if of_target:
        tensors["d_target"] = of_target[0]
        results.insert(0, Expected("grad_target", exact_target_gradient(inputs), of_target[0]))
    else:
        read += (x,)  # nothing is written to it
    backward = plan.backward(describe(tensors, *options), capabilities)
    yield SelfCheck(words, dtype, backward, read, tuple(results))


def _statistics(inputs: Inputs) -> Tensor:
    """What the forward kernel keeps for the backward one: ``m``, ``1 / l`` and the factor of ``p``."""
    dim = class_dim(inputs.x)
    x = inputs.x.double()
    m = x.amax(dim)
    weight = x.new_ones(x.shape[dim]) if inputs.weight is None else inputs.weight.double()
    smoothing = inputs.label_smoothing
    if inputs.target.is_floating_point():
        of_target = (weight * inputs.target.double().movedim(dim, -1)).sum(-1)
        factor = (1 - smoothing) * of_target + smoothing * weight.mean()
    else:
        counts = inputs.target != inputs.ignore_index
        factor = counts * ((1 - smoothing) * weight[inputs.target * counts] + smoothing * weight.mean())
    return torch.stack([m, 1 / (x - m.unsqueeze(dim)).exp().sum(dim), factor])
