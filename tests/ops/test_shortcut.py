"""The way to a kernel around PyTorch's dispatcher: taken where the dispatcher has nothing to do, and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mps_flash_attn.ops.calls import shortcut


class Mode(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    """Another kind of mode, that changes nothing either."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    """A subclass of tensors that changes nothing."""


taken = shortcut(lambda *args, **options: "operator", lambda *args, **options: "kernel")


def plain() -> Tensor:
    return torch.ones(2)


def needing_grad() -> Tensor:
    return torch.ones(2, requires_grad=True)


def negated() -> Tensor:
    """A view whose values are the negative of those in memory, by a flag."""
    return torch.complex(plain(), plain()).conj().imag


def inference() -> Tensor:
    with torch.inference_mode():
        return torch.ones(2)


@pytest.mark.parametrize("make", [plain, inference, lambda: torch.nn.Parameter(plain(), requires_grad=False)])
@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_calls_that_nobody_watches_go_to_the_kernel(
    make: Callable[[], Tensor], context: Callable[[], contextlib.AbstractContextManager[Any]]
) -> None:
    x = make()
    with context():
        assert taken(x, None, 0.5, 1) == "kernel"


def test_gradients_are_asked_for_only_where_they_are_on() -> None:
    assert taken(plain(), needing_grad()) == "operator"
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert taken(needing_grad()) == "kernel"


@pytest.mark.parametrize(
    "make", [negated, lambda: plain().as_subclass(Subclass), lambda: plain().to_sparse(), lambda: plain().to("meta")]
)
def test_tensors_that_are_more_than_their_memory_go_to_the_operator(make: Callable[[], Tensor]) -> None:
    assert taken(plain(), make()) == "operator"


@pytest.mark.parametrize("context", [Mode, FunctionMode, torch.profiler.profile, torch.autograd.profiler.profile])
def test_who_watches_sees_the_operator(context: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
    with context():
        assert taken(plain()) == "operator"
    assert taken(plain()) == "kernel"


def test_transforms_see_the_operator() -> None:
    seen = []
    torch.vmap(lambda x: seen.append(taken(x)) or x)(torch.ones(2, 2))
    torch.func.grad(lambda x: seen.append(taken(x)) or x.sum())(plain())
    torch.jit.trace(lambda x: seen.append(taken(x)) or x + 1, (plain(),), check_trace=False)
    assert set(seen) == {"operator"}


@pytest.mark.usefixtures("fresh_compiler")
def test_compilers_see_the_operator() -> None:
    compiled = torch.compile(lambda x: x + (1 if taken(x) == "operator" else 2), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(plain()), torch.full((2,), 2.0))


def test_named_arguments_go_to_the_operator() -> None:
    """Their tensors are not looked at."""
    assert taken(plain(), other=plain()) == "operator"
