"""The operators ``torch.ops.mps_flash_attn.cross_entropy_{forward,backward}``: launches, fakes and autograd.

Logits have any strides; none is copied. A call that was made before with the same shapes and strides costs a dictionary
look-up beyond its launch, and the forward operator one look at the target.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import launch
from ...runtime.base import for_device
from ..calls import PreparedCalls, geometry
from ..checks import refuse_second_derivatives
from ..dtypes import accumulator_dtype
from ..rows import Operand
from . import plan

__all__ = ["class_dim", "cross_entropy_backward", "cross_entropy_forward", "describe"]

_forward_calls = PreparedCalls[launch.BoundLaunch]()
_backward_calls = PreparedCalls[launch.BoundLaunch]()


def class_dim(x: Tensor) -> int:
    """The dimension of the classes: the second, of ``[C]`` the first."""
    return min(x.dim(), 2) - 1


def describe(
    operands: tuple[Tensor, ...],
    per_row: tuple[Tensor, ...],
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> plan.Problem:
    """The problem of a call; tensors in the order of `plan.Problem`."""
    dim = class_dim(operands[0])
    return plan.Problem(
        tuple(operands[0].shape),
        dim,
        tuple(map(Operand.of, operands)),
        tuple(Operand.without((dim,), tensor) for tensor in per_row),
        weight is not None,
        ignore_index,
        label_smoothing,
    )


def _require_operands(x: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """What the kernels count on; the public function has better words."""
    dim = class_dim(x)
    if target.dtype != torch.int64 or target.shape != x.shape[:dim] + x.shape[dim + 1 :]:
        raise ValueError(f"target is {target.dtype} of shape {tuple(target.shape)}; accepted: int64 of x's without C")
    if weight is not None and (
        weight.dtype != accumulator_dtype(x.dtype)
        or weight.shape != x.shape[dim : dim + 1]
        or not weight.is_contiguous()
    ):
        raise ValueError(f"weight is {weight.dtype} of shape {tuple(weight.shape)}; accepted: the accumulator's, [C]")


def _require_classes(target: Tensor, classes: int, ignore_index: int) -> None:
    """Waits for the device: whether every class exists is known when the target was looked at."""
    outside = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if outside.any():
        raise ValueError(
            f"target holds {int(target[outside][0])}; accepted are classes 0 to {classes - 1} and ignore_index, "
            f"{ignore_index}"
        )


@torch.library.custom_op("mps_flash_attn::cross_entropy_forward", mutates_args=())
def cross_entropy_forward(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of each row of logits with its class.

    Args:
        x: logits ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``.
        target: int64 classes, ``x``'s shape without ``C``.
        weight: of the classes, ``[C]``, contiguous, in the accumulator's dtype.
        ignore_index: class of rows that do not take part.
        label_smoothing: from 0 to 1.

    Returns:
        Of each row the loss and the weight of its class, like ``target``, 0 where the row does not take part; and what
        the backward pass needs, ``[3, *target.shape]``. In float32 (float64 for float64).

    Raises:
        ValueError: a class that does not exist.
        UnsupportedError: a problem that no plan serves.
    """
    _require_operands(x, target, weight)
    runtime, dtype, shape = for_device(x.device.type), accumulator_dtype(x.dtype), tuple(target.shape)
    loss, row_weight, statistics = (
        launch.empty(each, dtype, x.device, runtime) for each in (shape, shape, (3, *shape))
    )
    if x.numel() == 0:
        return loss, row_weight, statistics
    _require_classes(target, x.shape[class_dim(x)], ignore_index)
    problem = (geometry(x), geometry(target), weight is None, ignore_index, label_smoothing)
    call = _forward_calls.get(problem)
    if call is None:
        described = describe((x,), (target, loss), weight, ignore_index, label_smoothing)
        call = launch.bind(plan.forward(described, runtime.CAPABILITIES), runtime)
        _forward_calls[problem] = call
    call(x, target, x if weight is None else weight, loss, row_weight, statistics)
    return loss, row_weight, statistics


@torch.library.custom_op("mps_flash_attn::cross_entropy_backward", mutates_args=())
def cross_entropy_backward(
    grad_loss: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """The gradient of the logits of `cross_entropy_forward` from that of the loss, like ``target``, any strides."""
    _require_operands(x, target, weight)
    if grad_loss.shape != target.shape or grad_loss.dtype != statistics.dtype:
        raise ValueError(
            f"grad_loss is {grad_loss.dtype} of shape {tuple(grad_loss.shape)}; accepted: {statistics.dtype} of "
            f"target's shape, {tuple(target.shape)}"
        )
    runtime, statistics = for_device(x.device.type), statistics.contiguous()
    grad = launch.empty_like(x, runtime)
    if x.numel() == 0:
        return grad
    problem = (*map(geometry, (grad_loss, x, target)), weight is None, ignore_index, label_smoothing)
    call = _backward_calls.get(problem)
    if call is None:
        described = describe((x, grad), (target, statistics[0], grad_loss), weight, ignore_index, label_smoothing)
        call = launch.bind(plan.backward(described, runtime.CAPABILITIES), runtime)
        _backward_calls[problem] = call
    call(x, target, x if weight is None else weight, grad_loss, statistics, grad)
    return grad


@cross_entropy_forward.register_fake
def _(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    loss = x.new_empty(target.shape, dtype=accumulator_dtype(x.dtype))
    return loss, torch.empty_like(loss), loss.new_empty((3, *target.shape))


@cross_entropy_backward.register_fake
def _(
    grad_loss: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    return torch.empty_like(x)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, target, weight, ctx.ignore_index, ctx.label_smoothing = inputs
    _, row_weight, statistics = output
    ctx.mark_non_differentiable(row_weight, statistics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, target, weight, statistics)


def _backward(ctx: Any, grad_loss: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 5
    x, target, weight, statistics = ctx.saved_tensors
    grad = torch.ops.mps_flash_attn.cross_entropy_backward(
        grad_loss, x, target, weight, statistics, ctx.ignore_index, ctx.label_smoothing
    )
    return grad, None, None, None, None


cross_entropy_forward.register_autograd(_backward, setup_context=_save_for_backward)
refuse_second_derivatives("cross_entropy_backward", "cross_entropy")
