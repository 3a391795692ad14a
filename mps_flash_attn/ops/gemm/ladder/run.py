"""Runs a rung on tensors."""

from __future__ import annotations

from torch import Tensor

from .... import launch as launching
from ....launch import BoundLaunch
from ....runtime.base import for_device
from ...calls import PreparedCalls, address
from ...checks import require_match, require_tensor
from .plan import Problem, Rung, Tiling, launch

__all__ = ["multiply", "problem"]

_calls = PreparedCalls[BoundLaunch]()


def problem(a: Tensor, b: Tensor) -> Problem:
    """The problem of two contiguous matrices."""
    aligned = address(a) == address(b) == 0
    return Problem(a.dtype, a.shape[0], b.shape[1], a.shape[1], aligned)


def multiply(rung: Rung, a: Tensor, b: Tensor, tiling: Tiling | None = None) -> Tensor:
    """``a @ b`` by one rung, without gradients.

    Args:
        a: ``[M, K]``, contiguous.
        b: ``[K, N]``, contiguous, with the dtype and device of ``a``.
        tiling: other sizes than the rung's own.

    Raises:
        TypeError, ValueError: operands that do not go together, or are not contiguous.
        UnsupportedError: a tiling that cannot run.
    """
    for name, tensor in (("a", a), ("b", b)):
        require_tensor(name, tensor)
        if tensor.dim() != 2 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}; accepted is a contiguous matrix"
            )
    require_match("b", b, "a", a)
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"b has shape {tuple(b.shape)}; accepted are as many rows as a has columns, {a.shape[1]}")
    runtime = for_device(a.device.type)
    c = launching.empty((a.shape[0], b.shape[1]), a.dtype, a.device, runtime)
    if c.numel() == 0:
        return c
    if a.shape[1] == 0:
        a = b = c  # of which nothing is read
        which = Problem(c.dtype, c.shape[0], c.shape[1], 0)
    else:
        which = problem(a, b)
    key = (rung, which, tiling, a.device)
    call = _calls.prepared(key, lambda: launching.bind(launch(rung, which, runtime.CAPABILITIES, tiling), runtime))
    call(a.detach(), b.detach(), c)
    return c
