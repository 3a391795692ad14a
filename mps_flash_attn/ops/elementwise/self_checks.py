"""Both elementwise kernels on small problems: each operation in float32, and two in each dtype."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...launch import Capabilities
from ...self_check import DTYPES, Expected, SelfCheck
from . import plan
from .cases import Case
from .expected import exact, pytorch
from .function import describe
from .plan import Operation

__all__ = ["self_checks"]

_IN_EACH_DTYPE = (
    Case((40, 64), (64,), combine="add"),
    Case((40, 64), (40, 64), activation="silu", combine="mul"),
)
_IN_FLOAT = (
    Case((40, 61), (40, 61), combine="mul"),
    Case((1003,), activation="relu"),
    Case((1003,), activation="relu_squared"),
    Case((1003,), activation="gelu"),
    Case((1003,), activation="gelu_tanh"),
)


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of the forward and backward kernels in each dtype that Metal has, made one problem at a time."""
    for dtype in DTYPES:
        for case in (*_IN_EACH_DTYPE, *(_IN_FLOAT if dtype == torch.float32 else ())):
            yield from _checks(case, dtype, capabilities)


def _checks(case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Iterator[SelfCheck]:
    inputs = case.inputs(dtype)
    wanted, baseline = exact(inputs), pytorch(inputs)
    results = {name: Expected(name, wanted[name], baseline[name]) for name in wanted}
    operation, shape = Operation(case.activation, case.combine), wanted["out"].shape
    words = f"{case.activation}, {case.combine}, {' x '.join(map(str, shape))}"
    x, y = inputs.x, inputs.y if isinstance(inputs.y, Tensor) else None
    operands = {"x": x} if y is None else {"x": x, "y": y}

    forward = describe(operation, shape, {**operands, "out": baseline["out"]})
    assert forward is not None
    second = x if y is None else y
    yield SelfCheck(words, dtype, plan.forward(forward, capabilities), (x, second), (results["out"],))
    if operation.combine == "add":
        return  # its gradients need no kernel
    names = ("dx",) if y is None else ("dy", "dx")
    backward = describe(operation, shape, {**operands, "out": inputs.grad, **{name: baseline[name] for name in names}})
    assert backward is not None
    read = (inputs.grad, x, second) if y is not None else (inputs.grad, x, x, x)  # nothing is written to the last
    yield SelfCheck(words, dtype, plan.backward(backward, capabilities), read, tuple(results[name] for name in names))
