"""Watching the launches of a thread instead of merely running them: what checks and counts have in common."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ... import _C

__all__ = ["Argument", "Launch", "Memory", "Observer", "current", "describe_number", "describe_tensor", "observing"]


class Memory(NamedTuple):
    """Memory that an argument leads to.

    Attributes:
        name: of the argument, for messages.
        place: its address, or the bytes themselves when they are passed by value.
        length: in bytes.
        element: bytes of one element.
        is_constant: whether the kernel sees it in the constant address space.
        elements: one byte for each element from the first to the last, 0 for those that are not part of the argument;
            nothing when all are.
    """

    name: str
    place: int | bytes
    length: int
    element: int
    is_constant: bool
    elements: bytes = b""


Argument = tuple[Memory, tuple[Memory, ...]]
"""What fills a buffer and, when that holds addresses, what these lead to."""


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel that was built to report what it does.

    Attributes:
        name: of the kernel.
        metal: the Metal text of its library; None when it uses extensions of the simulator.
        kernel: its instrumented build.
        arguments: what fills its buffers, in order.
        threads: of the grid, in x, y, z.
        group_size: threads of a threadgroup, in x, y, z.
        threadgroup_bytes: the most threadgroup memory that it may use.
        os_threads: how many OS threads it may use.
    """

    name: str
    metal: str | None
    kernel: _C.Kernel
    arguments: tuple[Argument, ...]
    threads: tuple[int, ...]
    group_size: tuple[int, ...]
    threadgroup_bytes: int
    os_threads: int


class Observer(Protocol):
    """Runs launches in its own way."""

    def launch(self, launch: Launch) -> None:
        """Runs a launch to its end."""


class _Thread(threading.local):
    observer: Observer | None = None


_thread = _Thread()


def current() -> Observer | None:
    """The observer of the calling thread."""
    return _thread.observer


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Hands the calling thread's launches to ``observer``. Of nested ones, the innermost gets them."""
    outer, _thread.observer = _thread.observer, observer
    try:
        yield
    finally:
        _thread.observer = outer


def describe_number(name: str, data: bytes) -> Memory:
    """An argument that is passed by value."""
    return Memory(name, data, len(data), 1, True)


def describe_tensor(name: str, tensor: Tensor, is_constant: bool) -> Memory:
    """The memory from a tensor's first to its last element."""
    span, elements = 0, b""
    if tensor.numel() > 0:
        # A dimension of stride 0 visits the same elements again.
        shape = [size if stride > 0 else 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, tensor.stride(), strict=True))
        if span > math.prod(shape):
            mask = torch.zeros(span, dtype=torch.uint8)
            mask.as_strided(shape, tensor.stride()).fill_(1)
            elements = mask.numpy().tobytes()
    size = tensor.element_size()
    return Memory(name, tensor.data_ptr(), span * size, size, is_constant, elements)
