# ruff: noqa: N999
from collections.abc import Sequence

ABI_VERSION: int
MAX_BUFFERS: int
MAX_THREADS: int
LANES: int

_Memory = tuple[str, int | bytes, int, int, bool, bytes]
_Argument = tuple[_Memory, tuple[_Memory, ...]]

class Library:
    def __init__(self, path: str) -> None: ...
    @property
    def path(self) -> str: ...

class Kernel:
    def __init__(self, library: Library, index: int, name: str) -> None: ...
    @property
    def library(self) -> Library: ...
    def launch(
        self,
        arguments: tuple[int | bytes, ...],
        threads: Sequence[int],
        group_size: Sequence[int],
        threadgroup_bytes: int,
        os_threads: int,
    ) -> None: ...
    def count(
        self,
        arguments: tuple[_Argument, ...],
        threads: Sequence[int],
        group_size: Sequence[int],
        threadgroup_bytes: int,
        os_threads: int,
    ) -> Counters: ...
    def count_transactions(
        self,
        arguments: tuple[_Argument, ...],
        threads: Sequence[int],
        group_size: Sequence[int],
        threadgroup_bytes: int,
        os_threads: int,
    ) -> tuple[Counters, Transactions]: ...
    def check(
        self,
        arguments: tuple[_Argument, ...],
        threads: Sequence[int],
        group_size: Sequence[int],
        threadgroup_bytes: int,
        seed: int,
        random_schedules: int,
    ) -> list[str]: ...

class Counters:
    matrix_products: int
    exponentials: int
    threadgroup_barriers: int
    simdgroup_barriers: int
    device_bytes_read: int
    device_bytes_written: int
    threadgroup_bytes_read: int
    threadgroup_bytes_written: int

class Transactions:
    device_accesses: int
    device_segments: int
    threadgroup_accesses: int
    threadgroup_passes: int
    threadgroup_conflicts: int
