"""Checks that the public functions share. Each names the argument, what came and what is accepted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import UnsupportedError
from .dtypes import ELEMENTS

__all__ = [
    "derivatives_supported",
    "refuse_second_derivatives",
    "require_dim",
    "require_match",
    "require_number",
    "require_reverse_mode",
    "require_shape",
    "require_tensor",
]

_FLOATING = "float32, float16, bfloat16, or float64 on the simulator"
_VMAP = torch._C._functorch.TransformType.Vmap


def require_tensor(
    name: str, value: object, dtypes: Collection[torch.dtype] = ELEMENTS, words: str = _FLOATING
) -> None:
    """A dense tensor of one of these dtypes.

    Raises:
        TypeError: another kind of object, or another dtype.
        ValueError: a sparse or nested tensor.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; accepted is a Tensor")
    if value.is_nested or value.layout is not torch.strided:
        kind = "nested" if value.is_nested else f"of layout {value.layout}"
        raise ValueError(f"{name} is {kind}; accepted are dense strided tensors")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {value.dtype}; accepted are {words}")


def require_match(name: str, tensor: Tensor, other: str, reference: Tensor, *, dtype: bool = True) -> None:
    """The device of another tensor, and its dtype unless that is free.

    Raises:
        TypeError: the dtypes differ.
        ValueError: the devices differ.
    """
    if tensor.device != reference.device:
        raise ValueError(f"{name} is on {tensor.device} and {other} on {reference.device}; accepted is one device")
    if dtype and tensor.dtype != reference.dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype} and {other} {reference.dtype}; accepted is one dtype")


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...], words: str) -> None:
    """Exactly this shape, described by ``words``.

    Raises:
        ValueError: another shape.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted is {words}, {shape}")


def require_dim(name: str, dim: object, rank: int) -> int:
    """The dimension counted from the front.

    Raises:
        TypeError: no int.
        ValueError: outside the tensor's dimensions.
    """
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"{name} is a {type(dim).__name__}; accepted is an int")
    rank = max(rank, 1)
    if not -rank <= dim < rank:
        raise ValueError(f"{name} is {dim}; accepted are {-rank} to {rank - 1}")
    return dim % rank


def require_number(name: str, value: object, *, least: float | None = None) -> float:
    """A finite real number, not below ``least``.

    Raises:
        TypeError: no number.
        ValueError: NaN, infinite or too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a {type(value).__name__}; accepted is a number")
    if not -torch.inf < value < torch.inf or (least is not None and value < least):
        raise ValueError(f"{name} is {value}; accepted are finite numbers{'' if least is None else f' from {least}'}")
    return float(value)


def derivatives_supported() -> bool:
    """False inside forward-mode differentiation and the transforms of ``torch.func`` other than ``vmap``.

    There PyTorch would take the result of a custom operator for a constant.
    """
    if forward_ad._current_level >= 0:
        return False
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return True
    return all(layer.key() == _VMAP for layer in torch._C._functorch.get_interpreter_stack())


def require_reverse_mode(operation: str) -> None:
    """Differentiation that reaches the operation's backward operator, or none.

    Raises:
        UnsupportedError: any other.
    """
    if not derivatives_supported():
        raise UnsupportedError(
            f"forward-mode differentiation and torch.func gradients of {operation} are not supported; accepted are "
            "torch.autograd.grad and backward()"
        )


def refuse_second_derivatives(operator: str, operation: str) -> None:
    """Has the gradient of a backward operator, ``mps_flash_attn::<operator>``, raise an `UnsupportedError`."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise UnsupportedError(f"second derivatives of {operation} are not supported; accepted are first derivatives")

    torch.library.register_autograd(f"mps_flash_attn::{operator}", refuse)
