"""The operators ``torch.ops.mps_flash_attn.embedding_{forward,backward,renormalise}``: launches, fakes and autograd.

Indices may have any shape and strides, and so may the weight and the gradient but for the stride 1 of their last
dimension; otherwise they are copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import launch
from ...runtime.base import for_device
from ..calls import PreparedCalls, alignment, geometry
from ..checks import refuse_second_derivatives, require_match, require_tensor
from ..strides import coalesce, dense_rows
from ..vmap import InDims, each, lead
from . import plan

__all__ = [
    "NO_PADDING",
    "describe_backward",
    "describe_forward",
    "describe_renormalise",
    "embedding_backward",
    "embedding_forward",
    "embedding_renormalise",
]

#: The padding row of a weight that has none.
NO_PADDING = -1

_Call = Callable[[Tensor, Tensor], Tensor]
_Renormalise = Callable[[Tensor, Tensor], None]

_forward_calls = PreparedCalls[_Call]()
_backward_calls = PreparedCalls[_Call]()
_renormalise_calls = PreparedCalls[_Renormalise]()


def _tokens(tensor: Tensor, rank: int, columns: int = 0) -> plan.Tokens:
    """Where the elements, or rows, that the first dimensions number lie."""
    sizes, (strides,) = coalesce(tensor.shape[:rank], tensor.stride()[:rank])
    return plan.Tokens(sizes or (1,), strides or (0,), alignment(tensor, columns, *strides))


def _few_dimensions(tensor: Tensor, rank: int) -> Tensor:
    """The tensor, or a contiguous copy where its first dimensions cannot be merged to those that kernels know."""
    sizes, _ = coalesce(tensor.shape[:rank], tensor.stride()[:rank])
    return tensor if len(sizes) <= plan.MAX_RANK else tensor.contiguous()


def describe_forward(indices: Tensor, weight: Tensor) -> plan.Problem:
    """The problem of a call of `embedding_forward`."""
    rows, columns = weight.shape
    row_stride = 0 if rows == 1 else weight.stride(0)
    return plan.Problem(
        dtype=weight.dtype,
        index_dtype=indices.dtype,
        indices=_tokens(indices, indices.dim()),
        rows=rows,
        columns=columns,
        row_stride=row_stride,
        step=alignment(weight, row_stride, columns),
    )


def describe_renormalise(indices: Tensor, weight: Tensor, max_norm: float, norm_type: float) -> plan.Problem:
    """The problem of a call of `embedding_renormalise`."""
    problem = describe_forward(indices, weight)
    columns = weight.stride(1) if weight.shape[1] > 1 else 1
    return dataclasses.replace(problem, column_stride=columns, max_norm=max_norm, norm_type=norm_type)


def describe_backward(
    grad_output: Tensor, indices: Tensor, rows: int, padding_row: int, by_count: bool = False
) -> plan.Problem:
    """The problem of a call of `embedding_backward`."""
    columns = grad_output.shape[-1]
    return plan.Problem(
        dtype=grad_output.dtype,
        index_dtype=indices.dtype,
        indices=_tokens(indices, indices.dim()),
        rows=rows,
        columns=columns,
        gradient=_tokens(grad_output, indices.dim(), columns),
        padding_row=padding_row,
        by_count=by_count,
    )


def _require_indices(indices: Tensor) -> None:
    require_tensor("input", indices, plan.INDICES, "int32 and int64")


def _require_range(indices: Tensor, rows: int) -> None:
    outside = (indices < 0) | (indices >= rows)
    if indices.numel() and outside.any():
        raise IndexError(
            f"input holds the index {int(indices[outside][0])}; accepted are 0 to {rows - 1}, rows of weight"
        )


def _require_operands(indices: Tensor, weight: Tensor) -> None:
    _require_indices(indices)
    require_tensor("weight", weight)
    require_match("input", indices, "weight", weight, dtype=False)
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; accepted are two dimensions [V, D]")
    _require_range(indices, weight.shape[0])


def _prepare_forward(indices: Tensor, weight: Tensor) -> _Call:
    runtime = for_device(weight.device.type)
    bound = launch.bind(plan.forward(describe_forward(indices, weight), runtime.CAPABILITIES), runtime)
    shape, dtype, device = (*indices.shape, weight.shape[1]), weight.dtype, weight.device

    def call(indices: Tensor, weight: Tensor) -> Tensor:
        output = launch.empty(shape, dtype, device, runtime)
        bound(indices, weight, output)
        return output

    return call


@torch.library.custom_op("mps_flash_attn::embedding_forward", mutates_args=())
def embedding_forward(
    indices: Tensor, weight: Tensor, padding_row: int, by_count: bool = False, sparse: bool = False
) -> Tensor:
    """The rows of the weight with these numbers. What follows the weight is for its gradient and changes nothing here.

    Args:
        indices: int32 or int64, any shape ``[*]``.
        weight: ``[V, D]``.
        padding_row: the row whose gradient is 0, or ``NO_PADDING``.
        by_count: each row's gradient is divided by the number of its tokens.
        sparse: the gradient is a sparse tensor of the tokens' rows; not with ``by_count``.

    Returns:
        ``[*, D]``, contiguous.

    Raises:
        IndexError: an index outside ``0 .. V - 1``. To know, a GPU's queue is waited for.
        ValueError, TypeError: shapes, dtypes or devices that do not go together.
        UnsupportedError: a problem that no plan serves.
    """
    _require_operands(indices, weight)
    if indices.numel() * weight.shape[1] == 0:
        return weight.new_empty(*indices.shape, weight.shape[1])
    indices, weight = _few_dimensions(indices, indices.dim()), dense_rows(weight)
    problem = geometry(indices), geometry(weight)
    return _forward_calls.prepared(problem, _prepare_forward, indices, weight)(indices, weight)


def _prepare_renormalise(indices: Tensor, weight: Tensor, max_norm: float, norm_type: float) -> _Renormalise:
    runtime, rows, device, tokens = for_device(weight.device.type), len(weight), weight.device, indices.numel()
    problem = describe_renormalise(indices, weight, max_norm, norm_type)
    run_order, run = (launch.bind(each, runtime) for each in plan.renormalise(problem, runtime.CAPABILITIES))

    def call(indices: Tensor, weight: Tensor) -> None:
        starts = torch.empty(rows + 1, dtype=torch.int32, device=device)
        run_order(indices, starts, torch.empty(tokens, dtype=torch.int32, device=device))
        run(weight, starts, weight)

    return call


@torch.library.custom_op("mps_flash_attn::embedding_renormalise", mutates_args={"weight"})
def embedding_renormalise(weight: Tensor, indices: Tensor, max_norm: float, norm_type: float) -> None:
    """Divides the rows of the weight with these numbers, in place, so that none has a larger norm; see the README.

    Args:
        weight: ``[V, D]``, no two elements in one place.
        indices: as in `embedding_forward`; each row is divided once, however often it occurs.
        max_norm: not negative.
        norm_type: the order of the norm, above 0; ``inf`` for the largest magnitude.

    Raises:
        IndexError, ValueError, TypeError, UnsupportedError: as `embedding_forward`, before anything is written.
    """
    _require_operands(indices, weight)
    if not max_norm >= 0 or not norm_type > 0:
        raise ValueError(f"max_norm is {max_norm} and norm_type {norm_type}; accepted are from 0 and above 0")
    if any(size > 1 and stride == 0 for size, stride in zip(weight.shape, weight.stride(), strict=True)):
        raise ValueError(f"weight has strides {weight.stride()}; with max_norm, one that is not expanded is accepted")
    if indices.numel() * weight.shape[1] == 0:
        return
    indices = _few_dimensions(indices, indices.dim())
    problem = geometry(indices), geometry(weight), max_norm, norm_type
    call = _renormalise_calls.prepared(problem, _prepare_renormalise, indices, weight, max_norm, norm_type)
    call(indices, weight)


def _prepare_backward(grad_output: Tensor, indices: Tensor, rows: int, padding_row: int, by_count: bool) -> _Call:
    runtime = for_device(grad_output.device.type)
    shape, dtype, device, tokens = (rows, grad_output.shape[-1]), grad_output.dtype, grad_output.device, indices.numel()
    problem = describe_backward(grad_output, indices, rows, padding_row, by_count)
    on_order, on_sum = plan.backward(problem, runtime.CAPABILITIES)
    run_order, run_sum = launch.bind(on_order, runtime), launch.bind(on_sum, runtime)

    def call(grad_output: Tensor, indices: Tensor) -> Tensor:
        starts = torch.empty(rows + 1, dtype=torch.int32, device=device)
        order = torch.empty(tokens, dtype=torch.int32, device=device)
        grad_weight = launch.empty(shape, dtype, device, runtime)
        run_order(indices, starts, order)
        run_sum(grad_output, starts, order, grad_weight)
        return grad_weight

    return call


@torch.library.custom_op("mps_flash_attn::embedding_backward", mutates_args=())
def embedding_backward(
    grad_output: Tensor, indices: Tensor, rows: int, padding_row: int, by_count: bool = False
) -> Tensor:
    """The gradient of the weight of `embedding_forward`; the same bits on every run.

    Args:
        grad_output: ``[*, D]``.
        indices: as in the forward pass, ``[*]``; an index outside the rows is ignored, for the forward pass has raised.
        rows: V.
        padding_row: the row whose gradient is 0, or ``NO_PADDING``.
        by_count: each row's gradient is divided by the number of its tokens.

    Returns:
        ``[V, D]``, contiguous.
    """
    _require_indices(indices)
    require_tensor("grad_output", grad_output)
    require_match("input", indices, "grad_output", grad_output, dtype=False)
    if grad_output.dim() == 0 or grad_output.shape[:-1] != indices.shape:
        raise ValueError(
            f"grad_output has shape {tuple(grad_output.shape)}; accepted is input's {tuple(indices.shape)} and D"
        )
    if grad_output.numel() == 0 or rows == 0:
        return grad_output.new_zeros(rows, grad_output.shape[-1])
    rank = indices.dim()
    indices, grad_output = _few_dimensions(indices, rank), _few_dimensions(dense_rows(grad_output), rank)
    problem = geometry(grad_output), geometry(indices), rows, padding_row, by_count
    call = _backward_calls.prepared(problem, _prepare_backward, grad_output, indices, rows, padding_row, by_count)
    return call(grad_output, indices)


@embedding_forward.register_fake
def _(indices: Tensor, weight: Tensor, padding_row: int, by_count: bool = False, sparse: bool = False) -> Tensor:
    return weight.new_empty(*indices.shape, weight.shape[1])


@embedding_renormalise.register_fake
def _(weight: Tensor, indices: Tensor, max_norm: float, norm_type: float) -> None:
    return None


@embedding_backward.register_fake
def _(grad_output: Tensor, indices: Tensor, rows: int, padding_row: int, by_count: bool = False) -> Tensor:
    return grad_output.new_empty(rows, grad_output.shape[-1])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, weight, ctx.padding_row, ctx.by_count, ctx.sparse = inputs
    ctx.rows = weight.shape[0]
    ctx.save_for_backward(indices)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None, None, None]:
    (indices,) = ctx.saved_tensors
    if ctx.sparse:
        grad_weight = _sparse_gradient(grad_output, indices, ctx.rows, ctx.padding_row)
    else:
        backward = torch.ops.mps_flash_attn.embedding_backward
        grad_weight = backward(grad_output, indices, ctx.rows, ctx.padding_row, ctx.by_count)
    return None, grad_weight, None, None, None


def _sparse_gradient(grad_output: Tensor, indices: Tensor, rows: int, padding_row: int) -> Tensor:
    """The gradient of each token beside its row, as it came: nothing is added up, so there is nothing to launch."""
    columns = grad_output.shape[-1]
    tokens, gradients = indices.reshape(-1).long(), grad_output.reshape(-1, columns)
    if padding_row != NO_PADDING:
        counted = tokens != padding_row
        tokens, gradients = tokens[counted], gradients[counted]
    return torch.sparse_coo_tensor(tokens[None], gradients, (rows, columns), check_invariants=False)


embedding_forward.register_autograd(_backward, setup_context=_save_for_backward)
refuse_second_derivatives("embedding_backward", "embedding")


@embedding_forward.register_vmap
def _(info: Any, in_dims: InDims, indices: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, int]:
    operator, size = torch.ops.mps_flash_attn.embedding_forward, info.batch_size
    if in_dims[1] is not None:
        return each(operator, size, (indices, weight, *options), in_dims)
    return operator(lead(indices, in_dims[0], size), weight, *options), 0


@embedding_backward.register_vmap
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[Tensor, int]:
    return each(torch.ops.mps_flash_attn.embedding_backward, info.batch_size, args, in_dims)


@embedding_renormalise.register_vmap
def _(info: Any, in_dims: InDims, weight: Tensor, indices: Tensor, *options: float) -> tuple[None, None]:
    """A shared weight has the rows divided that any call has."""
    operator, size = torch.ops.mps_flash_attn.embedding_renormalise, info.batch_size
    indices = lead(indices, in_dims[1], size)
    if in_dims[0] is None:
        operator(weight, indices, *options)
    else:
        for part, numbers in zip(weight.unbind(in_dims[0]), indices, strict=True):
            operator(part, numbers, *options)
    return None, None
