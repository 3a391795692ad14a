"""The operators ``torch.ops.mps_flash_attn.{quantize,dequantize}``: launches and fakes. They have no gradients.

Operators hold stored numbers as bytes, whatever dtype users see them in: ``Format.dtype`` is a view. Rows may have any
strides but for the stride 1 of their last dimension; otherwise, and where their numbering takes more dimensions than
kernels know, they are copied.
"""

# ruff: noqa: A001, A002 -- `input` is what PyTorch calls it

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import launch
from ...runtime.base import for_device
from ..calls import PreparedCalls, alignment, geometry
from ..checks import require_match, require_shape, require_tensor
from ..dtypes import ELEMENTS
from ..strides import coalesce, dense_rows
from ..vmap import InDims, lead
from . import plan
from .formats import FORMATS, GROUP_SIZES, Format

__all__ = ["dequantize", "describe_dequantize", "describe_quantize", "quantize"]

_quantize_calls = PreparedCalls[Callable[[Tensor], tuple[Tensor, Tensor]]]()
_dequantize_calls = PreparedCalls[Callable[[Tensor, Tensor], Tensor]]()


def describe_quantize(input: Tensor, format: str, group_size: int) -> plan.Problem:
    """The problem of a call of `quantize`."""
    sizes, (strides,) = coalesce(input.shape[:-1], input.stride()[:-1])
    columns = input.shape[-1]
    step = alignment(input, columns, *strides)
    return plan.Problem(input.dtype, format, group_size, sizes or (1,), columns, strides or (0,), step=step)


def describe_dequantize(stored: Tensor, scale: Tensor, output: Tensor, format: str, group_size: int) -> plan.Problem:
    """The problem of a call of `dequantize`; ``output`` is contiguous."""
    sizes, strides = coalesce(stored.shape[:-1], stored.stride()[:-1], scale.stride()[:-1])
    stored_strides, scale_strides = (own or (0,) for own in strides)
    columns = output.shape[-1]
    step = alignment(output, columns)
    return plan.Problem(output.dtype, format, group_size, sizes or (1,), columns, stored_strides, scale_strides, step)


