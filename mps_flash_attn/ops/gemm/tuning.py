"""What there is to tune about products: forward, and the two of the gradient, whose operands lie differently."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ...launch import BoundLaunch, Capabilities, Runtime, bind
from ...self_check import Expected
from ...tune import Subject
from ..dtypes import accumulator_dtype
from . import plan
from .cases import Case, LayoutName
from .function import describe

__all__ = ["subjects"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
#: How A and B lie in ``y = x W^T``, ``dX = dY W`` and ``dW = dY^T X``.
_LAYOUTS: tuple[tuple[LayoutName, LayoutName], ...] = (
    ("contiguous", "transposed"),
    ("contiguous", "contiguous"),
    ("transposed", "contiguous"),
)
#: Rows, columns and depth: square, thin, and, for a split of the depth, deep. On the simulator, where the count of work
#: is exact however little there is, a few blocks.
_GPU_SIZES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (16, 4096, 4096), (256, 256, 8192))
_SIMULATOR_SIZES = ((128, 128, 128), (16, 128, 128), (32, 32, 512))


def subjects(capabilities: Capabilities, device: str) -> Iterator[Subject]:
    """Products in each class of problems; those for the simulator, ``cpu``, are smaller."""
    sizes = _SIMULATOR_SIZES if device == "cpu" else _GPU_SIZES
    for dtype, (rows, columns, depth), (a_layout, b_layout) in itertools.product(_DTYPES, sizes, _LAYOUTS):
        yield _subject(Case(rows, columns, depth, a_layout=a_layout, b_layout=b_layout), dtype, capabilities)


def _subject(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Subject:
    described = case.inputs(dtype, "meta")
    problem = describe(described.a, described.b, None, described.activation, save=False)

    def prepare(tiling: plan.Tiling, runtime: Runtime) -> BoundLaunch:
        return _prepared(plan.product(problem, capabilities, tiling), runtime)

    def operands() -> tuple[tuple[Tensor, ...], tuple[Expected, ...]]:
        inputs = case.inputs(dtype)
        return (inputs.a, inputs.b), (Expected("c", inputs.a.double() @ inputs.b.double(), inputs.a @ inputs.b),)

    return Subject(
        kernel="gemm",
        shape_class=plan.shape_class(problem),
        dtype=dtype,
        problem=f"{case.rows} x {case.columns} x {case.depth}",
        default=plan.default_tiling(problem, capabilities),
        tilings=tuple(plan.tilings(problem, capabilities)),
        prepare=prepare,
        operands=operands,
    )


def _prepared(chosen: plan.Plan, runtime: Runtime) -> BoundLaunch:
    """The launches of a plan on a, b and c, with room for the parts of a split product."""
    product = bind(chosen.product, runtime)
    if chosen.reduction is None:
        return lambda a, b, c: product(a, b, c, c, c)
    reduction = bind(chosen.reduction, runtime)

    def call(a: Tensor, b: Tensor, c: Tensor) -> None:
        parts = c.new_empty((chosen.splits, *c.shape), dtype=accumulator_dtype(c.dtype))
        product(a, b, c, c, parts)
        reduction(parts, c, c, c)

    return call
