"""Decides how an elementwise operation is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...errors import UnsupportedError
from ...launch import Capabilities, Launch, ParamStruct
from ...source import Define
from ..dtypes import ELEMENTS, accumulator, refuse_dtype
from ..strides import coalesce

__all__ = ["ACTIVATIONS", "COMBINATIONS", "MAX_DIMS", "Operation", "Problem", "backward", "describe", "forward"]

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

_FOLDER = "ops/elementwise"
_CHUNK_BYTES = 16  # what a lane moves at once
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
        strides: names and strides over ``sizes``, of those among ``x y out dx dy`` that there are.
        packed: elements are moved 16 bytes at a time.
    """

    dtype: torch.dtype
    operation: Operation
    sizes: tuple[int, ...]
    strides: tuple[tuple[str, tuple[int, ...]], ...]
    packed: bool

    def has(self, name: str) -> bool:
        return name in dict(self.strides)


def describe(
    dtype: torch.dtype,
    operation: Operation,
    shape: Sequence[int],
    strides: Mapping[str, Sequence[int]],
    addresses: Mapping[str, int],
) -> Problem | None:
    """The problem of a launch; ``None`` if it takes more than `MAX_DIMS` dimensions.

    Args:
        shape: of the result.
        strides: of each of ``x y out dx dy`` that there is, over ``shape``, 0 where it is broadcast. In the backward
            pass ``out`` is the result's gradient.
        addresses: of each tensor, modulo 16 bytes.
    """
    # Elements are independent, so they are counted in the order in which results lie in memory.
    written = _written(strides)
    order = sorted(range(len(shape)), key=lambda dim: -strides[written[0]][dim])
    sizes, merged = coalesce([shape[dim] for dim in order], *([s[dim] for dim in order] for s in strides.values()))
    if len(sizes) > MAX_DIMS:
        return None
    missing = next(dims for dims in _DIMS if len(sizes) <= dims) - len(sizes)
    sizes = (*(1,) * missing, *sizes)
    padded = {name: (*(0,) * missing, *own) for name, own in zip(strides, merged, strict=True)}
    return Problem(dtype, operation, sizes, tuple(padded.items()), _may_pack(dtype, sizes, padded, addresses))


def _may_pack(
    dtype: torch.dtype, sizes: Sequence[int], strides: Mapping[str, Sequence[int]], addresses: Mapping[str, int]
) -> bool:
    """Whether every pack lies in one row, and is aligned in the tensors where its elements are neighbours."""
    pack = _CHUNK_BYTES // dtype.itemsize
    rows = [dim for dim in range(len(sizes) - 1) if sizes[dim] > 1]
    if rows and sizes[-1] % pack:
        return False
    neighbours = [name for name, own in strides.items() if own[-1] == 1]
    aligned = (addresses[name] == 0 and all(strides[name][dim] % pack == 0 for dim in rows) for name in neighbours)
    return set(_written(strides)) <= set(neighbours) and all(aligned)


def _written(names: Iterable[str]) -> list[str]:
    """Which of these tensors a kernel writes: gradients, or else the result."""
    return [name for name in names if name in ("dx", "dy")] or ["out"]


def _params() -> ParamStruct:
    return ParamStruct.read(f"{_FOLDER}/args.h", "ElementwiseArgs")


def _filled(values: Sequence[int]) -> tuple[int, ...]:
    return (*values, *(0,) * (MAX_DIMS - len(values)))


def _launch(name: str, problem: Problem, capabilities: Capabilities, defines: tuple[Define, ...]) -> Launch:
    refuse_dtype(problem.dtype, capabilities)
    count, pack = math.prod(problem.sizes), _CHUNK_BYTES // problem.dtype.itemsize if problem.packed else 1
    threads = -(-count // pack)
    if threads >= 2**32:
        raise UnsupportedError(f"{count} elements do not fit in the grid")
    operation, strides = problem.operation, dict(problem.strides)
    second = 2 if operation.number is not None else int(problem.has("y"))
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel=f"elementwise_{name}",
        defines=(
            ("ELEMENT", ELEMENTS[problem.dtype]),
            ("ACCUMULATOR", accumulator(problem.dtype)),
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
                **{f"{tensor}_stride": _filled(strides.get(tensor, ())) for tensor in _STRIDES},
                "number": operation.number or 0.0,
            },
            accumulator(problem.dtype),
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
