"""Rung 9: rung 8's kernel with the tiling that the package's tuner ranks best on this device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .... import launch as launching
from .... import tune
from ....launch import BoundLaunch, Runtime
from ....self_check import Expected
from .plan import RUNGS, Problem, Tiling, launch, tilings

__all__ = ["search", "subject"]

_RUNG = RUNGS[8]


def subject(problem: Problem, candidates: Sequence[Tiling] | None = None) -> tune.Subject:
    """What the tuner needs to know of a product.

    Args:
        problem: the product.
        candidates: tilings to try, all by default.
    """

    def prepare(tiling: Tiling, runtime: Runtime) -> BoundLaunch:
        return launching.bind(launch(_RUNG, problem, runtime.CAPABILITIES, tiling), runtime)

    def operands() -> tuple[tuple[Tensor, ...], tuple[Expected, ...]]:
        a = torch.randn(problem.rows, problem.depth).to(problem.dtype)
        b = torch.randn(problem.depth, problem.columns).to(problem.dtype)
        return (a, b), (Expected("c", a.double() @ b.double(), a @ b),)

    sizes = f"{problem.rows} x {problem.columns} x {problem.depth}"
    return tune.Subject(
        kernel=_RUNG.kernel,
        shape_class=sizes,
        dtype=problem.dtype,
        problem=sizes,
        default=_RUNG.tiling,
        tilings=tuple(tilings() if candidates is None else candidates),
        prepare=prepare,
        operands=operands,
    )


def search(problem: Problem, device: str, limit: int | None = None) -> tune.Result:
    """Tries tilings, ranked by time on a GPU and by the counted work on the simulator; stores nothing.

    Args:
        device: type of the device.
        limit: the most tilings, rung 8's included.
    """
    return tune.search(subject(problem), device, limit=limit)
