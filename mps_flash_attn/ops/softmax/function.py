"""The operators ``torch.ops.mps_flash_attn.softmax_{forward,backward}``: launches, fakes and autograd.

Tensors have any strides; none is copied. A call that was made before with the same shapes and strides costs a
dictionary look-up beyond its launch.
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
from ..rows import Operand
from ..vmap import InDims, lead
from . import plan

__all__ = ["describe", "softmax_backward", "softmax_forward"]

_forward_calls = PreparedCalls[launch.BoundLaunch]()
_backward_calls = PreparedCalls[launch.BoundLaunch]()


def describe(dim: int, log: bool, x: Tensor, y: Tensor, dy: Tensor | None = None) -> plan.Problem:
    """The problem of a call; ``x`` is the input, or in the backward pass its gradient. A number is a row of one."""
    tensors = (x, y) if dy is None else (x, y, dy)
    operands = tuple(Operand.of(tensor if x.dim() else tensor[None]) for tensor in tensors)
    return plan.Problem(tuple(x.shape) or (1,), dim, operands, log)


def _prepare(
    kernel: Callable[[plan.Problem, launch.Capabilities], launch.Launch], dim: int, log: bool, *tensors: Tensor
) -> launch.BoundLaunch:
    runtime = for_device(tensors[0].device.type)
    return launch.bind(kernel(describe(dim, log, *tensors), runtime.CAPABILITIES), runtime)


@torch.library.custom_op("mps_flash_attn::softmax_forward", mutates_args=())
def softmax_forward(x: Tensor, dim: int, log: bool, dtype: torch.dtype) -> Tensor:
    """Softmax along a dimension, or its natural logarithm.

    Args:
        x: any shape and strides.
        dim: from 0.
        log: whether to give the logarithm.
        dtype: of the result.

    Raises:
        UnsupportedError: a problem that no plan serves.
    """
    runtime = for_device(x.device.type)
    out = launch.empty_like(x, runtime, dtype)
    if x.numel() == 0:
        return out
    problem = (geometry(x), dim, log, dtype)
    call = _forward_calls.prepared(problem, _prepare, plan.forward, dim, log, x, out)
    call(x, out)
    return out


@torch.library.custom_op("mps_flash_attn::softmax_backward", mutates_args=())
def softmax_backward(grad_out: Tensor, out: Tensor, dim: int, log: bool, dtype: torch.dtype) -> Tensor:
    """The gradient of `softmax_forward`'s input from its output and that one's gradient.

    Args:
        grad_out: like ``out``.
        dtype: of the input.
    """
    if grad_out.shape != out.shape or grad_out.dtype != out.dtype:
        raise ValueError(
            f"grad_out is {grad_out.dtype} of shape {tuple(grad_out.shape)}; accepted: that of out, "
            f"{out.dtype} of shape {tuple(out.shape)}"
        )
    runtime = for_device(out.device.type)
    grad = launch.empty_like(out, runtime, dtype)
    if out.numel() == 0:
        return grad
    problem = (geometry(grad_out), geometry(out), dim, log, dtype)
    call = _backward_calls.prepared(problem, _prepare, plan.backward, dim, log, grad, out, grad_out)
    call(out, grad_out, grad)
    return grad


@softmax_forward.register_fake
def _(x: Tensor, dim: int, log: bool, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


@softmax_backward.register_fake
def _(grad_out: Tensor, out: Tensor, dim: int, log: bool, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(out, dtype=dtype)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.dim, ctx.log, _ = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(output)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    (out,) = ctx.saved_tensors
    grad = torch.ops.mps_flash_attn.softmax_backward(grad_out, out, ctx.dim, ctx.log, ctx.dtype)
    return grad, None, None, None


softmax_forward.register_autograd(_backward, setup_context=_save_for_backward)
refuse_second_derivatives("softmax_backward", "softmax and log_softmax")


@softmax_forward.register_vmap
def _(info: Any, in_dims: InDims, x: Tensor, dim: int, log: bool, dtype: torch.dtype) -> tuple[Tensor, int]:
    x = lead(x, in_dims[0], info.batch_size)
    rows = x if x.dim() > 1 else x.unsqueeze(1)  # a number is a row of one
    return torch.ops.mps_flash_attn.softmax_forward(rows, dim + 1, log, dtype).view_as(x), 0


@softmax_backward.register_vmap
def _(
    info: Any, in_dims: InDims, grad_out: Tensor, out: Tensor, dim: int, log: bool, dtype: torch.dtype
) -> tuple[Tensor, int]:
    grad_out, out = (lead(x, mapped, info.batch_size) for x, mapped in zip((grad_out, out), in_dims, strict=False))
    rows = (x if x.dim() > 1 else x.unsqueeze(1) for x in (grad_out, out))
    return torch.ops.mps_flash_attn.softmax_backward(*rows, dim + 1, log, dtype).view_as(out), 0
