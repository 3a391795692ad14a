"""Products and their gradients written out: what tests compare with, in the dtype of the operands."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .activation import Activation

__all__ = ["activation_derivative", "apply_activation", "gemm", "gemm_backward"]

_TANH_SLOPE, _TANH_CUBE = math.sqrt(2 / math.pi), 0.044715


def apply_activation(z: Tensor, activation: int) -> Tensor:
    """ReLU; GELU ``z Phi(z)`` (Hendrycks and Gimpel, arXiv:1606.08415) or its tanh form; SiLU ``z sigmoid(z)``."""
    if activation == Activation.RELU:
        return z.clamp(min=0)
    if activation == Activation.GELU:
        return 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
    if activation == Activation.GELU_TANH:
        return 0.5 * z * (1 + torch.tanh(_TANH_SLOPE * (z + _TANH_CUBE * z**3)))
    if activation == Activation.SILU:
        return z * torch.sigmoid(z)
    return z


def activation_derivative(z: Tensor, activation: int) -> Tensor:
    """The derivative of `apply_activation`; of ReLU at 0 it is 0."""
    if activation == Activation.RELU:
        return (z > 0).to(z.dtype)
    if activation == Activation.GELU:
        density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density
    if activation == Activation.GELU_TANH:
        tanh = torch.tanh(_TANH_SLOPE * (z + _TANH_CUBE * z**3))
        return 0.5 * (1 + tanh) + 0.5 * z * (1 - tanh**2) * _TANH_SLOPE * (1 + 3 * _TANH_CUBE * z**2)
    if activation == Activation.SILU:
        sigmoid = torch.sigmoid(z)
        return sigmoid * (1 + z * (1 - sigmoid))
    return torch.ones_like(z)


def gemm(a: Tensor, b: Tensor, bias: Tensor | None, activation: int) -> tuple[Tensor, Tensor]:
    """``c = activation(z)`` and ``z = a @ b + bias``; ``a [..., M, K]``, ``b [..., K, N]``, ``bias [N]``."""
    z = a @ b if bias is None else a @ b + bias
    return apply_activation(z, activation), z


def gemm_backward(grad_c: Tensor, a: Tensor, b: Tensor, z: Tensor, activation: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``a``, ``b`` and ``bias``, with ``dZ = dC * activation'(z)``.

    ``dA = dZ B^T`` and ``dB = A^T dZ``, each summed over the batches that share it; ``dbias`` is the sums of dZ's
    columns.
    """
    grad_z = grad_c * activation_derivative(z, activation)
    grad_a = (grad_z @ b.mT).sum_to_size(a.shape)
    grad_b = (a.mT @ grad_z).sum_to_size(b.shape)
    return grad_a, grad_b, grad_z.flatten(0, -2).sum(0)
