"""Every kernel of normalisation on small problems, fed with exact results of the kernels before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ...launch import Capabilities
from ...self_check import Expected, SelfCheck, in_each_dtype
from ..dtypes import accumulator_dtype
from . import plan, reference
from .cases import Case
from .expected import exact, pytorch
from .function import describe

__all__ = ["self_checks"]

_CASES = (
    Case((70,), (768,), float_parameters=True),
    Case((7, 11), (61,), centred=False, residual=True),
    Case((2,), (9001,), residual=True, bias=False),
)


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of the forward and backward kernels in each dtype that Metal has."""
    return in_each_dtype(_CASES, _checks, capabilities)


def _checks(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Iterator[SelfCheck]:
    inputs = case.inputs(dtype)
    wanted, baseline = exact(inputs), pytorch(inputs)
    outputs = {name: Expected(name, wanted[name], baseline[name]) for name in wanted}
    x, residual, weight, bias = inputs.input, inputs.residual, inputs.weight, inputs.bias
    total = x if residual is None else x + residual
    work, columns = accumulator_dtype(dtype), case.row[-1]
    exact_statistics, statistics = (
        reference.norm_forward(t.reshape(-1, columns), None, None, inputs.eps, centred=inputs.centred)[1]
        for t in (total.double(), total.to(work))
    )
    kept = Expected("statistics", exact_statistics, statistics)
    words = f"{'LayerNorm' if case.centred else 'RMSNorm'}, {total.numel() // columns} x {columns}"
    words += ", residual" if case.residual else ""

    added = {} if residual is None else {"residual": residual}
    problem = describe({"x": x, **added}, weight, bias, inputs.dims, eps=inputs.eps, centred=inputs.centred)
    parameter = next((p for p in (weight, bias) if p is not None), x)
    read = tuple(y if t is None else t for t, y in ((x, x), (residual, x), (weight, parameter), (bias, parameter)))
    written: tuple[Expected, ...]
    if residual is None:  # the buffer of a sum is there, but nothing is written to it
        read, written = (*read, x), (outputs["y"], kept)
    else:
        written = (outputs["sum"], outputs["y"], kept)
    yield SelfCheck(words, dtype, plan.forward(problem, capabilities), read, written)

    given = exact_statistics.to(work)
    gradients = {"dy": inputs.grad} if inputs.grad_sum is None else {"dy": inputs.grad, "dsum": inputs.grad_sum}
    problem = describe({"x": total, **gradients}, weight, None, inputs.dims, centred=inputs.centred)
    read = (total, total if weight is None else weight, given, inputs.grad, [*gradients.values()][-1])
    yield SelfCheck(words, dtype, plan.backward(problem, capabilities), read, (outputs["dx"],))

    problem = describe({"x": total, "dy": inputs.grad}, None, None, inputs.dims, centred=inputs.centred)
    problem = dataclasses.replace(problem, bias=bias is not None)
    block_rows = plan.parameter_blocks(problem)[1]
    sums = Expected(
        "partial sums",
        *(
            _partials(total.to(to), inputs.grad.to(to), exact_statistics.to(to), block_rows)[: 1 + problem.bias]
            for to in (torch.float64, work)
        ),
    )
    yield SelfCheck(words, dtype, plan.parameters(problem, capabilities), (total, given, inputs.grad), (sums,))


def _partials(x: Tensor, grad: Tensor, statistics: Tensor, block_rows: int) -> Tensor:
    """The gradients of weight and bias over each block of rows, ``[2, blocks, columns]``."""
    columns = x.shape[-1]
    blocks = zip(
        *(t.reshape(-1, columns).split(block_rows) for t in (grad, x)), statistics.split(block_rows, dim=1), strict=True
    )
    return torch.stack([torch.stack(reference.norm_backward_parameters(*block)) for block in blocks], dim=1)
