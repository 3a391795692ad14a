"""The operators of normalisation in ``torch.ops.mps_flash_attn``: launches, fakes and autograd.

``norm`` and ``add_norm`` normalise over the last ``dims`` dimensions. LayerNorm and RMSNorm differ in one argument,
``centred``. Rows are read where they lie; a tensor whose rows are not contiguous is copied. Outputs are contiguous.
A call that was made before with the same shapes and strides costs a dictionary look-up beyond its launches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import launch
from ...runtime.base import for_device
from ..calls import PreparedCalls, geometry
from ..checks import refuse_second_derivatives
from ..dtypes import accumulator_dtype
from ..reduction.function import sum_
from ..rows import MAX_RANK, Operand
from ..strides import coalesce
from ..vmap import InDims, each, lead
from . import plan

__all__ = ["add_norm", "describe", "norm", "norm_backward", "norm_backward_parameters"]

_ForwardCall = Callable[..., "tuple[Tensor, Tensor, Tensor]"]
_BackwardCall = Callable[..., Tensor]

_forward_calls = PreparedCalls[_ForwardCall]()
_backward_calls = PreparedCalls[_BackwardCall]()
_parameter_calls = PreparedCalls[_BackwardCall]()


def _require_alike(tensors: dict[str, Tensor]) -> None:
    """One shape, dtype and device."""
    first, x = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.shape != x.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted is that of {first}, {tuple(x.shape)}")
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise TypeError(
                f"{name} is {tensor.dtype} on {tensor.device}; accepted is {first}'s {x.dtype} on {x.device}"
            )


def _has_rows(tensor: Tensor, dims: int) -> bool:
    """Whether the elements of each row are neighbours in memory."""
    _, (stride,) = coalesce(tensor.shape[-dims:], tensor.stride()[-dims:])
    return stride in ((), (1,))


def _readable(tensors: dict[str, Tensor], dims: int) -> dict[str, Tensor]:
    """The tensors as kernels can read them: copied only where rows are scattered or their order takes too many dims."""
    if all(x.is_contiguous() for x in tensors.values()):
        return tensors
    _require_alike(tensors)
    tensors = {name: x if _has_rows(x, dims) else x.contiguous() for name, x in tensors.items()}
    lead, _ = coalesce(tensors["x"].shape[:-dims], *(x.stride()[:-dims] for x in tensors.values()))
    if len(lead) > MAX_RANK:
        return {name: x.contiguous() for name, x in tensors.items()}
    return tensors


def describe(
    tensors: dict[str, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    dims: int,
    *,
    eps: float = 0.0,
    centred: bool,
) -> plan.Problem:
    """The problem of a launch.

    Args:
        tensors: those of ``x residual dy dsum`` that are read, of one shape; the rows of each are contiguous.
        weight, bias: contiguous, with as many elements as a row.
        dims: of a row.
    """
    x = tensors["x"]
    _require_alike(tensors)
    if not 1 <= dims <= x.dim():
        raise ValueError(f"dims is {dims}; accepted are 1 to {x.dim()}")
    columns = math.prod(x.shape[-dims:])
    given = [p for p in (weight, bias) if p is not None]
    for p in given:
        if p.numel() != columns or p.device != x.device or p.dtype not in (x.dtype, accumulator_dtype(x.dtype)):
            raise ValueError(
                f"a parameter is {p.dtype} of {p.numel()} elements on {p.device}; accepted are {columns} of {x.dtype} "
                f"or {accumulator_dtype(x.dtype)} on {x.device}"
            )
    if len({p.dtype for p in given}) == 2:
        raise TypeError(f"weight is {given[0].dtype} and bias {given[1].dtype}; accepted is one dtype")
    lead = range(x.dim() - dims)
    return plan.Problem(
        shape=tuple(x.shape),
        dims=dims,
        operands=tuple((name, Operand.of(tensor)) for name, tensor in tensors.items()),
        parameters=tuple(Operand.without(lead, p.view(x.shape[-dims:])) for p in given),
        weight=weight is not None,
        bias=bias is not None,
        eps=eps,
        centred=centred,
    )


def _kinds(centred: bool) -> int:
    """How many statistics a row has."""
    return 3 if centred else 1


def _prepare_forward(
    tensors: dict[str, Tensor], weight: Tensor | None, bias: Tensor | None, dims: int, eps: float, centred: bool
) -> _ForwardCall:
    x = tensors["x"]
    runtime = for_device(x.device.type)
    problem = describe(tensors, weight, bias, dims, eps=eps, centred=centred)
    shape, dtype, device = tuple(x.shape), x.dtype, x.device
    kept, kept_dtype = (_kinds(centred), math.prod(x.shape[:-dims])), accumulator_dtype(dtype)
    bound = launch.bind(plan.forward(problem, runtime.CAPABILITIES), runtime) if x.numel() else None

    def call(
        x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = launch.empty(shape, dtype, device, runtime)
        total = y if residual is None else launch.empty(shape, dtype, device, runtime)
        statistics = launch.empty(kept, kept_dtype, device, runtime)
        if bound is None:
            return y, total, statistics.zero_()
        any_parameter = weight if weight is not None else bias if bias is not None else x
        bound(
            x,
            x if residual is None else residual,
            any_parameter if weight is None else weight,
            any_parameter if bias is None else bias,
            total,
            y,
            statistics,
        )
        return y, total, statistics

    return call


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: int,
    eps: float,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = _readable({"x": x} if residual is None else {"x": x, "residual": residual}, dims)
    weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
    others = tuple(None if p is None else geometry(p) for p in (tensors.get("residual"), weight, bias))
    problem = (geometry(tensors["x"]), others, dims, eps, centred)
    call = _forward_calls.prepared(problem, _prepare_forward, tensors, weight, bias, dims, eps, centred)
    return call(tensors["x"], tensors.get("residual"), weight, bias)


@torch.library.custom_op("mps_flash_attn::norm", mutates_args=())
def norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    """LayerNorm or RMSNorm.

    Args:
        x: of any shape.
        weight, bias: as many elements as the last ``dims`` dimensions of ``x``, in its dtype, or in float32.
        dims: dimensions, from the last, that the mean is taken over.
        eps: added to the variance.
        centred: LayerNorm; otherwise the mean counts as 0, which is RMSNorm.

    Returns:
        ``y`` of the shape of ``x``, and ``statistics [3 or 1, rows]``: ``rstd`` and, if ``centred``, ``mean`` and what
        its rounding left, float32 (float64 for float64).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not go together.
        UnsupportedError: a problem that no plan serves.
    """
    y, _, statistics = _forward(x, None, weight, bias, dims, eps, centred)
    return y, statistics


@torch.library.custom_op("mps_flash_attn::add_norm", mutates_args=())
def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm` of ``x + residual``, which is rounded to their dtype first.

    Returns:
        ``y``, the sum, and ``statistics`` as of `norm`.
    """
    return _forward(x, residual, weight, bias, dims, eps, centred)


