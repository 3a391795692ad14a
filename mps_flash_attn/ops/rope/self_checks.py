"""The rotation on small problems, in each way that it gets its angles."""

from __future__ import annotations

from collections.abc import Iterator

from ...launch import Capabilities
from ...self_check import DTYPES, Expected, SelfCheck
from . import plan
from .cases import Case
from .function import describe, turns

__all__ = ["self_checks"]

#: Far positions, where angles computed in float32 would be wrong.
_CASES = (
    Case((2, 3, 40), 64, 64, first=100_000),
    Case((2, 3, 40), 96, 64, interleaved=True, angles="batch-positions", first=1_000_000),
    Case((2, 3, 40), 17, 10, interleaved=True, angles="tables"),
)


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of the kernel in each dtype that Metal has, made one problem at a time."""
    for dtype in DTYPES:
        for case in _CASES:
            input, positions = case.input(dtype), case.positions()  # noqa: A001
            given = case.arguments(positions, dtype)
            cos, offset = given.get("cos"), given.get("offset", 0)
            problem = describe(
                input, input, given.get("positions"), cos, offset, case.rotary_dim, case.interleaved, inverse=False
            )
            units = turns(case.base, case.rotary_dim, input.device)
            angles = (units, given.get("positions", units)) if cos is None else (cos, given["sin"])
            kind = f"{'interleaved' if case.interleaved else 'half'}, {case.angles} from {case.first}"
            yield SelfCheck(
                f"L {input.shape[-2]}, D {case.columns}, R {case.rotary_dim}, {kind}",
                dtype,
                plan.forward(problem, capabilities),
                (input, *angles),
                (Expected("output", *case.expected(input, positions)),),
            )
