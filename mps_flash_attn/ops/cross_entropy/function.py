"""The operators ``torch.ops.mps_flash_attn.cross_entropy_{forward,backward}``: launches, fakes and autograd.

Logits have any strides; none is copied. A call that was made before with the same shapes and strides costs a dictionary
look-up beyond its launch, and the forward operator one look at the target.
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
from ..vmap import InDims, each, last, lead
from . import plan

__all__ = ["class_dim", "cross_entropy_backward", "cross_entropy_forward", "describe", "number_dtype"]

_forward_calls = PreparedCalls[launch.BoundLaunch]()
_backward_calls = PreparedCalls[launch.BoundLaunch]()


def class_dim(x: Tensor) -> int:
    """The dimension of the classes: the second, of ``[C]`` the first."""
    return min(x.dim(), 2) - 1


def number_dtype(x: Tensor, target: Tensor) -> torch.dtype:
    """What losses are computed in, of logits and of probabilities, if the target holds those."""
    return accumulator_dtype(torch.promote_types(x.dtype, target.dtype))


def _rows_shape(x: Tensor) -> tuple[int, ...]:
    dim = class_dim(x)
    return (*x.shape[:dim], *x.shape[dim + 1 :])


def describe(
    tensors: dict[str, Tensor], weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> plan.Problem:
    """The problem of a call, by the names of `plan.Problem`."""
    x = tensors["x"]
    dim = class_dim(x)
    of_rows = {name: tensor for name, tensor in tensors.items() if tensor.dim() < x.dim()}
    return plan.Problem(
        tuple(x.shape),
        dim,
        tuple((name, Operand.of(tensor)) for name, tensor in tensors.items() if name not in of_rows),
        tuple((name, Operand.without((dim,), tensor)) for name, tensor in of_rows.items()),
        weight is not None,
        ignore_index,
        label_smoothing,
    )


def _require_operands(x: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """What the kernels count on; the public function has better words."""
    dim = class_dim(x)
    probabilities = target.is_floating_point() and target.shape == x.shape
    if not probabilities and (target.dtype != torch.int64 or target.shape != _rows_shape(x)):
        raise ValueError(
            f"target is {target.dtype} of shape {tuple(target.shape)}; accepted: int64 of x's without C, or "
            "floating-point of x's"
        )
    if weight is not None and (
        weight.dtype != number_dtype(x, target) or weight.shape != x.shape[dim : dim + 1] or not weight.is_contiguous()
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


def _prepare(
    kernel: Callable[[plan.Problem, launch.Capabilities], launch.Launch],
    tensors: dict[str, Tensor],
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> launch.BoundLaunch:
    runtime = for_device(tensors["x"].device.type)
    problem = describe(tensors, weight, ignore_index, label_smoothing)
    return launch.bind(kernel(problem, runtime.CAPABILITIES), runtime)


@torch.library.custom_op("mps_flash_attn::cross_entropy_forward", mutates_args=())
def cross_entropy_forward(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of each row of logits with its class.

    Args:
        x: logits ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``.
        target: int64 classes, ``x``'s shape without ``C``; or probabilities, ``x``'s shape, any floating-point dtype.
        weight: of the classes, ``[C]``, contiguous, in the accumulator's dtype.
        ignore_index: class of rows that do not take part.
        label_smoothing: from 0 to 1.

    Returns:
        Of each row, in ``x``'s shape without ``C``, the loss and the weight of its class, 0 where the row does not take
        part and 1 of probabilities; and what the backward pass needs, ``[3, ...]``. In float32 (float64 for float64).

    Raises:
        ValueError: a class that does not exist.
        UnsupportedError: a problem that no plan serves.
    """
    _require_operands(x, target, weight)
    runtime, dtype, shape = for_device(x.device.type), number_dtype(x, target), _rows_shape(x)
    loss, row_weight, statistics = (
        launch.empty(each, dtype, x.device, runtime) for each in (shape, shape, (3, *shape))
    )
    if x.numel() == 0:
        return loss, row_weight, statistics
    if not target.is_floating_point():
        _require_classes(target, x.shape[class_dim(x)], ignore_index)
    problem = (geometry(x), geometry(target), weight is None, ignore_index, label_smoothing)
    tensors = {"x": x, "target": target, "loss": loss}
    call = _forward_calls.prepared(problem, _prepare, plan.forward, tensors, weight, ignore_index, label_smoothing)
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
    x_wanted: bool = True,
    target_wanted: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients of `cross_entropy_forward` from that of the loss, which has any strides.

    Args:
        x_wanted, target_wanted: which of them; of the target only if it holds probabilities.

    Returns:
        Those of the logits and of the target, like each; one that is not wanted has no elements.
    """
    _require_operands(x, target, weight)
    if grad_loss.shape != _rows_shape(x) or grad_loss.dtype != statistics.dtype:
        raise ValueError(
            f"grad_loss is {grad_loss.dtype} of shape {tuple(grad_loss.shape)}; accepted: {statistics.dtype} of "
            f"the loss's shape, {_rows_shape(x)}"
        )
    if target_wanted and not target.is_floating_point():
        raise ValueError("target_wanted is True; accepted is False where the target holds classes")
    runtime, statistics = for_device(x.device.type), statistics.contiguous()
    operands = (("dx", x, x_wanted), ("d_target", target, target_wanted))
    gradients = {name: launch.empty_like(like, runtime) for name, like, wanted in operands if wanted}
    results = gradients.get("dx", x.new_empty(0)), gradients.get("d_target", x.new_empty(0))
    if x.numel() == 0 or not gradients:
        return results
    problem = (*map(geometry, (grad_loss, x, target)), weight is None, ignore_index, label_smoothing, *gradients)
    call = _backward_calls.prepared(
        problem,
        lambda: _prepare(
            plan.backward,
            {"x": x, "target": target, "loss": statistics[0], "d_loss": grad_loss, **gradients},
            weight,
            ignore_index,
            label_smoothing,
        ),
    )
    d_target, dx = gradients.get("d_target", x), gradients.get("dx", x)  # nothing is written to x
    call(x, target, x if weight is None else weight, grad_loss, statistics, d_target, dx)
    return results


@cross_entropy_forward.register_fake
def _(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    loss = x.new_empty(_rows_shape(x), dtype=number_dtype(x, target))
    return loss, torch.empty_like(loss), loss.new_empty((3, *loss.shape))


@cross_entropy_backward.register_fake
def _(
    grad_loss: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    ignore_index: int,
    label_smoothing: float,
    x_wanted: bool = True,
    target_wanted: bool = False,
) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x) if x_wanted else x.new_empty(0)
    return dx, torch.empty_like(target) if target_wanted else x.new_empty(0)


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
    x_wanted, target_wanted = ctx.needs_input_grad[:2]
    dx, d_target = torch.ops.mps_flash_attn.cross_entropy_backward(
        grad_loss, x, target, weight, statistics, ctx.ignore_index, ctx.label_smoothing, x_wanted, target_wanted
    )
    return dx if x_wanted else None, d_target if target_wanted else None, None, None, None


cross_entropy_forward.register_autograd(_backward, setup_context=_save_for_backward)
refuse_second_derivatives("cross_entropy_backward", "cross_entropy")


def _join(x: Tensor, dim: int | None, size: int, single: bool) -> Tensor:
    """One more dimension of rows: the last, or of ``single`` rows the first, so that classes stay where they are."""
    return lead(x, dim, size) if single else last(x, dim, size)


@cross_entropy_forward.register_vmap
def _(
    info: Any, in_dims: InDims, x: Tensor, target: Tensor, weight: Tensor | None, *options: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    operator, size = torch.ops.mps_flash_attn.cross_entropy_forward, info.batch_size
    if in_dims[2] is not None:
        return each(operator, size, (x, target, weight, *options), in_dims)
    single = x.dim() - (in_dims[0] is not None) == 1
    results = operator(_join(x, in_dims[0], size, single), _join(target, in_dims[1], size, single), weight, *options)
    return results, tuple(each_.dim() - 1 for each_ in results)


@cross_entropy_backward.register_vmap
def _(
    info: Any,
    in_dims: InDims,
    grad_loss: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    ignore_index: int,
    label_smoothing: float,
    *wanted: bool,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    operator, size = torch.ops.mps_flash_attn.cross_entropy_backward, info.batch_size
    options = (ignore_index, label_smoothing, *wanted)
    if in_dims[3] is not None:
        return each(operator, size, (grad_loss, x, target, weight, statistics, *options), in_dims)
    single = x.dim() - (in_dims[1] is not None) == 1
    grad_loss, x, target = (
        _join(each_, dim, size, single) for each_, dim in zip((grad_loss, x, target), in_dims, strict=False)
    )
    results = operator(grad_loss, x, target, weight, last(statistics, in_dims[4], size), *options)
    return results, tuple(None if each_.dim() < x.dim() else 0 if single else x.dim() - 1 for each_ in results)
