"""The operators ``torch.ops.mps_flash_attn.gemm`` and ``gemm_epilogue_backward``: launches, fakes and autograd.

A matrix whose rows or columns are contiguous is read where it lies, transposed or not, broadcast or not; only one that
is strided in both is copied. A call that was made before with the same shapes and strides costs a dictionary look-up
beyond its launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import launch, tune
from ...errors import UnsupportedError
from ...launch import CHUNK_BYTES
from ...runtime.base import for_device
from ..calls import PreparedCalls, alignment, geometry
from ..dtypes import accumulator_dtype
from ..strides import coalesce
from ..vmap import InDims, each, lead
from . import plan
from .activation import Activation

__all__ = ["describe", "gemm", "gemm_epilogue_backward", "gemm_operator"]

_Call = Callable[..., tuple[Tensor, Tensor]]

_products = PreparedCalls[_Call]()
_gradients = PreparedCalls[_Call]()


def _is_direct(matrices: Tensor) -> bool:
    """Whether the rows or the columns of each matrix are contiguous."""
    return any(matrices.stride(dim) == 1 or matrices.shape[dim] <= 1 for dim in (-1, -2))


def _operand(matrices: Tensor, depth_dim: int, batch_strides: tuple[int, ...]) -> plan.Operand:
    extent_dim = -3 - depth_dim
    depth_last = matrices.stride(depth_dim) == 1 or (
        matrices.shape[depth_dim] <= 1 and matrices.stride(extent_dim) != 1
    )
    inner, outer = (depth_dim, extent_dim) if depth_last else (extent_dim, depth_dim)
    stride = matrices.stride(outer) if matrices.shape[outer] > 1 else 0
    aligned = alignment(matrices, stride, *batch_strides, matrices.shape[inner]) == CHUNK_BYTES
    return plan.Operand(depth_last, stride, batch_strides, aligned)


def _batch_strides(matrices: Tensor, batch: Sequence[int]) -> tuple[int, ...]:
    lead = matrices.shape[:-2]
    strides = (0 if n == 1 else s for n, s in zip(lead, matrices.stride(), strict=False))
    return (0,) * (len(batch) - len(lead)) + tuple(strides)


def _merged(a: Tensor, b: Tensor) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The fewest batch sizes, and the strides of both operands over them."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return coalesce(batch, _batch_strides(a, batch), _batch_strides(b, batch))


def _readable(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The operands, copied where the kernel cannot read them in place."""
    a, b = (x if _is_direct(x) else x.contiguous() for x in (a, b))
    if len(_merged(a, b)[0]) > plan.MAX_BATCH_DIMS:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = (x.expand(*batch, *x.shape[-2:]).contiguous() for x in (a, b))
    return a, b


def _require(a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    """Operands that go together."""
    for name, tensor in (("a", a), ("b", b)):
        if tensor.dim() < 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted are two dimensions or more")
    for name, other in (("b", b), *(() if bias is None else (("bias", bias),))):
        if other.dtype != a.dtype or other.device != a.device:
            raise TypeError(f"{name} is {other.dtype} on {other.device}; accepted: a's {a.dtype} on {a.device}")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"b has shape {tuple(b.shape)}; accepted are as many rows as a has columns, {a.shape[-1]}")
    if bias is not None and bias.shape != b.shape[-1:]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; accepted: one value a column, {b.shape[-1]}")


def describe(a: Tensor, b: Tensor, bias: Tensor | None, activation: int, save: bool) -> plan.Problem:
    """The problem of a call on matrices whose rows or columns are contiguous."""
    sizes, (a_strides, b_strides) = _merged(a, b)
    return plan.Problem(
        dtype=a.dtype,
        batch=sizes,
        rows=a.shape[-2],
        columns=b.shape[-1],
        depth=a.shape[-1],
        a=_operand(a, -1, a_strides),
        b=_operand(b, -2, b_strides),
        bias=bias is not None,
        activation=Activation(activation),
        save=save,
    )


def _result_shape(a: Tensor, b: Tensor) -> tuple[int, ...]:
    return (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])