def _require_statistics(x: Tensor, statistics: Tensor, dims: int, centred: bool) -> None:
    shape = (_kinds(centred), math.prod(x.shape[:-dims]))
    if statistics.shape != shape or statistics.dtype != accumulator_dtype(x.dtype):
        raise ValueError(
            f"statistics is {statistics.dtype} of shape {tuple(statistics.shape)}; accepted is that of norm, {shape}"
        )


@torch.library.custom_op("mps_flash_attn::norm_backward", mutates_args=())
def norm_backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    dims: int,
    centred: bool,
) -> Tensor:
    """The gradient of what was normalised.

    Args:
        grad: of ``y``.
        grad_sum: of the sum that `add_norm` returns; ``None`` for zeros.
        x: of `norm`, or the sum that `add_norm` returned.
        statistics: as the forward operator returned them.
    """
    _require_statistics(x, statistics, dims, centred)
    tensors = {"x": x, "dy": grad} if grad_sum is None else {"x": x, "dy": grad, "dsum": grad_sum}
    tensors = _readable(tensors, dims)
    weight, statistics = None if weight is None else weight.contiguous(), statistics.contiguous()
    weight_geometry = None if weight is None else geometry(weight)
    problem = (*map(geometry, tensors.values()), weight_geometry, dims, centred)
    call = _backward_calls.prepared(problem, _prepare_backward, tensors, weight, dims, centred)
    return call(*tensors.values(), weight=weight, statistics=statistics)


