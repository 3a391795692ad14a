"""The embedding operators ``torch.ops.mps_flash_attn.embedding_{forward,backward}``: launches, fakes and autograd.

Indices may have any shape and strides, and so may the weight and the gradient but for the stride 1 of their last
dimension; otherwise they are copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import launch
from ...runtime.base import for_device
from ..calls import PreparedCalls, address, geometry
from ..checks import refuse_second_derivatives, require_match, require_tensor
from ..strides import coalesce
from . import plan

__all__ = ["NO_PADDING", "describe_backward", "describe_forward", "embedding_backward", "embedding_forward"]

#: The padding row of a weight that has none.
NO_PADDING = -1

_Call = Callable[[Tensor, Tensor], Tensor]

_forward_calls = PreparedCalls[_Call]()
_backward_calls = PreparedCalls[_Call]()


def _tokens(tensor: Tensor, rank: int, row_bytes: int = 0) -> plan.Tokens:
    """Where the elements, or rows, that the first dimensions number lie."""
    sizes, (strides,) = coalesce(tensor.shape[:rank], tensor.stride()[:rank])
    size = tensor.element_size()
    return plan.Tokens(
        sizes or (1,), strides or (0,), math.gcd(16, address(tensor), row_bytes, *(size * x for x in strides))
    )


def _few_dimensions(tensor: Tensor, rank: int) -> Tensor:
    """The tensor, or a contiguous copy where its first dimensions cannot be merged to those that kernels know."""
    sizes, _ = coalesce(tensor.shape[:rank], tensor.stride()[:rank])
    return tensor if len(sizes) <= plan.MAX_RANK else tensor.contiguous()


def _dense_rows(tensor: Tensor) -> Tensor:
    """The tensor, or a contiguous copy where the elements of a row are not neighbours."""
    return tensor if tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def describe_forward(indices: Tensor, weight: Tensor) -> plan.Problem:
    """The problem of a call of `embedding_forward`."""
    rows, columns = weight.shape
    size, row_stride = weight.element_size(), 0 if rows == 1 else weight.stride(0)
    return plan.Problem(
        dtype=weight.dtype,
        index_dtype=indices.dtype,
        indices=_tokens(indices, indices.dim()),
        rows=rows,
        columns=columns,
        row_stride=row_stride,
        step=math.gcd(16, address(weight), size * row_stride, size * columns),
    )


def describe_backward(grad_output: Tensor, indices: Tensor, rows: int, padding_row: int) -> plan.Problem:
    """The problem of a call of `embedding_backward`."""
    columns = grad_output.shape[-1]
    return plan.Problem(
        dtype=grad_output.dtype,
        index_dtype=indices.dtype,
        indices=_tokens(indices, indices.dim()),
        rows=rows,
        columns=columns,
        gradient=_tokens(grad_output, indices.dim(), columns * grad_output.element_size()),
        padding_row=padding_row,
    )


def _require_indices(indices: Tensor) -> None:
    require_tensor("input", indices, plan.INDICES, "int32 and int64")


def _require_range(indices: Tensor, rows: int) -> None:
    outside = (indices < 0) | (indices >= rows)
    if indices.numel() and outside.any():
        raise IndexError(
            f"input holds the index {int(indices[outside][0])}; accepted are 0 to {rows - 1}, rows of weight"
        )


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
def embedding_forward(indices: Tensor, weight: Tensor, padding_row: int) -> Tensor:
    """The rows of the weight with these numbers.

    Args:
        indices: int32 or int64, any shape ``[*]``.
        weight: ``[V, D]``.
        padding_row: the row whose gradient is 0, or ``NO_PADDING``; it changes nothing here.

    Returns:
        ``[*, D]``, contiguous.

    Raises:
        IndexError: an index outside ``0 .. V - 1``. To know, a GPU's queue is waited for.
        ValueError, TypeError: shapes, dtypes or devices that do not go together.
        UnsupportedError: a problem that no plan serves.
    """
    _require_indices(indices)
    require_tensor("weight", weight)
    require_match("input", indices, "weight", weight, dtype=False)
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; accepted are two dimensions [V, D]")
    _require_range(indices, weight.shape[0])
    if indices.numel() * weight.shape[1] == 0:
        return weight.new_empty(*indices.shape, weight.shape[1])
    indices, weight = _few_dimensions(indices, indices.dim()), _dense_rows(weight)
    problem = geometry(indices), geometry(weight)
    call = _forward_calls.get(problem)
    if call is None:
        call = _forward_calls[problem] = _prepare_forward(indices, weight)
    return call(indices, weight)


def _prepare_backward(grad_output: Tensor, indices: Tensor, rows: int, padding_row: int) -> _Call:
    runtime = for_device(grad_output.device.type)
    shape, dtype, device, tokens = (rows, grad_output.shape[-1]), grad_output.dtype, grad_output.device, indices.numel()
    problem = describe_backward(grad_output, indices, rows, padding_row)
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
def embedding_backward(grad_output: Tensor, indices: Tensor, rows: int, padding_row: int) -> Tensor:
    """The gradient of the weight of `embedding_forward`; the same bits on every run.

    Args:
        grad_output: ``[*, D]``.
        indices: as in the forward pass, ``[*]``; an index outside the rows is ignored, for the forward pass has raised.
        rows: V.
        padding_row: the row whose gradient is 0, or ``NO_PADDING``.

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
    indices, grad_output = _few_dimensions(indices, rank), _few_dimensions(_dense_rows(grad_output), rank)
    problem = geometry(grad_output), geometry(indices), rows, padding_row
    call = _backward_calls.get(problem)
    if call is None:
        call = _backward_calls[problem] = _prepare_backward(grad_output, indices, rows, padding_row)
    return call(grad_output, indices)


@embedding_forward.register_fake
def _(indices: Tensor, weight: Tensor, padding_row: int) -> Tensor:
    return weight.new_empty(*indices.shape, weight.shape[1])


@embedding_backward.register_fake
def _(grad_output: Tensor, indices: Tensor, rows: int, padding_row: int) -> Tensor:
    return grad_output.new_empty(rows, grad_output.shape[-1])


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    indices, weight, ctx.padding_row = inputs
    ctx.rows = weight.shape[0]
    ctx.save_for_backward(indices)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None]:
    (indices,) = ctx.saved_tensors
    grad_weight = torch.ops.mps_flash_attn.embedding_backward(grad_output, indices, ctx.rows, ctx.padding_row)
    return None, grad_weight, None


embedding_forward.register_autograd(_backward, setup_context=_save_for_backward)
refuse_second_derivatives("embedding_backward", "embedding")
