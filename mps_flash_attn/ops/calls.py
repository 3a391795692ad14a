"""Prepared calls: what a repeated call with the same shapes and strides needs beyond its outputs and launches.

And a way to an operator's kernel that leaves out PyTorch's dispatcher where it has nothing to do.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..launch import CHUNK_BYTES

__all__ = ["PreparedCalls", "address", "alignment", "forget", "geometry", "shortcut"]

_Call = TypeVar("_Call")
_Result = TypeVar("_Result")
_P = ParamSpec("_P")
_MOST_CALLS = 4096
_all: list[PreparedCalls[Any]] = []


class PreparedCalls(dict[Any, _Call]):
    """Calls by everything that shapes them, kept by a module; emptied when full, since plans are cheap."""

    def __init__(self) -> None:
        super().__init__()
        _all.append(self)

    def __setitem__(self, problem: Any, call: _Call) -> None:
        if len(self) >= _MOST_CALLS:
            self.clear()
        super().__setitem__(problem, call)

    def prepared(self, problem: Any, prepare: Callable[_P, _Call], *args: _P.args, **kwargs: _P.kwargs) -> _Call:
        """The call for this problem; ``prepare`` makes it of its arguments the first time."""
        call = self.get(problem)
        if call is None:
            call = self[problem] = prepare(*args, **kwargs)
        return call


def forget() -> None:
    """Empties every cache of prepared calls: after another runtime was chosen, or other tiles."""
    for calls in _all:
        calls.clear()


def address(tensor: Tensor) -> int:
    """Where the tensor starts, modulo the bytes that a lane moves at once. An MPS buffer itself is aligned."""
    return (int(tensor.storage_offset()) * tensor.element_size() if tensor.is_mps else tensor.data_ptr()) % CHUNK_BYTES


def alignment(tensor: Tensor, *steps: int) -> int:
    """The largest number of bytes, up to `CHUNK_BYTES`, that divides its address and these steps, in elements."""
    return math.gcd(CHUNK_BYTES, address(tensor), tensor.element_size() * math.gcd(*steps))


def geometry(tensor: Tensor) -> tuple[Any, ...]:
    """All of a tensor that a prepared call depends on."""
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride(), address(tensor)


def shortcut(
    dispatched: Callable[_P, _Result],
    kernel: Callable[_P, _Result],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    backward: Callable[..., tuple[Tensor | None, ...]] | None = None,
) -> Callable[_P, _Result]:
    """The operator; or its kernel itself, in calls where PyTorch's dispatcher would lead there and do nothing else.

    That is so where no gradient is wanted, and no compiler, profiler, mode, transform or subclass of tensors waits for
    the operator. An operator that is written in Python takes longer to reach than what it does before a launch. Where a
    gradient is all that is wanted beyond, the kernel is called by a function of autograd: PyTorch's own for operators
    looks up the defaults of all arguments each time.

    What says so are internals of PyTorch; where a version lacks one, it is the operator.

    Args:
        setup_context, backward: what the operator registers for autograd, if calls that want a gradient are to be
            shortened too. The first may get fewer inputs than the operator has arguments: those with their defaults.
    """
    if not _DENSE:
        return dispatched
    differentiable = None if setup_context is None or backward is None else _function(kernel, setup_context, backward)

    @functools.wraps(dispatched)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _Result:
        if kwargs or _is_watched(args):
            return dispatched(*args, **kwargs)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return kernel(*args, **kwargs)
        return dispatched(*args, **kwargs) if differentiable is None else differentiable(*args)

    return call


def _function(
    kernel: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., Any]:
    """The kernel, known to autograd."""

    class Shortcut(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = kernel(*args)
            setup_context(ctx, args, output)
            ctx.inputs = len(args)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return backward(ctx, *gradients)[: ctx.inputs]

    function: Callable[..., Any] = Shortcut.apply
    return function


def _is_watched(args: Sequence[object]) -> bool:
    """Whether somebody beside its kernel and autograd has to see the call of an operator with these arguments."""
    if (
        torch.compiler.is_compiling()
        or torch._C._dispatch_tls_local_include_set().raw_repr() not in _NO_MODE
        or torch._C._len_torch_function_stack() > 0
    ):
        return True
    for x in args:
        if isinstance(x, Tensor) and (
            type(x) not in (Tensor, torch.nn.Parameter) or torch._C._dispatch_keys(x).raw_repr() not in _DENSE
        ):
            return True
    return bool(torch._C._autograd._profiler_enabled())


def _keys(*names: str) -> int:
    """PyTorch's number for a set of dispatch keys."""
    sets = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)) for name in names)
    return functools.reduce(operator.or_, sets).raw_repr()


def _key_sets() -> tuple[frozenset[int], frozenset[int]]:
    """Keys of a thread, and of a dense tensor; PyTorch leaves out those of autograd in `torch.inference_mode`."""
    needed = ("_dispatch_tls_local_include_set", "_dispatch_keys", "_any_requires_grad", "_autograd", "DispatchKeySet")
    if not all(hasattr(torch._C, name) for name in needed) or not hasattr(torch._C._autograd, "_profiler_enabled"):
        return frozenset(), frozenset()
    no_mode = frozenset((_keys("BackendSelect"), _keys("BackendSelect", "ADInplaceOrView")))
    dense = frozenset(
        _keys(device, f"Autocast{device}", *autograd)
        for device in ("CPU", "CUDA", "MPS")
        for autograd in ((), ("ADInplaceOrView", f"Autograd{device}"))
    )
    return no_mode, dense


_NO_MODE, _DENSE = _key_sets()
