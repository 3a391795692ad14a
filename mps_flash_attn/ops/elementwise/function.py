"""The elementwise operators of ``torch.ops.mps_flash_attn``: launches, fakes and autograd.

One operator computes ``combine(activation(x), y)`` for each element, another its gradients; two more do so for the
halves of one tensor. Tensors are read where they lie, with any strides. A call that was made before with the same
shapes and strides costs a dictionary look-up beyond its launch.
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
from ..reduction.function import sum_
from ..rows import Operand
from ..vmap import InDims, each, lead
from . import plan
from .plan import Operation

__all__ = ["buffers", "describe", "elementwise", "elementwise_backward", "gate_halves", "gate_halves_backward"]

_Call = Callable[["dict[str, Tensor]"], None]

_calls = PreparedCalls[_Call]()

#: Buffers of each kernel.
_BUFFERS = {"forward": ("x", "y", "out"), "backward": ("out", "x", "y", "dy", "dx")}
_PLANS = {"forward": plan.forward, "backward": plan.backward}


def describe(operation: Operation, shape: torch.Size, tensors: dict[str, Tensor]) -> plan.Problem | None:
    """The problem of a launch on ``x y out dx dy``, those that there are; ``None`` if it takes too many dimensions."""
    operands = {name: Operand.of(tensor.expand(shape)) for name, tensor in tensors.items()}
    return plan.describe(operation, shape, operands)


def buffers(kernel: str, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """A kernel's tensors in the order of its buffers."""
    return tuple(tensors[name if name in tensors else plan.STAND_INS[name]] for name in _BUFFERS[kernel])


def _prepare(kernel: str, operation: Operation, shape: torch.Size, tensors: dict[str, Tensor]) -> _Call:
    runtime = for_device(tensors["x"].device.type)
    problem = describe(operation, shape, tensors)
    if problem is None:
        return _prepare_copies(kernel, operation, shape)
    bound = launch.bind(_PLANS[kernel](problem, runtime.CAPABILITIES), runtime)
    return lambda tensors: bound(*buffers(kernel, tensors))


def _prepare_copies(kernel: str, operation: Operation, shape: torch.Size) -> _Call:
    """A call on copies that lie as the results do, so that few dimensions are left."""

    def call(tensors: dict[str, Tensor]) -> None:
        layout = tensors["dx" if "dx" in tensors else "dy" if "dy" in tensors else "out"]
        results = {"dx", "dy"} if kernel == "backward" else {"out"}
        copies = {
            name: tensor if name in results else torch.empty_like(layout, dtype=tensor.dtype).copy_(tensor)
            for name, tensor in tensors.items()
        }
        _run(kernel, operation, shape, **copies)

    return call


def _run(kernel: str, operation: Operation, shape: torch.Size, **tensors: Tensor | None) -> None:
    if 0 in shape:
        return
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    problem = (kernel, operation, *((name, geometry(tensor)) for name, tensor in given.items()))
    _calls.prepared(problem, _prepare, kernel, operation, shape, given)(given)


def _require(x: Tensor, y: Tensor | None, number: float | None, activation: str, combine: str) -> None:
    """What the kernels rely on; the public functions find better words for their arguments."""
    if activation not in plan.ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; accepted are {list(plan.ACTIVATIONS)}")
    if combine not in plan.COMBINATIONS:
        raise ValueError(f"combine is {combine!r}; accepted are {list(plan.COMBINATIONS)}")
    if (y is not None) + (number is not None) != (combine != "none"):
        raise ValueError(f"combine is {combine!r}; accepted is one of y and number, and neither for 'none'")
    if y is not None and y.device != x.device:
        raise ValueError(f"y is on {y.device}; accepted is x's {x.device}")


def _shape(x: Tensor, y: Tensor | None) -> torch.Size:
    return x.shape if y is None else torch.broadcast_shapes(x.shape, y.shape)


def _dtype(x: Tensor, y: Tensor | None) -> torch.dtype:
    """The result's, by PyTorch's rules of promotion."""
    return x.dtype if y is None else torch.result_type(x, y)


def _empty(x: Tensor, y: Tensor | None) -> Tensor:
    """A result: it lies in memory as the first operand of its shape does."""
    shape, dtype = _shape(x, y), _dtype(x, y)
    for operand in (x, y):
        if operand is not None and operand.shape == shape:
            return torch.empty_like(operand, dtype=dtype)
    return x.new_empty(shape, dtype=dtype)


