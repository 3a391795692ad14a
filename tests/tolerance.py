"""The one tolerance rule: at most twice the error of PyTorch in the same dtype, plus a small floor."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assert_accurate", "error"]

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


def assert_accurate(name: str, actual: Tensor, pytorch: Tensor, reference: Tensor) -> None:
    """Fails unless ``actual`` is about as close to the float64 ``reference`` as PyTorch's result in the same dtype."""
    assert actual.shape == reference.shape, f"{name}: shape {tuple(actual.shape)}, not {tuple(reference.shape)}"
    assert actual.dtype == pytorch.dtype, f"{name}: dtype {actual.dtype}, not {pytorch.dtype}"
    finite = reference[reference.isfinite()]
    magnitude = float(finite.abs().max()) if finite.numel() else 0.0
    accumulator = torch.finfo(torch.promote_types(actual.dtype, torch.float32))
    floor = (torch.finfo(actual.dtype).eps + _ACCUMULATED_EPSILONS * accumulator.eps) * magnitude
    bound = 2 * error(pytorch, reference) + floor
    found = error(actual, reference)
    assert found <= bound, f"{name}: error {found:.3e} above {bound:.3e} (largest value {magnitude:.3e})"
