"""One launch of a kernel with its tensors and what it has to write: what operations offer for checking a machine."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from . import tolerance
from .launch import Capabilities, Launch, Runtime, bind

__all__ = ["DTYPES", "Expected", "Measured", "SelfCheck", "in_each_dtype", "measure"]

#: Floating-point types of Metal.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_TIMED_CALLS = 3
_Case = TypeVar("_Case")


@dataclass(frozen=True)
class Expected:
    """What one output has to be; CPU tensors of the same shape.

    Attributes:
        name: of the output.
        reference: in float64.
        pytorch: as PyTorch computes it, in the output's dtype; integers must leave one of their dtype's values out.
    """

    name: str
    reference: Tensor
    pytorch: Tensor


@dataclass(frozen=True)
class Measured:
    """How a check went.

    Attributes:
        output: the output that comes closest to its bound, or exceeds it most.
        error: its largest absolute difference from the reference.
        bound: the largest allowed.
        prepare_ms: the first call, which compiles kernels or finds them compiled.
        launch_ms: median of later calls, each waited for.
    """

    output: str
    error: float
    bound: float
    prepare_ms: float
    launch_ms: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


@dataclass(frozen=True)
class SelfCheck:
    """A kernel's launch on a small problem with a known result.

    Attributes:
        problem: the problem in a few words.
        dtype: of the problem.
        launch: as the plan decided it.
        inputs: what the kernel reads, contiguous CPU tensors, in the order of its buffers.
        outputs: what it writes, in the order of its buffers, which follow those of the inputs.
    """

    problem: str
    dtype: torch.dtype
    launch: Launch
    inputs: tuple[Tensor, ...]
    outputs: tuple[Expected, ...]

    def measure(self, runtime: Runtime, device: str) -> Measured:
        """Runs the kernel on outputs that hold what no result does, so that an element never written counts as wrong.

        Raises:
            MPSFlashAttnError: the kernel could not be compiled or launched.
        """
        inputs = [x.to(device) for x in self.inputs]
        outputs = [_unwritten(x.pytorch, device) for x in self.outputs]
        kernel = functools.cache(lambda: bind(self.launch, runtime))

        def launch() -> list[Tensor]:
            kernel()(*inputs, *outputs)
            return outputs

        return measure(launch, self.outputs, device)


def in_each_dtype(
    cases: Iterable[_Case],
    checks: Callable[[_Case, torch.dtype, Capabilities], Iterable[SelfCheck]],
    capabilities: Capabilities,
) -> Iterator[SelfCheck]:
    """The checks of every case in each dtype that Metal has, made one problem at a time."""
    for dtype, case in itertools.product(DTYPES, cases):
        yield from checks(case, dtype, capabilities)


def measure(call: Callable[[], Sequence[Tensor]], expected: Sequence[Expected], device: str) -> Measured:
    """Judges the results of a call, and times it.

    Args:
        call: computes what is expected, in that order, on the device.
        device: type of the device, which is waited for.
    """
    start = time.perf_counter()
    results = call()
    _wait(device)
    prepare_ms = 1e3 * (time.perf_counter() - start)
    found = [_written(x.detach().cpu(), output.pytorch) for x, output in zip(results, expected, strict=True)]
    times = []
    for _ in range(_TIMED_CALLS):
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - start))
    judged = [
        Measured(
            output.name,
            tolerance.error(actual, output.reference),
            tolerance.bound(output.pytorch, output.reference),
            prepare_ms,
            statistics.median(times),
        )
        for output, actual in zip(expected, found, strict=True)
    ]
    return max(judged, key=lambda result: (not result.passed, result.error / (result.bound or 1)))


def _unwritten(like: Tensor, device: str) -> Tensor:
    """What an output holds before a launch."""
    return torch.full_like(like, _foreign(like), device=device)


def _written(output: Tensor, like: Tensor) -> Tensor:
    """The output with NaN wherever it was never written."""
    return output if like.dtype.is_floating_point else output.double().masked_fill(output == _foreign(like), torch.nan)


def _foreign(like: Tensor) -> float:
    """A value that is nowhere in a tensor: NaN, or where integers have none the largest that is left."""
    if like.dtype.is_floating_point:
        return torch.nan
    values, most = set(like.flatten().tolist()), torch.iinfo(like.dtype).max
    return next(number for number in range(most, most - len(values) - 1, -1) if number not in values)


def _wait(device: str) -> None:
    if device == "mps":
        torch.mps.synchronize()
    elif device == "cuda":
        torch.cuda.synchronize()