def _empty_gradients(x: Tensor, y: Tensor | None, wanted: tuple[bool, bool]) -> list[Tensor]:
    """Gradients of `x` and `y` before sums; one that is yet to be summed loses no digits that its operand has."""
    result, gradients = _empty(x, y), []
    for operand, want in zip((x, y), wanted, strict=True):
        if operand is None or not want:
            gradients.append(x.new_empty(0))
        else:
            summed = torch.promote_types(operand.dtype, result.dtype)
            gradients.append(torch.empty_like(result, dtype=operand.dtype if operand.shape == result.shape else summed))
    return gradients


@torch.library.custom_op("mps_flash_attn::elementwise", mutates_args=())
def elementwise(x: Tensor, y: Tensor | None, number: float | None, activation: str, combine: str) -> Tensor:
    """``combine(activation(x), y or number)`` for each element.

    Args:
        x, y: broadcast against each other; the result's dtype is :func:`torch.result_type` of them.
        number: the second operand where it is not a tensor.
        activation: a key of `plan.ACTIVATIONS`.
        combine: a key of `plan.COMBINATIONS`; ``"none"`` takes no second operand.

    Raises:
        ValueError, TypeError: arguments that do not go together.
        UnsupportedError: a problem that no plan serves.
    """
    _require(x, y, number, activation, combine)
    out = launch.empty_like(_empty(x, y), for_device(x.device.type))
    _run("forward", Operation(activation, combine, number), out.shape, x=x, y=y, out=out)
    return out


@torch.library.custom_op("mps_flash_attn::elementwise_backward", mutates_args=())
def elementwise_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    number: float | None,
    activation: str,
    combine: str,
    x_wanted: bool,
    y_wanted: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `elementwise` with respect to ``x`` and ``y`` from the result's, before sums over broadcast dims.

    Returns:
        Two tensors of the shape of the result, in the dtype of the operand or, where that was broadcast, in the one
        that it and the result promote to; one that is not wanted has no elements.
    """
    _require(x, y, number, activation, combine)
    shape, dtype = _shape(x, y), _dtype(x, y)
    if grad.shape != shape or grad.dtype != dtype or grad.device != x.device:
        raise ValueError(f"grad is {grad.dtype} of shape {tuple(grad.shape)}; accepted is {dtype} of {tuple(shape)}")
    if y_wanted and y is None:
        raise ValueError("y_wanted is True; accepted is False where there is no y")
    runtime = for_device(x.device.type)
    dx, dy = (launch.empty_like(gradient, runtime) for gradient in _empty_gradients(x, y, (x_wanted, y_wanted)))
    if x_wanted or y_wanted:
        wanted = {name: tensor for name, tensor, want in (("dx", dx, x_wanted), ("dy", dy, y_wanted)) if want}
        _run("backward", Operation(activation, combine, number), shape, out=grad, x=x, y=y, **wanted)
    return dx, dy


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of the last dimension, of a tensor whose strides leave few dimensions."""
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; accepted is an even last size")
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _few_dims(x: Tensor) -> Tensor:
    return x.contiguous() if x.dim() > plan.MAX_DIMS else x


@torch.library.custom_op("mps_flash_attn::gate_halves", mutates_args=())
def gate_halves(x: Tensor, activation: str) -> Tensor:
    """``activation(gate) * up``, where ``x [..., 2 n]`` holds ``gate [..., n]`` and then ``up``. Contiguous."""
    gate, up = _halves(_few_dims(x))
    _require(gate, up, None, activation, "mul")
    out = launch.empty(tuple(gate.shape), x.dtype, x.device, for_device(x.device.type))
    _run("forward", Operation(activation, "mul"), out.shape, x=gate, y=up, out=out)
    return out


@torch.library.custom_op("mps_flash_attn::gate_halves_backward", mutates_args=())
def gate_halves_backward(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    """The gradient of `gate_halves`, both halves in one tensor. Contiguous."""
    gate, up = _halves(_few_dims(x))
    _require(gate, up, None, activation, "mul")
    if grad.shape != gate.shape or grad.dtype != x.dtype or grad.device != x.device:
        raise ValueError(f"grad is {grad.dtype} of {tuple(grad.shape)}; accepted is {x.dtype} of {tuple(gate.shape)}")
    gradient = launch.empty(tuple(x.shape), x.dtype, x.device, for_device(x.device.type))
    dx, dy = _halves(gradient)
    _run("backward", Operation(activation, "mul"), gate.shape, out=_few_dims(grad), x=gate, y=up, dx=dx, dy=dy)
    return gradient


@elementwise.register_fake
def _(x: Tensor, y: Tensor | None, number: float | None, activation: str, combine: str) -> Tensor:
    return _empty(x, y)


@elementwise_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    number: float | None,
    activation: str,
    combine: str,
    x_wanted: bool,
    y_wanted: bool,
) -> tuple[Tensor, Tensor]:
    dx, dy = _empty_gradients(x, y, (x_wanted, y_wanted))
    return dx, dy