def _prepare_backward(tensors: dict[str, Tensor], weight: Tensor | None, dims: int, centred: bool) -> _BackwardCall:
    x = tensors["x"]
    runtime = for_device(x.device.type)
    problem = describe(tensors, weight, None, dims, centred=centred)
    shape, dtype, device = tuple(x.shape), x.dtype, x.device
    bound = launch.bind(plan.backward(problem, runtime.CAPABILITIES), runtime) if x.numel() else None

    def call(x: Tensor, dy: Tensor, dsum: Tensor | None = None, *, weight: Tensor | None, statistics: Tensor) -> Tensor:
        dx = launch.empty(shape, dtype, device, runtime)
        if bound is not None:
            bound(x, x if weight is None else weight, statistics, dy, dy if dsum is None else dsum, dx)
        return dx

    return call


@torch.library.custom_op("mps_flash_attn::norm_backward_parameters", mutates_args=())
def norm_backward_parameters(
    grad: Tensor, x: Tensor, statistics: Tensor, dims: int, centred: bool, dtype: torch.dtype, bias: bool
) -> Tensor:
    """The gradients of weight and, if wanted, bias: ``[1 or 2, columns]`` in ``dtype``.

    Sums over rows are kept in float32 (float64 for float64) and added in one order.
    """
    _require_statistics(x, statistics, dims, centred)
    if dtype not in (x.dtype, accumulator_dtype(x.dtype)):
        raise TypeError(f"dtype is {dtype}; accepted are {x.dtype} and {accumulator_dtype(x.dtype)}")
    tensors, statistics = _readable({"x": x, "dy": grad}, dims), statistics.contiguous()
    x = tensors["x"]
    if x.numel() == 0:
        return x.new_zeros((1 + bias, math.prod(x.shape[-dims:])), dtype=dtype)
    problem = (*map(geometry, tensors.values()), dims, centred, bias)
    call = _parameter_calls.prepared(problem, _prepare_parameters, tensors, dims, centred, bias)
    return sum_(call(*tensors.values(), statistics), [1], False, dtype)


def _prepare_parameters(tensors: dict[str, Tensor], dims: int, centred: bool, bias: bool) -> _BackwardCall:
    """A call that returns the sums over each block of rows."""
    runtime, device = for_device(tensors["x"].device.type), tensors["x"].device
    problem = dataclasses.replace(describe(tensors, None, None, dims, centred=centred), bias=bias)
    shape, dtype = (1 + bias, plan.parameter_blocks(problem)[0], problem.rows.length), accumulator_dtype(problem.dtype)
    bound = launch.bind(plan.parameters(problem, runtime.CAPABILITIES), runtime)

    def call(x: Tensor, dy: Tensor, statistics: Tensor) -> Tensor:
        partials = launch.empty(shape, dtype, device, runtime)
        bound(x, statistics, dy, partials)
        return partials

    return call


@norm.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    rows = math.prod(x.shape[: x.dim() - dims])
    return x.new_empty(x.shape), x.new_empty((_kinds(centred), rows), dtype=accumulator_dtype(x.dtype))


@add_norm.register_fake
def _(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows = math.prod(x.shape[: x.dim() - dims])
    statistics = x.new_empty((_kinds(centred), rows), dtype=accumulator_dtype(x.dtype))
    return x.new_empty(x.shape), x.new_empty(x.shape), statistics


@norm_backward.register_fake
def _(
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    dims: int,
    centred: bool,
) -> Tensor:
    return x.new_empty(x.shape)


@norm_backward_parameters.register_fake
def _(grad: Tensor, x: Tensor, statistics: Tensor, dims: int, centred: bool, dtype: torch.dtype, bias: bool) -> Tensor:
    return x.new_empty((1 + bias, math.prod(x.shape[x.dim() - dims :])), dtype=dtype)


def _save(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor) -> None:
    ctx.shapes = tuple(None if p is None else p.shape for p in (weight, bias))
    ctx.dtype = next((p.dtype for p in (weight, bias) if p is not None), None)
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, statistics)


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, ctx.dims, _, ctx.centred = inputs
    _save(ctx, x, weight, bias, output[1])


