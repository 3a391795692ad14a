"""Every embedding kernel on small problems, fed with exact results of the kernels before it: each stands for itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ...launch import Capabilities
from ...self_check import Expected, SelfCheck, in_each_dtype
from . import plan, reference
from .cases import Case
from .function import describe_backward, describe_forward, describe_renormalise

__all__ = ["self_checks"]

_PADDING_ROW = 2


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of the forward and backward kernels in each dtype that Metal has."""
    cases = Case((4, 100), 700, 64, "skewed"), Case((77,), 50, 17, index_dtype=torch.int32)
    return in_each_dtype(cases, _checks, capabilities)


def _checks(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Iterator[SelfCheck]:
    inputs = case.inputs(dtype)
    indices, weight, grad_output = inputs.input, inputs.weight, inputs.grad_output
    words = f"{indices.numel()} tokens, V {case.rows}, D {case.columns}, {str(case.index_dtype).removeprefix('torch.')}"
    output = Expected(
        "output", reference.embedding_forward(indices, weight.double()), F.embedding(indices.long(), weight)
    )
    forward = plan.forward(describe_forward(indices, weight), capabilities)
    yield SelfCheck(words, dtype, forward, (indices, weight), (output,))

    counted = torch.where(indices.flatten() == _PADDING_ROW, case.rows, indices.flatten()).long()
    order = counted.argsort(stable=True).int()
    starts = counted.bincount(minlength=case.rows + 1)[: case.rows].cumsum(0).int()
    starts = torch.cat([starts.new_zeros(1), starts])
    exact = reference.embedding_backward(grad_output.double(), indices, case.rows, _PADDING_ROW)
    weight.requires_grad_()
    (pytorch,) = torch.autograd.grad(F.embedding(indices.long(), weight, _PADDING_ROW), weight, grad_output)
    on_order, on_sum = plan.backward(describe_backward(grad_output, indices, case.rows, _PADDING_ROW), capabilities)
    ordered = order[: starts[-1]]  # without the tokens of the padding row
    integers = (Expected("starts", starts.double(), starts), Expected("order", ordered.double(), ordered))
    yield SelfCheck(words, dtype, on_order, (indices,), integers)
    yield SelfCheck(words, dtype, on_sum, (grad_output, starts, order), (Expected("grad_weight", exact, pytorch),))

    # Of rows that are all found, and all too long: the kernel writes no others.
    every, longest = torch.arange(case.rows), 0.1
    theirs = torch.embedding_renorm_(weight.detach().clone(), every, longest, 2.0)
    renormalised = Expected("weight", reference.renormalise(every, weight.detach().double(), longest, 2.0), theirs)
    _, on_norm = plan.renormalise(describe_renormalise(every, weight, longest, 2.0), capabilities)
    yield SelfCheck(words, dtype, on_norm, (weight.detach(), torch.arange(case.rows + 1).int()), (renormalised,))
