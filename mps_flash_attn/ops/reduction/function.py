"""The operators ``torch.ops.mps_flash_attn.reduction_{sum,amax,amax_backward}``: launches, fakes and autograd.

Tensors have any strides; none is copied. A call that was made before with the same shapes and strides costs a
dictionary look-up beyond its launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import launch
from ...runtime.base import for_device
from ..calls import PreparedCalls, geometry
from ..checks import refuse_second_derivatives
from ..dtypes import accumulator_dtype
from ..rows import Operand
from ..vmap import InDims, lead
from . import plan
from .plan import Operation

__all__ = ["amax", "amax_backward", "reduced_shape", "sum_"]

_Reduce = Callable[[Tensor, Tensor, Tensor], None]

_reductions = PreparedCalls[_Reduce]()
_backward_calls = PreparedCalls[launch.BoundLaunch]()


def reduced_shape(shape: torch.Size, dims: list[int], keepdim: bool) -> list[int]:
    """The shape of the result; ``dims`` count from 0."""
    if keepdim:
        return [1 if dim in dims else size for dim, size in enumerate(shape)]
    return [size for dim, size in enumerate(shape) if dim not in dims]


def describe(operation: Operation, x: Tensor, y: Tensor | None, dims: list[int], reduced: Tensor) -> plan.Problem:
    """The problem of a call. A number is a row of one."""
    return plan.Problem(
        tuple(x.shape) or (1,),
        tuple(dims),
        Operand.of(x if x.dim() else x[None]),
        _per_row(reduced, dims, x),
        operation,
        None if y is None else _per_row(y, dims, x),
    )


def _per_row(tensor: Tensor, dims: list[int], x: Tensor) -> Operand:
    """Of a tensor with an element a row, whether it has kept the reduced dimensions of ``x`` or not."""
    return Operand.of(tensor) if tensor.dim() == x.dim() > 0 else Operand.without(dims, tensor)


def _prepare(operation: Operation, x: Tensor, y: Tensor | None, dims: list[int], reduced: Tensor) -> _Reduce:
    runtime, device = for_device(x.device.type), x.device
    how = plan.reduction(describe(operation, x, y, dims, reduced), runtime.CAPABILITIES)
    first, *second = (launch.bind(each, runtime) for each in how.launches)

    def call(x: Tensor, y: Tensor, reduced: Tensor) -> None:
        if how.partial is None:
            first(x, y, reduced)
        else:
            partial = launch.empty(how.partial, how.number, device, runtime)
            first(x, y, partial)
            second[0](partial, partial, reduced)

    return call


def _reduce(
    operation: Operation, x: Tensor, y: Tensor | None, dims: list[int], keepdim: bool, dtype: torch.dtype
) -> Tensor:
    """The reduction of a tensor that is not empty."""
    reduced = launch.empty(tuple(reduced_shape(x.shape, dims, keepdim)), dtype, x.device, for_device(x.device.type))
    problem = (operation, geometry(x), None if y is None else geometry(y), tuple(dims), keepdim, dtype)
    call = _reductions.prepared(problem, _prepare, operation, x, y, dims, reduced)
    call(x, x if y is None else y, reduced)
    return reduced


@torch.library.custom_op("mps_flash_attn::reduction_sum", mutates_args=())
def sum_(x: Tensor, dims: list[int], keepdim: bool, dtype: torch.dtype) -> Tensor:
    """The sum over some dimensions.

    Args:
        x: any shape and strides.
        dims: from 0, each once.
        keepdim: whether these stay, with size 1.
        dtype: of the result.

    Raises:
        UnsupportedError: a problem that no plan serves.
    """
    if x.numel() == 0:
        return x.new_zeros(reduced_shape(x.shape, dims, keepdim), dtype=dtype)
    return _reduce(Operation.SUM, x, None, dims, keepdim, dtype)


@torch.library.custom_op("mps_flash_attn::reduction_amax", mutates_args=())
def amax(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    """The largest value over some dimensions, NaN where there is one; arguments as in `sum_`.

    Raises:
        ValueError: rows without elements.
        UnsupportedError: a problem that no plan serves.
    """
    if x.numel() == 0:
        empty = x.new_empty(reduced_shape(x.shape, dims, keepdim))
        if empty.numel() > 0:
            raise ValueError(f"x has shape {tuple(x.shape)}; accepted are dims {dims} with elements")
        return empty
    return _reduce(Operation.LARGEST, x, None, dims, keepdim, x.dtype)


def _prepare_backward(dims: list[int], x: Tensor, grad: Tensor, *per_row: Tensor) -> launch.BoundLaunch:
    runtime = for_device(x.device.type)
    operands = Operand.of(x if x.dim() else x[None]), Operand.of(grad if x.dim() else grad[None])
    ties, out, grad_out = (_per_row(each, dims, x) for each in per_row)
    shape = tuple(x.shape) or (1,)
    backward = plan.amax_backward(shape, tuple(dims), operands, (ties, out, grad_out), runtime.CAPABILITIES)
    return launch.bind(backward, runtime)


@torch.library.custom_op("mps_flash_attn::reduction_amax_backward", mutates_args=())
def amax_backward(grad_out: Tensor, x: Tensor, out: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    """The gradient of `amax`: equal largest elements share that of ``out`` evenly."""
    if grad_out.shape != out.shape or grad_out.dtype != out.dtype:
        raise ValueError(
            f"grad_out is {grad_out.dtype} of shape {tuple(grad_out.shape)}; accepted: that of out, "
            f"{out.dtype} of shape {tuple(out.shape)}"
        )
    runtime = for_device(x.device.type)
    grad = launch.empty_like(x, runtime)
    if x.numel() == 0:
        return grad
    ties = _reduce(Operation.TIES, x, out, dims, keepdim, accumulator_dtype(x.dtype))
    problem = (geometry(grad_out), geometry(x), geometry(out), tuple(dims), keepdim)
    call = _backward_calls.prepared(problem, _prepare_backward, dims, x, grad, ties, out, grad_out)
    call(x, out, grad_out, ties, grad)
    return grad


@sum_.register_fake
def _(x: Tensor, dims: list[int], keepdim: bool, dtype: torch.dtype) -> Tensor:
    return x.new_empty(reduced_shape(x.shape, dims, keepdim), dtype=dtype)


@amax.register_fake
def _(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    return x.new_empty(reduced_shape(x.shape, dims, keepdim))


@amax_backward.register_fake
def _(grad_out: Tensor, x: Tensor, out: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    return torch.empty_like(x)


def _save_for_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, dims, *_ = inputs
    ctx.shape, ctx.dtype = x.shape, x.dtype
    ctx.kept = reduced_shape(x.shape, dims, True)


def _sum_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Every element has the gradient of its sum: a view of stride 0, no launch."""
    return grad_out.to(ctx.dtype).reshape(ctx.kept).expand(ctx.shape), None, None, None


