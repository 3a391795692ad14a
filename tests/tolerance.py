"""The package's tolerance rule as an assertion."""

from __future__ import annotations

from torch import Tensor

from mps_flash_attn import tolerance

__all__ = ["assert_accurate"]


def assert_accurate(name: str, actual: Tensor, pytorch: Tensor, reference: Tensor) -> None:
    """Fails unless ``actual`` is about as close to the float64 ``reference`` as PyTorch's result in the same dtype."""
    assert actual.shape == reference.shape, f"{name}: shape {tuple(actual.shape)}, not {tuple(reference.shape)}"
    assert actual.dtype == pytorch.dtype, f"{name}: dtype {actual.dtype}, not {pytorch.dtype}"
    found, bound = tolerance.error(actual, reference), tolerance.bound(pytorch, reference)
    assert found <= bound, f"{name}: error {found:.3e} above {bound:.3e}"
