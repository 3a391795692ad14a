"""What tensors hold and what kernels add up in, as PyTorch's dtypes and as Metal's names for the defines."""

from __future__ import annotations

import torch

__all__ = ["ELEMENTS", "accumulator", "accumulator_dtype"]

#: Metal's name of each floating-point dtype that kernels take; float64 is for the simulator alone.
ELEMENTS = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat", torch.float64: "double"}


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels keep sums over elements of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulator(dtype: torch.dtype) -> str:
    """Metal's name of `accumulator_dtype`."""
    return ELEMENTS[accumulator_dtype(dtype)]
