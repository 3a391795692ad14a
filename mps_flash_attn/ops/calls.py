"""Prepared calls: what a repeated call with the same shapes and strides needs beyond its outputs and launches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from ..launch import CHUNK_BYTES

__all__ = ["PreparedCalls", "address", "alignment", "forget", "geometry"]

_Call = TypeVar("_Call")
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