def _save_for_amax(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.dims, ctx.keepdim = inputs
    ctx.save_for_backward(x, output)


def _amax_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, out = ctx.saved_tensors
    grad = torch.ops.mps_flash_attn.reduction_amax_backward(grad_out, x, out, ctx.dims, ctx.keepdim)
    return grad, None, None


sum_.register_autograd(_sum_backward, setup_context=_save_for_sum)
amax.register_autograd(_amax_backward, setup_context=_save_for_amax)
refuse_second_derivatives("reduction_amax_backward", "amax")


def _inner(dims: list[int]) -> list[int]:
    return [dim + 1 for dim in dims]


@sum_.register_vmap
def _(info: Any, in_dims: InDims, x: Tensor, dims: list[int], keepdim: bool, dtype: torch.dtype) -> tuple[Tensor, int]:
    operator, x = torch.ops.mps_flash_attn.reduction_sum, lead(x, in_dims[0], info.batch_size)
    if x.dim() == 1:  # numbers: nothing is added
        return x.to(dtype, copy=True), 0
    return operator(x, _inner(dims), keepdim, dtype), 0


@amax.register_vmap
def _(info: Any, in_dims: InDims, x: Tensor, dims: list[int], keepdim: bool) -> tuple[Tensor, int]:
    operator, x = torch.ops.mps_flash_attn.reduction_amax, lead(x, in_dims[0], info.batch_size)
    return (x.clone() if x.dim() == 1 else operator(x, _inner(dims), keepdim)), 0


@amax_backward.register_vmap
def _(
    info: Any, in_dims: InDims, grad_out: Tensor, x: Tensor, out: Tensor, dims: list[int], keepdim: bool
) -> tuple[Tensor, int]:
    operator, size = torch.ops.mps_flash_attn.reduction_amax_backward, info.batch_size
    grad_out, x, out = (lead(each_, dim, size) for each_, dim in zip((grad_out, x, out), in_dims, strict=False))
    return (grad_out.clone() if x.dim() == 1 else operator(grad_out, x, out, _inner(dims), keepdim)), 0