@gate_halves.register_fake
def _(x: Tensor, activation: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@gate_halves_backward.register_fake
def _(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    return x.new_empty(x.shape)


def _sum_to(operand: tuple[torch.Size, torch.dtype], gradient: Tensor) -> Tensor:
    """The gradient of an operand of this shape and dtype from that of its broadcast form."""
    shape, dtype = operand
    added = gradient.dim() - len(shape)
    dims = [*range(added), *(added + dim for dim, size in enumerate(shape) if size != gradient.shape[added + dim])]
    return sum_(gradient, dims, True, dtype).view(shape) if dims else gradient.to(dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, ctx.number, ctx.activation, ctx.combine = inputs
    ctx.operands = tuple(operand if operand is None else (operand.shape, operand.dtype) for operand in (x, y))
    if ctx.combine == "add" and ctx.activation == "identity":
        x = y = None  # the gradients do not depend on them
    elif ctx.number is not None and ctx.activation == "identity":
        x = None
    ctx.save_for_backward(x, y)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    x_wanted, y_wanted = ctx.needs_input_grad[:2]
    dx: Tensor | None
    dy: Tensor | None
    if x is not None:
        dx, dy = torch.ops.mps_flash_attn.elementwise_backward(
            grad, x, y, ctx.number, ctx.activation, ctx.combine, x_wanted, y_wanted
        )
    elif ctx.combine == "mul":  # by a number
        dx, dy = torch.ops.mps_flash_attn.elementwise(grad, None, ctx.number, "identity", "mul"), None
    else:
        dx = dy = grad
    of_x, of_y = ctx.operands
    return (
        _sum_to(of_x, dx) if x_wanted and dx is not None else None,
        _sum_to(of_y, dy) if y_wanted and dy is not None else None,
        *(None,) * 3,
    )


def _save_halves(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.activation = inputs
    ctx.save_for_backward(x)


def _halves_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
    (x,) = ctx.saved_tensors
    return torch.ops.mps_flash_attn.gate_halves_backward(grad, x, ctx.activation), None


elementwise.register_autograd(_backward, setup_context=_save)
gate_halves.register_autograd(_halves_backward, setup_context=_save_halves)
refuse_second_derivatives("elementwise_backward", "elementwise operations")
refuse_second_derivatives("gate_halves_backward", "elementwise operations")


def _promotes_alike(operands: list[tuple[Tensor | None, int | None]]) -> bool:
    """Whether one more dimension leaves the dtype of the result: a mapped number beside another dtype would count."""
    given = [(x, x.dim() - (dim is not None)) for x, dim in operands if x is not None]
    return len({x.dtype for x, _ in given}) == 1 or all(rank > 0 for _, rank in given)


@elementwise.register_vmap
def _(info: Any, in_dims: InDims, x: Tensor, y: Tensor | None, *options: Any) -> tuple[Tensor, int]:
    operator, size = torch.ops.mps_flash_attn.elementwise, info.batch_size
    operands = list(zip((x, y), in_dims, strict=False))
    if not _promotes_alike(operands):
        return each(operator, size, (x, y, *options), in_dims)
    rank = max(each_.dim() - (dim is not None) for each_, dim in operands if each_ is not None)
    tensors = (each_ if each_ is None else lead(each_, dim, size, rank) for each_, dim in operands)
    return operator(*tensors, *options), 0


@elementwise_backward.register_vmap
def _(
    info: Any, in_dims: InDims, grad: Tensor, x: Tensor, y: Tensor | None, *options: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    operator, size = torch.ops.mps_flash_attn.elementwise_backward, info.batch_size
    operands = list(zip((grad, x, y), in_dims, strict=False))
    if not _promotes_alike(operands[1:]):
        return each(operator, size, (grad, x, y, *options), in_dims)
    rank = grad.dim() - (in_dims[0] is not None)
    tensors = (each_ if each_ is None else lead(each_, dim, size, rank) for each_, dim in operands)
    return operator(*tensors, *options), tuple(0 if wanted else None for wanted in options[-2:])


@gate_halves.register_vmap
def _(info: Any, in_dims: InDims, x: Tensor, activation: str) -> tuple[Tensor, int]:
    return torch.ops.mps_flash_attn.gate_halves(lead(x, in_dims[0], info.batch_size), activation), 0


@gate_halves_backward.register_vmap
def _(info: Any, in_dims: InDims, grad: Tensor, x: Tensor, activation: str) -> tuple[Tensor, int]:
    tensors = (lead(each_, dim, info.batch_size) for each_, dim in zip((grad, x), in_dims, strict=False))
    return torch.ops.mps_flash_attn.gate_halves_backward(*tensors, activation), 0
