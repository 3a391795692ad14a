"""The activations that a product may end with, by PyTorch's names."""

from __future__ import annotations

import enum
from typing import Literal

__all__ = ["Activation", "ActivationName"]

ActivationName = Literal["relu", "gelu", "gelu_tanh", "silu"]


class Activation(enum.IntEnum):
    """What the operators are told."""

    NONE = 0
    RELU = 1
    GELU = 2
    GELU_TANH = 3
    SILU = 4

    @property
    def struct(self) -> str:
        """Its name in ``msl/activation.h``."""
        return ("Identity", "Relu", "Gelu", "GeluTanh", "Silu")[self]

    @property
    def needs_input(self) -> bool:
        """Whether the gradient needs what the activation was made from: ReLU's sign is that of its result."""
        return self in (Activation.GELU, Activation.GELU_TANH, Activation.SILU)
