"""Prepared calls: what a repeated call with the same shapes and strides needs beyond its outputs and launches."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

__all__ = ["PreparedCalls", "address", "forget", "geometry"]

_Call = TypeVar("_Call")
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


def forget() -> None:
    """Empties every cache of prepared calls: after another runtime was chosen, or other tiles."""
    for calls in _all:
        calls.clear()


def address(tensor: Tensor) -> int:
    """Where the tensor starts, modulo the 16 bytes that a lane moves at once. An MPS buffer itself is aligned."""
    return (int(tensor.storage_offset()) * tensor.element_size() if tensor.is_mps else tensor.data_ptr()) % 16


def geometry(tensor: Tensor) -> tuple[Any, ...]:
    """All of a tensor that a prepared call depends on."""
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride(), address(tensor)
