"""Elementwise operations and their derivatives written out: the one reference that tests compare with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["backward", "forward"]

_Function = Callable[[Tensor], Tensor]


def _normal(x: Tensor) -> Tensor:
    return torch.special.erfc(-x * math.sqrt(0.5)) / 2


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _tanh_share(x: Tensor) -> Tensor:
    return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def _tanh_slope(x: Tensor) -> Tensor:
    share = _tanh_share(x)
    return share + x * share * (1 - share) * 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x.square())


#: Value and derivative of each activation.
_ACTIVATIONS: dict[str, tuple[_Function, _Function]] = {
    "identity": (lambda x: x, torch.ones_like),
    "relu": (lambda x: x.clamp(min=0), lambda x: (x > 0).to(x.dtype)),
    "relu_squared": (lambda x: x.clamp(min=0).square(), lambda x: 2 * x.clamp(min=0)),
    "gelu": (lambda x: x * _normal(x), lambda x: _normal(x) + x * _density(x)),
    "gelu_tanh": (lambda x: x * _tanh_share(x), _tanh_slope),
    "silu": (
        lambda x: x * torch.sigmoid(x),
        lambda x: torch.sigmoid(x) * (1 + x * torch.sigmoid(-x)),
    ),
}


def forward(x: Tensor, y: Tensor | float | None, activation: str, combine: str) -> Tensor:
    """``combine(activation(x), y)``, broadcast."""
    value = _ACTIVATIONS[activation][0](x)
    if y is None or combine == "none":
        return value
    return value + y if combine == "add" else value * y


def backward(
    grad: Tensor, x: Tensor, y: Tensor | float | None, activation: str, combine: str
) -> tuple[Tensor, Tensor | None]:
    """Gradients of ``x`` and of a tensor ``y``, before sums over broadcast dimensions."""
    value, slope = _ACTIVATIONS[activation]
    by_first = grad * y if combine == "mul" and y is not None else grad
    by_second = grad * value(x) if combine == "mul" else grad
    return by_first * slope(x), by_second if isinstance(y, Tensor) else None
