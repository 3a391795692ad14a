"""The one tolerance rule: at most twice the error of PyTorch in the same dtype, plus a small floor."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bound", "error"]

#: The floor, relative to the largest magnitude of the reference: sums of some hundred terms kept in float32 (float64
#: for float64), in units of that epsilon, and one rounding to the dtype of the result.
_ACCUMULATED_EPSILONS = 16


def error(actual: Tensor, reference: Tensor) -> float:
    """Largest absolute difference from a float64 reference; NaN if either has one that the other lacks."""
    if actual.numel() == 0:
        return 0.0
    both_infinite = (actual == reference.to(actual.dtype)) & actual.isinf()
    difference = (actual.double() - reference).abs().masked_fill(both_infinite, 0)
    return float(difference.max())


def bound(pytorch: Tensor, reference: Tensor) -> float:
    """The largest `error` that a result may have.

    Args:
        pytorch: PyTorch's result in the dtype that is judged; integers have to be exact.
        reference: the same in float64.
    """
    if not pytorch.dtype.is_floating_point:
        return 0.0
    finite = reference[reference.isfinite()]
    magnitude = float(finite.abs().max()) if finite.numel() else 0.0
    result, accumulator = torch.finfo(pytorch.dtype), torch.finfo(torch.promote_types(pytorch.dtype, torch.float32))
    if magnitude > 0:
        magnitude = max(magnitude, result.tiny)  # below the normal numbers, rounding is no longer relative
    floor = (result.eps + _ACCUMULATED_EPSILONS * accumulator.eps) * magnitude
    if magnitude > 0:
        floor += accumulator.tiny  # GPUs may take what is below the normal numbers for 0
    return 2 * error(pytorch, reference) + floor