def _readable(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, or contiguous copies of those with strided rows, and of all whose rows kernels cannot number."""
    dense = [dense_rows(x) for x in tensors]
    sizes, _ = coalesce(dense[0].shape[:-1], *(x.stride()[:-1] for x in dense))
    return tuple(dense if len(sizes) <= plan.MAX_RANK else (x.contiguous() for x in dense))


def _format(name: str, group_size: int) -> Format:
    """The format of this name.

    Raises:
        ValueError: there is none, or none with such groups.
    """
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; accepted are {', '.join(map(repr, FORMATS))}")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size is {group_size!r}; accepted are {', '.join(map(str, GROUP_SIZES))}")
    return FORMATS[name]


def _prepare_quantize(input: Tensor, format: str, group_size: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    runtime, device = for_device(input.device.type), input.device
    problem = describe_quantize(input, format, group_size)
    bound = launch.bind(plan.quantize(problem, runtime.CAPABILITIES), runtime)
    stored_shape = (*input.shape[:-1], FORMATS[format].row_bytes(problem.columns))
    scale_shape = (*input.shape[:-1], problem.groups)

    def call(input: Tensor) -> tuple[Tensor, Tensor]:
        stored = torch.empty(stored_shape, dtype=torch.uint8, device=device)
        scale = launch.empty(scale_shape, torch.float32, device, runtime)
        bound(input, stored, scale)
        return stored, scale

    return call


@torch.library.custom_op("mps_flash_attn::quantize", mutates_args=())
def quantize(input: Tensor, format: str, group_size: int) -> tuple[Tensor, Tensor]:
    """Rows in 8 or 4 bits a number.

    Args:
        input: ``[..., D]``, D from 1.
        format: a name in ``FORMATS``.
        group_size: columns that share a scale, in formats of 4 bits.

    Returns:
        uint8 ``[..., D]`` or ``[..., ceil(D / 2)]``, and float32 ``[..., 1]`` or ``[..., ceil(D / group_size)]``; the
        value of a column is its scale times the number that its bits stand for. Both are contiguous.

    Raises:
        ValueError, TypeError: a format that does not exist, or a tensor that is no matrix of numbers.
        UnsupportedError: a problem that no plan serves.
    """
    stored = _format(format, group_size)
    require_tensor("input", input)
    if input.dim() == 0 or input.shape[-1] == 0:
        raise ValueError(f"input has shape {tuple(input.shape)}; accepted are [..., D] with D from 1")
    if input.numel() == 0:
        columns = input.shape[-1]
        return (
            input.new_empty(*input.shape[:-1], stored.row_bytes(columns), dtype=torch.uint8),
            input.new_empty(*input.shape[:-1], stored.groups(columns, group_size), dtype=torch.float32),
        )
    (input,) = _readable(input)
    problem = geometry(input), format, group_size
    return _quantize_calls.prepared(problem, _prepare_quantize, input, format, group_size)(input)


def _prepare_dequantize(
    stored: Tensor, scale: Tensor, format: str, group_size: int, columns: int, dtype: torch.dtype
) -> Callable[[Tensor, Tensor], Tensor]:
    runtime, device, shape = for_device(stored.device.type), stored.device, (*stored.shape[:-1], columns)
    output = torch.empty(shape, dtype=dtype, device=device)
    problem = describe_dequantize(stored, scale, output, format, group_size)
    bound = launch.bind(plan.dequantize(problem, runtime.CAPABILITIES), runtime)

    def call(stored: Tensor, scale: Tensor) -> Tensor:
        output = launch.empty(shape, dtype, device, runtime)
        bound(stored, scale, output)
        return output

    return call


@torch.library.custom_op("mps_flash_attn::dequantize", mutates_args=())
def dequantize(stored: Tensor, scale: Tensor, format: str, group_size: int, columns: int, dtype: torch.dtype) -> Tensor:
    """The values that `quantize` stored.

    Args:
        stored, scale: as `quantize` returns them, any strides.
        format, group_size: as there.
        columns: D.
        dtype: of the result.

    Returns:
        ``[..., D]``, contiguous.

    Raises:
        ValueError, TypeError, UnsupportedError: as `quantize`.
    """
    of = _format(format, group_size)
    require_tensor("stored", stored, (torch.uint8,), "uint8")
    require_tensor("scale", scale, (torch.float32,), "float32")
    require_match("scale", scale, "stored", stored, dtype=False)
    if columns < 1 or stored.dim() == 0 or stored.shape[-1] != of.row_bytes(columns):
        raise ValueError(
            f"stored has shape {tuple(stored.shape)}; accepted for {columns} columns of {format} are "
            f"[..., {of.row_bytes(columns)}]"
        )
    require_shape("scale", scale, (*stored.shape[:-1], of.groups(columns, group_size)), "[..., groups]")
    if dtype not in ELEMENTS:
        raise TypeError(f"dtype is {dtype}; accepted are {', '.join(map(str, ELEMENTS))}")
    if stored.numel() == 0:
        return stored.new_empty(*stored.shape[:-1], columns, dtype=dtype)
    stored, scale = _readable(stored, scale)
    problem = geometry(stored), geometry(scale), format, group_size, columns, dtype
    call = _dequantize_calls.prepared(problem, _prepare_dequantize, stored, scale, format, group_size, columns, dtype)
    return call(stored, scale)


@quantize.register_fake
def _(input: Tensor, format: str, group_size: int) -> tuple[Tensor, Tensor]:
    of, columns = FORMATS[format], input.shape[-1]
    return (
        input.new_empty(*input.shape[:-1], of.row_bytes(columns), dtype=torch.uint8),
        input.new_empty(*input.shape[:-1], of.groups(columns, group_size), dtype=torch.float32),
    )


@dequantize.register_fake
def _(stored: Tensor, scale: Tensor, format: str, group_size: int, columns: int, dtype: torch.dtype) -> Tensor:
    return stored.new_empty(*stored.shape[:-1], columns, dtype=dtype)


@quantize.register_vmap
def _(info: Any, in_dims: InDims, input: Tensor, *options: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    return torch.ops.mps_flash_attn.quantize(lead(input, in_dims[0], info.batch_size), *options), (0, 0)


@dequantize.register_vmap
def _(info: Any, in_dims: InDims, stored: Tensor, scale: Tensor, *options: Any) -> tuple[Tensor, int]:
    stored, scale = (lead(x, dim, info.batch_size) for x, dim in zip((stored, scale), in_dims, strict=False))
    return torch.ops.mps_flash_attn.dequantize(stored, scale, *options), 0
