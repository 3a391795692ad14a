"""The operators ``torch.ops.mps_flash_attn.merge_{forward,backward}``: launches, fakes and autograd.

Tensors have any strides; none is copied. A call that was made before with the same shapes and strides costs a
dictionary look-up beyond its launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import launch
from ...launch import CHUNK_BYTES
from ...runtime.base import for_device
from ..calls import PreparedCalls, alignment, geometry
from ..checks import refuse_second_derivatives
from ..dtypes import accumulator_dtype
from ..rows import Operand
from ..vmap import InDims, lead
from . import plan

__all__ = ["describe", "merge_backward", "merge_forward"]

_forward_calls = PreparedCalls[launch.BoundLaunch]()
_backward_calls = PreparedCalls[launch.BoundLaunch]()


def _pair(first: Tensor, others: Tensor) -> tuple[Operand, Operand]:
    """The first, and one that stands for the others; where there is none the first once more, which nobody reads."""
    one = Operand.of(first)
    if len(others) == 0:
        return one, one
    every = alignment(others, others.stride(0) if len(others) > 1 else 0) % CHUNK_BYTES
    return one, Operand(others.dtype, others.stride()[1:], every)


def describe(
    first: Tensor,
    first_lse: Tensor,
    others: Tensor,
    others_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    *gradients: Tensor,
    lse_gradient: bool = False,
) -> plan.Problem:
    """The problem of a call; in the backward pass ``out`` and ``lse`` are the gradients of the results.

    Args:
        gradients: of the four inputs, in their order.
    """
    tensors = (first, first_lse, others, others_lse)
    if others.shape[1:] != first.shape or others.dtype != first.dtype:
        raise ValueError(
            f"others is {others.dtype} of shape {tuple(others.shape)}; accepted: those of first, {first.dtype} and "
            f"[S - 1, *{tuple(first.shape)}]"
        )
    lse_dtype = accumulator_dtype(first.dtype)
    for name, tensor, shape in (
        ("first_lse", first_lse, first.shape[:-1]),
        ("others_lse", others_lse, others.shape[:-1]),
    ):
        if tensor.shape != shape or tensor.dtype != lse_dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; accepted: {lse_dtype} of {tuple(shape)}"
            )
    if any(x.device != first.device for x in tensors):
        raise ValueError(f"parts are on {[str(x.device) for x in tensors]}; accepted is one device")
    wide, narrow = [*_pair(first, others), Operand.of(out)], [*_pair(first_lse, others_lse), Operand.of(lse)]
    steps = [others.stride(0), others_lse.stride(0)]
    if gradients:
        d_first, d_first_lse, d_others, d_others_lse = gradients
        wide += _pair(d_first, d_others)
        narrow += _pair(d_first_lse, d_others_lse)
        steps += [d_others.stride(0), d_others_lse.stride(0)]
    return plan.Problem(
        shape=tuple(first.shape),
        dtype=first.dtype,
        result=out.dtype,
        parts=1 + len(others),
        wide=tuple(wide),
        narrow=tuple(Operand(x.dtype, (*x.strides, 0), x.address) for x in narrow),
        steps=tuple(steps),
        lse_gradient=lse_gradient,
    )


@torch.library.custom_op("mps_flash_attn::merge_forward", mutates_args=())
def merge_forward(
    first: Tensor, first_lse: Tensor, others: Tensor, others_lse: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Attention over all keys from attentions over S disjoint parts of them.

    Args:
        first: ``[..., D]``, with D at least 1.
        first_lse: ``[...]``, natural logarithm, float32 (float64 for float64).
        others: ``[S - 1, ..., D]``, like ``first``.
        others_lse: ``[S - 1, ...]``.
        dtype: of the result.

    Returns:
        ``out`` like ``first`` in that dtype, and ``lse``, contiguous.

    Raises:
        ValueError: shapes, dtypes or devices that do not go together.
        UnsupportedError: a problem that no plan serves.
    """
    runtime = for_device(first.device.type)
    out = launch.empty_like(first, runtime, dtype)
    lse = launch.empty(tuple(first_lse.shape), first_lse.dtype, first.device, runtime)
    tensors = first, first_lse, others, others_lse
    if out.numel() == 0:
        return out, lse
    problem = (tuple(map(geometry, tensors)), dtype)
    call = _forward_calls.prepared(
        problem, lambda: launch.bind(plan.forward(describe(*tensors, out, lse), runtime.CAPABILITIES), runtime)
    )
    call(first, others if len(others) else first, first_lse, others_lse if len(others) else first_lse, out, lse)
    return out, lse


