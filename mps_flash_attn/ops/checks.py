"""Checks that the public functions share. Each names the argument, what came and what is accepted."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from .dtypes import ELEMENTS

__all__ = ["require_dim", "require_match", "require_number", "require_shape", "require_tensor"]

_FLOATING = "float32, float16, bfloat16, or float64 on the simulator"


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
