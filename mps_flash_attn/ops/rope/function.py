"""The operator ``torch.ops.mps_flash_attn.rope``: launch, fake and autograd.

A rotation's gradient is the rotation back, so the operator is its own backward pass, any number of times.
"""

# ruff: noqa: A001, A002 -- `input` is what PyTorch calls it

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import launch
from ...runtime.base import for_device
from ..calls import PreparedCalls, alignment, geometry
from ..checks import require_match, require_shape, require_tensor
from ..dtypes import accumulator_dtype
from ..strides import coalesce
from ..vmap import InDims, each, lead
from . import plan
from .plan import Angles

__all__ = ["describe", "rope", "turn_back", "turns"]

_Call = Callable[[Tensor, "Tensor | None", "Tensor | None"], Tensor]

_calls = PreparedCalls[_Call]()
_in_place = PreparedCalls[launch.BoundLaunch]()


@functools.lru_cache(maxsize=64)
def turns(base: float, rotary_dim: int, device: torch.device) -> Tensor:
    """By what fraction of a turn each pair advances from one position to the next, ``[R / 2]``, int64.

    Pair ``i`` turns by ``base ** (-2 i / R)`` radians, computed in float64 and rounded to units of 2^-64 turns. A
    kernel multiplies it by the position in 64 bits: what overflows is whole turns, so that far positions lose nothing.
    """
    radians = [base ** (-2 * i / rotary_dim) for i in range(rotary_dim // 2)]
    units = [int(math.ldexp(x / math.tau, 64)) % 2**64 for x in radians]
    return torch.tensor([x - 2**64 if x >= 2**63 else x for x in units], dtype=torch.int64, device=device)


def describe(
    input: Tensor,
    output: Tensor,
    positions: Tensor | None,
    cos: Tensor | None,
    offset: int,
    rotary_dim: int,
    interleaved: bool,
    inverse: bool,
) -> plan.Problem:
    """The problem of a call of `rope`; ``sin`` lies as ``cos`` does. Last dimensions have stride 1."""
    values = cos if positions is None else positions
    angles = Angles.IMPLIED if values is None else Angles.TABLES if positions is None else Angles.POSITIONS
    strides = () if values is None else values.stride()[: values.dim() - (angles == Angles.TABLES)]
    per_batch = len(strides) == 2
    (*outer, inner), in_strides, out_strides = _merged(input, output, apart=int(per_batch))
    return plan.Problem(
        dtype=input.dtype,
        outer=tuple(outer),
        inner=inner,
        length=input.shape[-2],
        columns=input.shape[-1],
        rotary_dim=rotary_dim,
        input_strides=in_strides,
        output_strides=out_strides,
        batches=input.shape[0] if per_batch else 1,
        angles=angles,
        position_dtype=torch.int32 if positions is None else positions.dtype,
        angle_strides=(strides[0] if per_batch else 0, strides[-1] if strides else 0),
        step=math.gcd(alignment(input, *in_strides), alignment(output, *out_strides)),
        offset=offset,
        interleaved=interleaved,
        inverse=inverse,
    )


def _merged(
    input: Tensor,
    output: Tensor,
    apart: int,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Sizes of all dimensions before the last two, at least two, and the strides of these and of the rows.

    The first ``apart`` dimensions stay as they are; neighbours among the others become one where strides allow it.
    """
    shape, both = input.shape[apart:-2], (input.stride(), output.stride())
    sizes, merged = coalesce(shape, *(stride[apart:-2] for stride in both))
    inner, outer = (1,) * (not sizes), (1,) * (not apart and len(sizes) < 2)
    kept = zip(both, merged, strict=True)
    strides = [(*(0,) * len(outer), *all_[:apart], *own, *(0,) * len(inner), all_[-2]) for all_, own in kept]
    return (*outer, *input.shape[:apart], *sizes, *inner), strides[0], strides[1]


def _readable(input: Tensor) -> Tensor:
    """The tensor, or a contiguous copy where rows are strided or lie in more dimensions than the kernel knows."""
    if input.stride(-1) != 1 or len(coalesce(input.shape[1:-2], input.stride()[1:-2])[0]) >= plan.MAX_OUTER:
        return input.contiguous()
    return input


def _require_arguments(
    input: Tensor,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    rotary_dim: int,
) -> None:
    require_tensor("input", input)
    if input.dim() < 2:
        raise ValueError(f"input has shape {tuple(input.shape)}; accepted are two dimensions or more: [..., L, D]")
    columns = input.shape[-1]
    if not 0 <= rotary_dim <= columns or rotary_dim % 2:
        raise ValueError(f"rotary_dim is {rotary_dim}; accepted are even numbers from 0 to D, {columns}")
    if positions is not None:
        require_tensor("positions", positions, plan.POSITIONS, "int32 and int64")
        require_match("positions", positions, "input", input, dtype=False)
        _require_rows("positions", positions, input, ())
    if cos is not None and sin is not None:
        for name, table in (("cos", cos), ("sin", sin)):
            require_tensor(name, table)
            require_match(name, table, "input", input, dtype=False)
            _require_rows(name, table, input, (rotary_dim // 2,))
        require_shape("sin", sin, tuple(cos.shape), "the shape of cos")


def _require_rows(name: str, values: Tensor, input: Tensor, last: tuple[int, ...]) -> None:
    """One value, or row of values, for each position, or for each batch and position."""
    shapes = [(input.shape[-2], *last)]
    if input.dim() > 2:
        shapes.append((input.shape[0], input.shape[-2], *last))
    if tuple(values.shape) not in shapes:
        words = " and ".join(map(str, shapes))
        raise ValueError(f"{name} has shape {tuple(values.shape)}; accepted for this input and rotary_dim are {words}")


def _prepare(
    input: Tensor,
    positions: Tensor | None,
    cos: Tensor | None,
    base: float,
    offset: int,
    rotary_dim: int,
    interleaved: bool,
    inverse: bool,
) -> _Call:
    runtime = for_device(input.device.type)
    output = torch.empty_like(input)
    problem = describe(input, output, positions, cos, offset, rotary_dim, interleaved, inverse)
    bound = launch.bind(plan.forward(problem, runtime.CAPABILITIES), runtime)
    units = None if cos is not None else turns(base, rotary_dim, input.device)

    def call(input: Tensor, first: Tensor | None, second: Tensor | None) -> Tensor:
        output = launch.empty_like(input, runtime)
        if units is not None:
            first, second = units, units if second is None else second
        bound(input, first, second, output)
        return output

    return call


def _prepare_in_place(gradient: Tensor, cos: Tensor, interleaved: bool) -> launch.BoundLaunch:
    runtime = for_device(gradient.device.type)
    problem = describe(gradient, gradient, None, cos, 0, 2 * cos.shape[-1], interleaved, inverse=True)
    return launch.bind(plan.forward(problem, runtime.CAPABILITIES), runtime)


def turn_back(gradient: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    """Turns the rows of a dense ``[..., L, D]`` back in place.

    Args:
        gradient: its last dimension has stride 1, and no two elements share memory.
        cos, sin: contiguous tables ``[L, R / 2]`` of `accumulator_dtype`.
    """
    problem = (geometry(gradient), geometry(cos), interleaved)
    bound = _in_place.prepared(problem, _prepare_in_place, gradient, cos, interleaved)
    bound(gradient, cos, sin, gradient)


@torch.library.custom_op("mps_flash_attn::rope", mutates_args=())
def rope(
    input: Tensor,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    base: float,
    offset: int,
    rotary_dim: int,
    interleaved: bool,
    inverse: bool,
) -> Tensor:
    """Each row's pairs turned by angles of its position.

    Args:
        input: ``[..., L, D]``.
        positions: int32 or int64, ``[L]`` or ``[B, L]`` with ``B`` the size of input's first dimension; ``None`` for
            ``offset, offset + 1, ...``
        cos, sin: ``[L, R / 2]`` or ``[B, L, R / 2]``, any floating dtype; both or none, and instead of positions.
        base: pair ``i`` turns by ``base ** (-2 i / R)`` radians from one position to the next.
        rotary_dim: R, even; the other columns are copied.
        interleaved: pair ``i`` is columns ``(2 i, 2 i + 1)``, not ``(i, i + R / 2)``.
        inverse: turns the other way.

    Returns:
        Like ``input``.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not go together.
        UnsupportedError: a problem that no plan serves.
    """
    _require_arguments(input, positions, cos, sin, rotary_dim)
    input = _readable(input)
    if input.numel() == 0 or rotary_dim == 0:
        return input.clone()
    if cos is not None and sin is not None:
        cos, sin = (x.to(accumulator_dtype(input.dtype)).contiguous() for x in (cos, sin))
    others = None if positions is None else geometry(positions), None if cos is None else geometry(cos)
    problem = geometry(input), *others, base, offset, rotary_dim, interleaved, inverse
    call = _calls.prepared(problem, _prepare, input, positions, cos, base, offset, rotary_dim, interleaved, inverse)
    return call(input, cos, positions if cos is None else sin)


@rope.register_fake
def _(
    input: Tensor,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    base: float,
    offset: int,
    rotary_dim: int,
    interleaved: bool,
    inverse: bool,
) -> Tensor:
    return torch.empty_like(_readable(input))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, positions, cos, sin, *ctx.others, ctx.inverse = inputs
    ctx.save_for_backward(positions, cos, sin)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    gradient = torch.ops.mps_flash_attn.rope(grad_output, *ctx.saved_tensors, *ctx.others, not ctx.inverse)
    return gradient, *(None,) * 8


rope.register_autograd(_backward, setup_context=_save_for_backward)


@rope.register_vmap
def _(
    info: Any,
    in_dims: InDims,
    input: Tensor,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    *options: Any,
) -> tuple[Tensor, int]:
    operator, others = torch.ops.mps_flash_attn.rope, (positions, cos, sin)
    shared = positions is None or positions.dim() == 1, cos is None or cos.dim() == 2, sin is None or sin.dim() == 2
    if not all(shared) or any(dim is not None for dim in in_dims[1:4]):
        return each(operator, info.batch_size, (input, *others, *options), in_dims)
    return operator(lead(input, in_dims[0], info.batch_size), *others, *options), 0
