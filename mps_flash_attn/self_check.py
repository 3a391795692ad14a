"""One launch of a kernel with its tensors and what it has to write: what operations offer for checking a machine."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from . import tolerance
from .launch import Launch, bind
from .runtime.base import Runtime

__all__ = ["Expected", "Measured", "SelfCheck"]

_TIMED_LAUNCHES = 3


@dataclass(frozen=True)
class Expected:
    """What a kernel has to write to one of its outputs; CPU tensors of the same shape.

    Attributes:
        name: of the output.
        reference: in float64.
        pytorch: as PyTorch computes it, in the output's dtype.
    """

    name: str
    reference: Tensor
    pytorch: Tensor


@dataclass(frozen=True)
class Measured:
    """One run of a `SelfCheck`.

    Attributes:
        output: the output that comes closest to its bound, or exceeds it most.
        error: its largest absolute difference from the reference.
        bound: the largest allowed.
        prepare_ms: compiling the kernel, or finding it compiled, and launching it for the first time.
        launch_ms: median of later launches, each waited for.
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
        """Runs the kernel on outputs full of NaN, so that an element never written counts as wrong.

        Raises:
            MPSFlashAttnError: the kernel could not be compiled or launched.
        """
        inputs = [x.to(device) for x in self.inputs]
        outputs = [torch.full_like(x.pytorch, torch.nan, device=device) for x in self.outputs]
        _wait(device)
        start = time.perf_counter()
        run = bind(self.launch, runtime)
        run(*inputs, *outputs)
        _wait(device)
        prepare_ms = 1e3 * (time.perf_counter() - start)
        found = [x.cpu() for x in outputs]
        times = []
        for _ in range(_TIMED_LAUNCHES):
            start = time.perf_counter()
            run(*inputs, *outputs)
            _wait(device)
            times.append(1e3 * (time.perf_counter() - start))
        results = [
            Measured(
                expected.name,
                tolerance.error(actual, expected.reference),
                tolerance.bound(expected.pytorch, expected.reference),
                prepare_ms,
                statistics.median(times),
            )
            for expected, actual in zip(self.outputs, found, strict=True)
        ]
        return max(results, key=lambda result: (not result.passed, result.error / result.bound))


def _wait(device: str) -> None:
    if device == "mps":
        torch.mps.synchronize()