def _prepare(a: Tensor, b: Tensor, bias: Tensor | None, activation: int, save: bool) -> _Call:
    _require(a, b, bias)
    runtime = for_device(a.device.type)
    shape, dtype, device = _result_shape(a, b), a.dtype, a.device
    z_shape = shape if save else (0,)
    if math.prod(shape) == 0:
        return lambda a, b, bias: (a.new_empty(shape), a.new_empty(z_shape))
    readable = _readable(a, b)
    in_place = readable[0] is a and readable[1] is b
    problem = describe(*readable, bias, activation, save)
    chosen = tune.planned(
        "gemm",
        plan.shape_class(problem),
        dtype,
        device,
        plan.Tiling,
        lambda tiling: plan.product(problem, runtime.CAPABILITIES, tiling),
    )
    product = launch.bind(chosen.product, runtime)
    reduction = None if chosen.reduction is None else launch.bind(chosen.reduction, runtime)

    def call(a: Tensor, b: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        c = launch.empty(shape, dtype, device, runtime)
        z = launch.empty(z_shape, dtype, device, runtime)
        if problem.depth == 0:  # nothing of the operands is read
            a = b = c
        elif not in_place:
            a, b = _readable(a, b)
        some_bias, some_z = c if bias is None else bias, z if save else c
        if reduction is None:
            product(a, b, some_bias, some_z, c)
        else:
            parts = launch.empty((chosen.splits, *shape), accumulator_dtype(dtype), device, runtime)
            product(a, b, some_bias, some_z, parts)
            reduction(parts, some_bias, some_z, c)
        return c, z

    return call


@torch.library.custom_op("mps_flash_attn::gemm", mutates_args=())
def gemm(a: Tensor, b: Tensor, bias: Tensor | None, activation: int, save: bool) -> tuple[Tensor, Tensor]:
    """``activation(a @ b + bias)`` and what the activation was made from.

    Args:
        a: ``[..., M, K]``.
        b: ``[..., K, N]``; batch dimensions broadcast.
        bias: ``[N]``.
        activation: an `Activation`.
        save: whether ``a @ b + bias`` is returned too, for the gradient, which computes it again otherwise.

    Returns:
        ``c [..., M, N]``, contiguous, and ``z`` like it, or empty.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not go together.
        UnsupportedError: a problem that no plan serves.
    """
    if bias is not None:
        bias = bias.contiguous()
    problem = (geometry(a), geometry(b), None if bias is None else geometry(bias), activation, save)
    return _products.prepared(problem, _prepare, a, b, bias, activation, save)(a, b, bias)


def _prepare_gradients(grad_c: Tensor, activation: int, bias: bool) -> _Call:
    runtime = for_device(grad_c.device.type)
    shape, columns = grad_c.shape, grad_c.shape[-1]
    dtype, device = grad_c.dtype, grad_c.device
    rows = grad_c.numel() // max(columns, 1)
    problem = plan.BackwardProblem(dtype, max(rows, 1), max(columns, 1), bias, Activation(activation))
    chosen = plan.backward_epilogue(problem, runtime.CAPABILITIES)
    gradients = launch.bind(chosen.product, runtime)
    reduction = None if chosen.reduction is None else launch.bind(chosen.reduction, runtime)

    def call(grad_c: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        grad_z = launch.empty(shape if activation else (0,), dtype, device, runtime)
        grad_bias = launch.empty((columns if bias else 0,), dtype, device, runtime)
        if grad_c.numel() == 0:
            return grad_z, grad_bias.zero_()
        some_z = grad_z if activation else grad_c
        if reduction is None:
            gradients(grad_c, z if activation else grad_c, some_z, some_z)
        else:
            sums = launch.empty((chosen.splits, columns), accumulator_dtype(dtype), device, runtime)
            gradients(grad_c, z if activation else grad_c, some_z, sums)
            reduction(sums, grad_bias, grad_bias, grad_bias)
        return grad_z, grad_bias

    return call


@torch.library.custom_op("mps_flash_attn::gemm_epilogue_backward", mutates_args=())
def gemm_epilogue_backward(grad_c: Tensor, z: Tensor, activation: int, bias: bool) -> tuple[Tensor, Tensor]:
    """Gradients of ``c = activation(z)`` and of the bias in ``z``.

    Args:
        grad_c: ``[..., N]``.
        z: like ``grad_c``; for ReLU ``c`` does as well; not read without an activation.
        activation: an `Activation`.
        bias: whether the bias has a gradient.

    Returns:
        ``grad_z`` like ``z``, empty without an activation, where it would be ``grad_c``; ``grad_bias [N]``, empty
        without a bias.
    """
    if activation and (z.shape != grad_c.shape or z.dtype != grad_c.dtype):
        raise ValueError(f"z is {z.dtype} of shape {tuple(z.shape)}; accepted: that of grad_c, {tuple(grad_c.shape)}")
    grad_c, z = grad_c.contiguous(), z.contiguous()
    problem = (geometry(grad_c), activation, bias)
    return _gradients.prepared(problem, _prepare_gradients, grad_c, activation, bias)(grad_c, z)


#: `gemm` without the layers that only a definition needs.
gemm_operator = torch.ops.mps_flash_attn.gemm.default


@gemm.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None, activation: int, save: bool) -> tuple[Tensor, Tensor]:
    shape = _result_shape(a, b)
    return a.new_empty(shape), a.new_empty(shape if save else (0,))


@gemm_epilogue_backward.register_fake
def _(grad_c: Tensor, z: Tensor, activation: int, bias: bool) -> tuple[Tensor, Tensor]:
    return grad_c.new_empty(grad_c.shape if activation else (0,)), grad_c.new_empty((grad_c.shape[-1] if bias else 0,))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    a, b, bias, ctx.activation, ctx.saved = inputs
    c, z = output
    ctx.save_for_backward(a, b, bias, z if ctx.saved else c if ctx.activation == Activation.RELU else None)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_c: Tensor | None, grad_saved: Tensor | None) -> tuple[Tensor | None, ...]:
    a, b, bias, z = ctx.saved_tensors
    wants_a, wants_b, wants_bias = ctx.needs_input_grad[:3]
    product, epilogue = torch.ops.mps_flash_attn.gemm, torch.ops.mps_flash_attn.gemm_epilogue_backward
    grad_z, grad_bias = grad_c, None
    if grad_c is not None and ctx.activation:
        if z is None:
            z, _ = product(a, b, bias, 0, False)
        grad_z, grad_bias = epilogue(grad_c, z, ctx.activation, wants_bias)
    if grad_saved is not None and ctx.saved:  # z is a result too, for those who call the operator
        grad_z, grad_bias = grad_saved if grad_z is None else grad_z + grad_saved, None
    if grad_z is None:
        return (None,) * 5
    if wants_bias and grad_bias is None:
        _, grad_bias = epilogue(grad_z, grad_z, 0, True)
    grad_a = product(grad_z, b.mT, None, 0, False)[0].sum_to_size(a.shape) if wants_a else None
    grad_b = product(a.mT, grad_z, None, 0, False)[0].sum_to_size(b.shape) if wants_b else None
    return grad_a, grad_b, grad_bias if wants_bias else None, None, None


