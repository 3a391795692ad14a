"""Watching the launches of a thread instead of merely running them: what checks and counts have in common."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ... import _C

__all__ = ["Argument", "Launch", "Memory", "Observer", "current", "describe_tensor", "observing"]

Memory = tuple[str, int | bytes, int, int, bool]
"""Name, address (or bytes that are passed by value), length in bytes, bytes of an element, whether constant."""

Argument = tuple[Memory, tuple[Memory, ...]]
"""What fills a buffer and, when that holds addresses, what these lead to."""


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel that was built to report what it does.

    Attributes:
        name: of the kernel.
        kernel: its instrumented build.
        arguments: what fills its buffers, in order.
        threads: of the grid, in x, y, z.
        group_size: threads of a threadgroup, in x, y, z.
        threadgroup_bytes: the most threadgroup memory that it may use.
        os_threads: how many OS threads it may use.
    """

    name: str
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


def describe_tensor(name: str, tensor: Tensor, is_constant: bool) -> Memory:
    """The memory between a tensor's first and last element."""
    span = 0
    if tensor.numel() > 0:
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return name, tensor.data_ptr(), span * tensor.element_size(), tensor.element_size(), is_constant
