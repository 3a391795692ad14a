"""Decides how an elementwise operation is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...errors import UnsupportedError
from ...launch import CHUNK_BYTES, Capabilities, Launch, ParamStruct
from ...source import Define
from ..dtypes import ELEMENTS, refuse_dtype
from ..rows import Operand
from ..strides import coalesce

__all__ = [
    "ACTIVATIONS",
    "COMBINATIONS",
    "MAX_DIMS",
    "STAND_INS",
    "Operation",
    "Problem",
    "backward",
    "describe",
    "forward",
]

#: Dimensions that elements may be counted over, once those that follow each other in memory are one.
MAX_DIMS = 8
#: Kernels come for these numbers of dimensions: contiguous tensors, rows, and everything else.
_DIMS = (1, 2, 4, MAX_DIMS)
#: Names of the functions of ``operation.h``.
ACTIVATIONS = {
    "identity": "Identity",
    "relu": "Relu",
    "relu_squared": "ReluSquared",
    "gelu": "Gelu",
    "gelu_tanh": "GeluTanh",
    "silu": "Silu",
}
COMBINATIONS = {"none": "None", "add": "Add", "mul": "Multiply"}
#: The tensor in whose place a kernel gets another, which it is told to leave alone, where there is none.
STAND_INS = {"y": "x", "dx": "dy", "dy": "dx"}

_FOLDER = "ops/elementwise"
_THREADS = 256
_STRIDES = ("x", "y", "out", "dx", "dy")


@dataclass(frozen=True)
class Operation:
    """``out = combine(activation(x), y)``.

    Attributes:
        activation: a key of `ACTIVATIONS`.
        combine: a key of `COMBINATIONS`.
        number: ``y`` where that is not a tensor.
    """

    activation: str
    combine: str
    number: float | None = None


@dataclass(frozen=True)
class Problem:
    """Everything about a launch that a plan may depend on.

    Attributes:
        sizes: the dimensions that elements are counted over, as many as a kernel is made for.
        operands: those among ``x y out dx dy`` that there are, with strides over ``sizes``. In the backward pass
            ``out`` is the result's gradient.
        packed: elements are moved 16 bytes or more at a time.
    """

    operation: Operation
    sizes: tuple[int, ...]
    operands: tuple[tuple[str, Operand], ...]
    packed: bool

    def dtype(self, name: str) -> torch.dtype:
        """What a buffer holds: this tensor or, where there is none, another."""
        operands = dict(self.operands)
        return (operands.get(name) or operands.get(STAND_INS[name]) or operands["out"]).dtype

    @property
    def number(self) -> torch.dtype:
        """What is computed in: float64 where any tensor holds that, else float32."""
        double = any(operand.dtype == torch.float64 for _, operand in self.operands)
        return torch.float64 if double else torch.float32

    @property
    def pack(self) -> int:
        """Elements that a thread takes."""
        return _pack(operand for _, operand in self.operands) if self.packed else 1

    def has(self, name: str) -> bool:
        return name in dict(self.operands)


def describe(operation: Operation, shape: Sequence[int], operands: Mapping[str, Operand]) -> Problem | None:
    """The problem of a launch; ``None`` if it takes more than `MAX_DIMS` dimensions.

    Args:
        shape: of the result.
        operands: each of ``x y out dx dy`` that there is, with strides over ``shape``, 0 where it is broadcast.
    """
    # Elements are independent, so they are counted in the order in which results lie in memory.
    first = operands[_written(operands)[0]]
    order = sorted(range(len(shape)), key=lambda dim: -first.strides[dim])
    every = ([operand.strides[dim] for dim in order] for operand in operands.values())
    sizes, merged = coalesce([shape[dim] for dim in order], *every)
    if len(sizes) > MAX_DIMS:
        return None
    missing = next(dims for dims in _DIMS if len(sizes) <= dims) - len(sizes)
    sizes = (*(1,) * missing, *sizes)
    padded = {
        name: replace(operand, strides=(*(0,) * missing, *own))
        for (name, operand), own in zip(operands.items(), merged, strict=True)
    }
    return Problem(operation, sizes, tuple(padded.items()), _may_pack(sizes, padded))


def _pack(operands: Iterable[Operand]) -> int:
    """Elements of a pack: 16 bytes of the smallest."""
    return CHUNK_BYTES // min(operand.dtype.itemsize for operand in operands)


def _may_pack(sizes: Sequence[int], operands: Mapping[str, Operand]) -> bool:
    """Whether every pack lies in one row, and is aligned in the tensors where its elements are neighbours."""
    pack = _pack(operands.values())
    rows = [dim for dim in range(len(sizes) - 1) if sizes[dim] > 1]
    if rows and sizes[-1] % pack:
        return False
    neighbours = {name: operand for name, operand in operands.items() if operand.strides[-1] == 1}
    aligned = (x.address == 0 and all(x.strides[dim] % pack == 0 for dim in rows) for x in neighbours.values())
    return set(_written(operands)) <= neighbours.keys() and all(aligned)


def _written(names: Iterable[str]) -> list[str]:
    """Which of these tensors a kernel writes: gradients, or else the result."""
    return [name for name in names if name in ("dx", "dy")] or ["out"]


def _params() -> ParamStruct:
    return ParamStruct.read(f"{_FOLDER}/args.h", "ElementwiseArgs")


def _filled(values: Sequence[int]) -> tuple[int, ...]:
    return (*values, *(0,) * (MAX_DIMS - len(values)))


def _launch(name: str, problem: Problem, capabilities: Capabilities, defines: tuple[Define, ...]) -> Launch:
    operands = dict(problem.operands)
    for operand in operands.values():
        refuse_dtype(operand.dtype, capabilities)
    count, pack = math.prod(problem.sizes), problem.pack
    threads = -(-count // pack)
    if threads >= 2**32:
        raise UnsupportedError(f"{count} elements do not fit in the grid")
    operation = problem.operation
    second = 2 if operation.number is not None else int(problem.has("y"))
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel=f"elementwise_{name}",
        defines=(
            ("ELEMENT", ELEMENTS[problem.dtype("out")]),
            *((f"ELEMENT_{name.upper()}", ELEMENTS[problem.dtype(name)]) for name in ("x", "y", "dx", "dy")),
            ("ACCUMULATOR", ELEMENTS[problem.number]),
            ("ARGS_BYTES", _params().size),
            ("ACTIVATION", ACTIVATIONS[operation.activation]),
            ("COMBINE", COMBINATIONS[operation.combine]),
            ("SECOND", second),
            ("DIMS", len(problem.sizes)),
            ("PACK", pack),
            *defines,
        ),
        words=_params().pack(
            {
                "count": count,
                "sizes": _filled(problem.sizes),
                **{
                    f"{tensor}_stride": _filled(operands[tensor].strides if tensor in operands else ())
                    for tensor in _STRIDES
                },
                "number": operation.number or 0.0,
            },
            ELEMENTS[problem.number],
        ),
        threads=(threads, 1, 1),
        group_size=(_THREADS, 1, 1),
        threadgroup_bytes=0,
    )


@functools.lru_cache(maxsize=1024)
def forward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``elementwise_forward``.

    Raises:
        UnsupportedError: with the reason.
    """
    return _launch("forward", problem, capabilities, ())


@functools.lru_cache(maxsize=1024)
def backward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``elementwise_backward``.

    Raises:
        UnsupportedError: with the reason.
    """
    defines = (("X_GRADIENT", int(problem.has("dx"))), ("Y_GRADIENT", int(problem.has("dy"))))
    return _launch("backward", problem, capabilities, defines)
