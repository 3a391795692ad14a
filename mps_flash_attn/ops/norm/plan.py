"""Decides how a normalisation is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ...launch import LANES, Capabilities, Launch, ParamStruct
from ...source import Define
from ..dtypes import ELEMENTS, accumulator, accumulator_dtype, refuse_dtype
from ..rows import Operand, Rows, grid, share

__all__ = ["Problem", "backward", "forward", "parameter_blocks", "parameters"]

_FOLDER = "ops/norm"
_THREADS = 128  # of a threadgroup that adds up a block of rows
#: Rows that one threadgroup adds up for the gradients of weight and bias, and the most such blocks.
_BLOCK_ROWS, _MOST_BLOCKS = 32, 256
_OPERANDS = ("x", "residual", "dy", "dsum")


@dataclass(frozen=True)
class Problem:
    """Everything about a launch that a plan may depend on.

    Attributes:
        shape: of the input.
        dims: dimensions, from the last, over which the mean is taken: they make a row.
        operands: those among ``x residual dy dsum`` that are read, with their names; each row is contiguous.
        parameters: weight and bias, those that are read, with stride 0 outside a row.
        weight, bias: whether there is one.
        centred: LayerNorm; otherwise RMSNorm.
    """

    shape: tuple[int, ...]
    dims: int
    operands: tuple[tuple[str, Operand], ...]
    parameters: tuple[Operand, ...]
    weight: bool
    bias: bool
    eps: float
    centred: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.operands[0][1].dtype

    @property
    def parameter(self) -> torch.dtype:
        """That of weight and bias, ``dtype`` where there is neither."""
        return self.parameters[0].dtype if self.parameters else self.dtype

    def reads(self, name: str) -> bool:
        """Whether that tensor is among those read."""
        return name in dict(self.operands)

    @functools.cached_property
    def rows(self) -> Rows:
        """Outputs are contiguous. Rows are in order, as those of the statistics are."""
        operands = dict(self.operands)
        every = [operands.get(name, operands["x"]) for name in _OPERANDS]
        written = Operand.contiguous(self.dtype, self.shape)
        row = range(len(self.shape) - self.dims, len(self.shape))
        return Rows.over(row, self.shape, (*every, written, *self.parameters), in_order=True)


def parameter_blocks(problem: Problem) -> tuple[int, int]:
    """Blocks of rows for the gradients of weight and bias, and the rows of each."""
    rows = max(_BLOCK_ROWS, -(-problem.rows.count // _MOST_BLOCKS))
    return -(-problem.rows.count // rows), rows


def _launch(
    name: str,
    problem: Problem,
    defines: tuple[Define, ...],
    threads: tuple[int, int, int],
    group_threads: int,
    threadgroup_numbers: int,
) -> Launch:
    params, (blocks, block_rows) = ParamStruct.read(f"{_FOLDER}/args.h", "NormArgs"), parameter_blocks(problem)
    number, fields = accumulator(problem.dtype), {"blocks": blocks, "block_rows": block_rows, "eps": problem.eps}
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel=f"norm_{name}",
        defines=(
            ("ELEMENT", ELEMENTS[problem.dtype]),
            ("ACCUMULATOR", number),
            ("PARAMETER", ELEMENTS[problem.parameter]),
            ("ARGS_BYTES", params.size),
            ("CENTRED", int(problem.centred)),
            *problem.rows.defines,
            *defines,
        ),
        words=params.pack(problem.rows.params(*_OPERANDS) | fields, number),
        threads=threads,
        group_size=(group_threads, 1, 1),
        threadgroup_bytes=threadgroup_numbers * accumulator_dtype(problem.dtype).itemsize,
    )


def _refuse(problem: Problem, capabilities: Capabilities) -> None:
    for dtype in (problem.dtype, problem.parameter):
        refuse_dtype(dtype, capabilities)


def _over_rows(
    name: str,
    problem: Problem,
    capabilities: Capabilities,
    defines: tuple[Define, ...],
    *,
    held: int,
    scratch_numbers: int,
) -> Launch:
    """A kernel with a team of threads for each row, each of which keeps its elements of so many operands."""
    _refuse(problem, capabilities)
    team = share(problem.rows, capabilities, held=[problem.dtype] * held)
    defines = (*team.defines, ("WEIGHT", int(problem.weight)), *defines)
    threads = grid(problem.rows.count, team)
    return _launch(name, problem, defines, threads, team.threads, team.scratch * scratch_numbers)


@functools.lru_cache(maxsize=1024)
def forward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``norm_forward``.

    Raises:
        UnsupportedError: with the reason.
    """
    defines = (("BIAS", int(problem.bias)), ("RESIDUAL", int(problem.reads("residual"))))
    return _over_rows("forward", problem, capabilities, defines, held=1, scratch_numbers=3)


@functools.lru_cache(maxsize=1024)
def backward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``norm_backward``.

    Raises:
        UnsupportedError: with the reason.
    """
    defines = (("SUM_GRADIENT", int(problem.reads("dsum"))),)
    return _over_rows("backward", problem, capabilities, defines, held=2, scratch_numbers=2)


@functools.lru_cache(maxsize=1024)
def parameters(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``norm_backward_parameters``.

    Raises:
        UnsupportedError: with the reason.
    """
    _refuse(problem, capabilities)
    sums, (blocks, _), rows = 1 + problem.bias, parameter_blocks(problem), problem.rows
    defines = (("PACK", rows.pack), ("THREADS", _THREADS), ("SUMS", sums))
    threads = (-(-rows.length // (LANES * rows.pack)) * _THREADS, blocks, 1)
    return _launch("backward_parameters", problem, defines, threads, _THREADS, sums * _THREADS * rows.pack)