gemm.register_autograd(_backward, setup_context=_save_for_backward)


def _save_for_second_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_c, _, ctx.activation, _ = inputs
    ctx.shape = grad_c.shape
    ctx.set_materialize_grads(False)


def _second_backward(ctx: Any, _grad_of_z: Tensor | None, grad_of_bias: Tensor | None) -> tuple[Tensor | None, ...]:
    if ctx.activation:
        raise UnsupportedError(
            "second derivatives of a product with an activation are not supported; accepted are first derivatives, or "
            "second ones of a product without activation"
        )
    return None if grad_of_bias is None else grad_of_bias.expand(ctx.shape), None, None, None


gemm_epilogue_backward.register_autograd(_second_backward, setup_context=_save_for_second_backward)


def _vmap(
    info: Any, in_dims: InDims, a: Tensor, b: Tensor, bias: Tensor | None, activation: int, save: bool
) -> tuple[tuple[Tensor, Tensor], tuple[int | None, int | None]]:
    """One call with the mapped dimension as the first batch dimension; a call for each where the bias is mapped."""
    size = info.batch_size
    if bias is not None and in_dims[2] is not None:
        return each(gemm_operator, size, (a, b, bias, activation, save), in_dims)
    operands = list(zip((a, b), in_dims, strict=False))
    rank = max(x.dim() - (dim is not None) for x, dim in operands)
    a, b = (x if dim is None else lead(x, dim, size, rank) for x, dim in operands)
    return gemm_operator(a, b, bias, activation, save), (0, 0 if save else None)


gemm.register_vmap(_vmap)