def _save_add_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, bias, ctx.dims, _, ctx.centred = inputs
    _save(ctx, output[1], weight, bias, output[2])


def _gradients(
    ctx: Any, grad: Tensor | None, grad_sum: Tensor | None, x_wanted: bool, weight_wanted: bool, bias_wanted: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of what was normalised, of weight and of bias."""
    x, weight, statistics = ctx.saved_tensors
    if grad is None:
        return grad_sum, None, None
    dx = dweight = dbias = None
    if x_wanted:
        dx = torch.ops.mps_flash_attn.norm_backward(grad, grad_sum, x, weight, statistics, ctx.dims, ctx.centred)
    if weight_wanted or bias_wanted:
        sums = torch.ops.mps_flash_attn.norm_backward_parameters(
            grad, x, statistics, ctx.dims, ctx.centred, ctx.dtype, bias_wanted
        )
        dweight = sums[0].view(ctx.shapes[0]) if weight_wanted else None
        dbias = sums[1].view(ctx.shapes[1]) if bias_wanted else None
    return dx, dweight, dbias


def _norm_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, grad, None, *ctx.needs_input_grad[:3]), None, None, None


def _add_norm_backward(ctx: Any, grad: Tensor | None, grad_sum: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    x_wanted, residual_wanted, *parameters_wanted = ctx.needs_input_grad[:4]
    dx, dweight, dbias = _gradients(ctx, grad, grad_sum, x_wanted or residual_wanted, *parameters_wanted)
    return dx, dx, dweight, dbias, None, None, None


norm.register_autograd(_norm_backward, setup_context=_save_norm)
add_norm.register_autograd(_add_norm_backward, setup_context=_save_add_norm)
refuse_second_derivatives("norm_backward", "normalisation")
refuse_second_derivatives("norm_backward_parameters", "normalisation")


def _statistics_inside(statistics: Tensor, size: int) -> Tensor:
    """Statistics of all rows, ``[3 or 1, rows]``, as those of each call."""
    return statistics.unflatten(1, (size, -1)) if statistics.shape[1] else statistics.view(len(statistics), size, 0)


@norm.register_vmap
def _(info: Any, in_dims: InDims, x: Tensor, *others: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    operator, size = torch.ops.mps_flash_attn.norm, info.batch_size
    if any(dim is not None for dim in in_dims[1:3]):
        return each(operator, size, (x, *others), in_dims)
    y, statistics = operator(lead(x, in_dims[0], size), *others)
    return (y, _statistics_inside(statistics, size)), (0, 1)


@add_norm.register_vmap
def _(
    info: Any, in_dims: InDims, x: Tensor, residual: Tensor, *others: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    operator, size = torch.ops.mps_flash_attn.add_norm, info.batch_size
    if any(dim is not None for dim in in_dims[2:4]):
        return each(operator, size, (x, residual, *others), in_dims)
    y, total, statistics = operator(lead(x, in_dims[0], size), lead(residual, in_dims[1], size), *others)
    return (y, total, _statistics_inside(statistics, size)), (0, 0, 1)


@norm_backward.register_vmap
def _(
    info: Any,
    in_dims: InDims,
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    *others: Any,
) -> tuple[Tensor, int]:
    operator, size = torch.ops.mps_flash_attn.norm_backward, info.batch_size
    if in_dims[3] is not None:
        return each(operator, size, (grad, grad_sum, x, weight, statistics, *others), in_dims)
    grad, x = lead(grad, in_dims[0], size), lead(x, in_dims[2], size)
    grad_sum = None if grad_sum is None else lead(grad_sum, in_dims[1], size)
    of_rows = lead(statistics, in_dims[4], size).transpose(0, 1).flatten(1)
    return operator(grad, grad_sum, x, weight, of_rows, *others), 0


@norm_backward_parameters.register_vmap
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[Tensor, int]:
    return each(torch.ops.mps_flash_attn.norm_backward_parameters, info.batch_size, args, in_dims)
