"""Counts what kernels do: exactly, and the same on every run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from . import observe

__all__ = ["Counters", "LaunchRecord", "Profile", "Transactions", "profile"]


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
class Transactions:
    """What the lanes of simdgroups asked of memory together, where a GPU serves all lanes of a simdgroup at once.

    Attributes:
        device_accesses: of simdgroups to tensors.
        device_segments: aligned runs of 128 bytes that these touched, summed over accesses: what coalescing reduces.
            Tensors count as aligned themselves.
        threadgroup_accesses: of simdgroups to threadgroup memory.
        threadgroup_passes: the most different words of 4 bytes that one of 32 banks had to give, summed over accesses.
        threadgroup_conflicts: how many of the passes would go away if the words were spread evenly over the banks.
    """

    device_accesses: int = 0
    device_segments: int = 0
    threadgroup_accesses: int = 0
    threadgroup_passes: int = 0
    threadgroup_conflicts: int = 0

    def __add__(self, other: Transactions) -> Transactions:
        return Transactions(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(self)))


@dataclass(frozen=True)
class LaunchRecord:
    """One launch.

    Attributes:
        kernel: its name.
        counters: what it did.
        seconds: how long the counting run took; nothing to compare with a run that is not counted.
        transactions: what it asked of memory; zeros unless they were counted.
    """

    kernel: str
    counters: Counters
    seconds: float
    transactions: Transactions = Transactions()


@dataclass
class Profile:
    """The launches of a ``with profile()`` block, in order."""

    launches: list[LaunchRecord] = field(default_factory=list)
    counts_transactions: bool = False

    @property
    def total(self) -> Counters:
        """The sum over all launches."""
        return sum((record.counters for record in self.launches), Counters())

    @property
    def transactions(self) -> Transactions:
        """The sum over all launches."""
        return sum((record.transactions for record in self.launches), Transactions())

    def launch(self, launch: observe.Launch) -> None:
        """Runs a launch and records it."""
        arguments = (
            launch.arguments,
            launch.threads,
            launch.group_size,
            launch.threadgroup_bytes,
            launch.os_threads,
        )
        begin = time.perf_counter()
        transactions = Transactions()
        if self.counts_transactions:
            counted, asked = launch.kernel.count_transactions(*arguments)
            transactions = Transactions(*(getattr(asked, entry.name) for entry in fields(Transactions)))
        else:
            counted = launch.kernel.count(*arguments)
        seconds = time.perf_counter() - begin
        counters = Counters(*(getattr(counted, entry.name) for entry in fields(Counters)))
        self.launches.append(LaunchRecord(launch.name, counters, seconds, transactions))


@contextlib.contextmanager
def profile(*, transactions: bool = False) -> Iterator[Profile]:
    """Counts what the kernels do that the calling thread launches on the simulator.

    Args:
        transactions: whether `Transactions` are counted too, which takes several times as long. Lanes run one after
            the other here: the n-th time that each lane of a simdgroup comes to a place in the code is taken for one
            access.

    Returns:
        The record, which is filled while the block runs.

    Example:
        >>> with profile() as p:
        ...     library.kernel(x, threads=1024)
        >>> p.total.device_bytes_read
        4096
    """
    record = Profile(counts_transactions=transactions)
    with observe.observing(record):
        yield record