def _prepare_backward(
    inputs: tuple[Tensor, ...],
    grad_out: Tensor,
    grad_lse: Tensor,
    gradients: tuple[Tensor, ...],
    *,
    lse_gradient: bool,
) -> launch.BoundLaunch:
    runtime = for_device(grad_out.device.type)
    problem = describe(*inputs, grad_out, grad_lse, *gradients, lse_gradient=lse_gradient)
    return launch.bind(plan.backward(problem, runtime.CAPABILITIES), runtime)


@torch.library.custom_op("mps_flash_attn::merge_backward", mutates_args=())
def merge_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    first: Tensor,
    first_lse: Tensor,
    others: Tensor,
    others_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `merge_forward` from its inputs and the gradients of its outputs.

    Args:
        grad_out: ``[..., D]``, in the dtype of the result.
        grad_lse: ``[...]`` or ``None`` for zeros.

    Returns:
        The gradients of ``first``, ``first_lse``, ``others`` and ``others_lse``.
    """
    if grad_out.shape != first.shape:
        raise ValueError(f"grad_out has shape {tuple(grad_out.shape)}; accepted: that of first, {tuple(first.shape)}")
    if grad_lse is not None and (grad_lse.shape != first_lse.shape or grad_lse.dtype != first_lse.dtype):
        raise ValueError(f"grad_lse is {grad_lse.dtype} of shape {tuple(grad_lse.shape)}; accepted: that of first_lse")
    runtime = for_device(first.device.type)
    inputs = first, first_lse, others, others_lse
    gradients = tuple(launch.empty_like(x, runtime) for x in inputs)
    if first.numel() == 0:
        return gradients  # type: ignore[return-value]
    of_lse = first_lse if grad_lse is None else grad_lse
    problem = (tuple(map(geometry, (*inputs, grad_out, of_lse))), grad_lse is None)
    call = _backward_calls.prepared(
        problem, _prepare_backward, inputs, grad_out, of_lse, gradients, lse_gradient=grad_lse is not None
    )
    d_first, d_first_lse, d_others, d_others_lse = gradients
    some, some_lse = (others, others_lse) if len(others) else (first, first_lse)
    d_some, d_some_lse = (d_others, d_others_lse) if len(others) else (d_first, d_first_lse)
    call(first, some, first_lse, some_lse, grad_out, of_lse, d_first, d_some, d_first_lse, d_some_lse)
    return d_first, d_first_lse, d_others, d_others_lse


@merge_forward.register_fake
def _(
    first: Tensor, first_lse: Tensor, others: Tensor, others_lse: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(first, dtype=dtype), first_lse.new_empty(first_lse.shape)


@merge_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    first: Tensor,
    first_lse: Tensor,
    others: Tensor,
    others_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_first, d_first_lse, d_others, d_others_lse = map(torch.empty_like, (first, first_lse, others, others_lse))
    return d_first, d_first_lse, d_others, d_others_lse


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.dtype = inputs[4]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    first, *rest = ctx.saved_tensors
    if grad_out is None and grad_lse is None:
        return (None,) * 5
    if grad_out is None:
        grad_out = torch.zeros_like(first, dtype=ctx.dtype)
    return *torch.ops.mps_flash_attn.merge_backward(grad_out, grad_lse, first, *rest), None


merge_forward.register_autograd(_backward, setup_context=_save_for_backward)
refuse_second_derivatives("merge_backward", "merge_attention")


@merge_forward.register_vmap
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    parts = _mapped_parts(args[:4], in_dims[:4], info.batch_size)
    return torch.ops.mps_flash_attn.merge_forward(*parts, args[4]), (0, 0)


@merge_backward.register_vmap
def _(
    info: Any, in_dims: InDims, grad_out: Tensor, grad_lse: Tensor | None, *parts: Tensor
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    grad_out = lead(grad_out, in_dims[0], size)
    grad_lse = None if grad_lse is None else lead(grad_lse, in_dims[1], size)
    mapped = _mapped_parts(parts, in_dims[2:], size)
    return torch.ops.mps_flash_attn.merge_backward(grad_out, grad_lse, *mapped), (0, 0, 1, 1)


def _mapped_parts(parts: Sequence[Tensor], in_dims: InDims, size: int) -> list[Tensor]:
    """The mapped dimension as the first of every part's; the others are numbered by one in front of it."""
    first, first_lse, others, others_lse = (lead(x, dim, size) for x, dim in zip(parts, in_dims, strict=True))
    return [first, first_lse, others.movedim(0, 1), others_lse.movedim(0, 1)]
