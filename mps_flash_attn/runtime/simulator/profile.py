"""Counts what kernels do: exactly, and the same on every run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from ... import _C
from . import observe

__all__ = ["Counters", "LaunchRecord", "Profile", "profile"]


@dataclass(frozen=True)
class Counters:
    """What a launch did.

    Attributes:
        matrix_products: products of 8 x 8 matrices by a simdgroup.
        exponentials: exponentials, one for each thread that computes one.
        threadgroup_barriers: barriers of a threadgroup.
        simdgroup_barriers: barriers of a simdgroup.
        device_bytes_read: from tensors. Constants are not counted; each thread's accesses are, as if nothing was
            cached.
        device_bytes_written: to tensors.
        threadgroup_bytes_read: from threadgroup memory.
        threadgroup_bytes_written: to threadgroup memory.
    """

    matrix_products: int = 0
    exponentials: int = 0
    threadgroup_barriers: int = 0
    simdgroup_barriers: int = 0
    device_bytes_read: int = 0
    device_bytes_written: int = 0
    threadgroup_bytes_read: int = 0
    threadgroup_bytes_written: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(self)))

    @property
    def device_bytes(self) -> int:
        """Read and written."""
        return self.device_bytes_read + self.device_bytes_written

    @property
    def threadgroup_bytes(self) -> int:
        """Read and written."""
        return self.threadgroup_bytes_read + self.threadgroup_bytes_written


@dataclass(frozen=True)
class LaunchRecord:
    """One launch.

    Attributes:
        kernel: its name.
        counters: what it did.
        seconds: how long the counting run took; nothing to compare with a run that is not counted.
    """

    kernel: str
    counters: Counters
    seconds: float


@dataclass
class Profile:
    """The launches of a ``with profile()`` block, in order."""

    launches: list[LaunchRecord] = field(default_factory=list)

    @property
    def total(self) -> Counters:
        """The sum over all launches."""
        return sum((record.counters for record in self.launches), Counters())

    def launch(self, launch: observe.Launch) -> None:
        """Runs a launch and records it."""
        begin = time.perf_counter()
        counted: _C.Counters = launch.kernel.count(
            launch.arguments, launch.threads, launch.group_size, launch.threadgroup_bytes, launch.os_threads
        )
        seconds = time.perf_counter() - begin
        counters = Counters(*(getattr(counted, entry.name) for entry in fields(Counters)))
        self.launches.append(LaunchRecord(launch.name, counters, seconds))


@contextlib.contextmanager
def profile() -> Iterator[Profile]:
    """Counts what the kernels do that the calling thread launches on the simulator.

    Returns:
        The record, which is filled while the block runs.

    Example:
        >>> with profile() as p:
        ...     library.kernel(x, threads=1024)
        >>> p.total.device_bytes_read
        4096
    """
    record = Profile()
    with observe.observing(record):
        yield record
