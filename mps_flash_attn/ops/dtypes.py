"""What tensors hold and what kernels add up in, as PyTorch's dtypes and as Metal's names for the defines."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..launch import Capabilities

__all__ = ["ELEMENTS", "accumulator", "accumulator_dtype", "refuse_dtype", "wide_dtype"]

#: Metal's name of each floating-point dtype that kernels take; float64 is for the simulator alone.
ELEMENTS = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat", torch.float64: "double"}


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels keep sums over elements of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulator(dtype: torch.dtype) -> str:
    """Metal's name of `accumulator_dtype`."""
    return ELEMENTS[accumulator_dtype(dtype)]


def wide_dtype(tensor: Tensor, *, on_cpu: bool = False) -> torch.dtype:
    """The dtype of a result that autocast wants in float32: on GPUs, and ``on_cpu`` where PyTorch does so there too."""
    device = tensor.device.type
    autocasts = device in ("cuda", "mps") or (on_cpu and device == "cpu")
    if autocasts and torch.is_autocast_enabled(device):
        return torch.promote_types(tensor.dtype, torch.float32)
    return tensor.dtype


def refuse_dtype(dtype: torch.dtype, capabilities: Capabilities) -> None:
    """Raises an `UnsupportedError` where the device has no kernels for a dtype."""
    if dtype not in ELEMENTS or (dtype == torch.float64 and not capabilities.float64):
        raise UnsupportedError(f"dtype {dtype} has no kernel on this device")
