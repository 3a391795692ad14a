"""The attention operators on the inputs of a case."""

from __future__ import annotations

from torch import Tensor

from mps_flash_attn.ops.attention.cases import Inputs
from mps_flash_attn.ops.attention.expected import NAMES, exact, pytorch
from mps_flash_attn.ops.attention.function import attention_backward, attention_forward
from tests.tolerance import assert_accurate

__all__ = ["assert_as_expected", "backward", "forward", "ours"]


def forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """``out lse``."""
    operands = (inputs.query, inputs.key, inputs.value, inputs.attn_mask)
    out, lse = attention_forward(*operands, inputs.scale, int(inputs.causal), *inputs.modifiers)
    return out, lse


def backward(inputs: Inputs, out: Tensor, lse: Tensor) -> tuple[Tensor | None, ...]:
    """``dq dk dv dmask dsinks``, the last two where there is something to have a gradient."""
    operands = (inputs.query, inputs.key, inputs.value, inputs.attn_mask, out, lse, inputs.mask_gradient)
    dq, dk, dv, dmask, dsinks = attention_backward(
        inputs.grad_out, inputs.grad_lse, *operands, inputs.scale, int(inputs.causal), *inputs.modifiers
    )
    return dq, dk, dv, dmask if inputs.mask_gradient else None, None if inputs.modifiers.sinks is None else dsinks


def ours(inputs: Inputs) -> tuple[Tensor | None, ...]:
    """All of both, in the order of ``expected.NAMES``."""
    out, lse = forward(inputs)
    return out, lse, *backward(inputs, out, lse)


def assert_as_expected(inputs: Inputs, results: tuple[Tensor | None, ...], words: str = "") -> None:
    """`ours` against float64 and PyTorch; ``words`` say of what problem."""
    for name, actual, baseline, reference in zip(NAMES, results, pytorch(inputs), exact(inputs), strict=True):
        if reference is None or baseline is None or actual is None:
            assert reference is baseline is actual is None, name
        elif name == "dmask" and actual.shape[3] == 1 and inputs.query.element_size() == 2:
            # One column shifts all scores of a row, which the weights do not see: but for that of lse, its gradient is
            # what rounding the output to 16 bits leaves of a sum that is 0. In float32 it is measured.
            assert actual.isfinite().all()
        else:
            assert_accurate(f"{name}{words}", actual, baseline, reference)
