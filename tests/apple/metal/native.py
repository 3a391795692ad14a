"""csrc/mfa.h and standin.h as Python sees them: ctypes structures and calls that raise."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_char, c_char_p, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import executor

__all__ = ["LIB", "ROOT", "Buffer", "Launch", "MetalError", "Runtime", "load"]

ROOT = Path(__file__).parents[3]
#: Where build_swift.sh puts its libraries.
LIB = ROOT / "build/apple/lib"


class MetalError(Exception):
    """A status other than MFA_OK, or what the stand-in's validation found."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class DeviceInfo(ctypes.Structure):
    _fields_ = (
        ("name", c_char * 128),
        ("os_build", c_char * 64),
        ("gpu_family", c_int32),
        ("gpu_cores", c_int32),
        ("has_unified_memory", c_int32),
        ("supports_bfloat", c_int32),
        ("max_threads_per_threadgroup", c_uint32),
        ("max_threadgroup_bytes", c_uint32),
        ("max_buffer_bytes", c_uint64),
        ("recommended_working_set_bytes", c_uint64),
    )


class BufferPlace(ctypes.Structure):
    _fields_ = (("buffer", c_void_p), ("offset", c_uint64), ("index", c_uint32))


class Bytes(ctypes.Structure):
    _fields_ = (("data", c_char_p), ("length", c_uint64), ("index", c_uint32))


class LaunchRecord(ctypes.Structure):
    _fields_ = (
        ("kernel", c_int64),
        ("buffers", POINTER(BufferPlace)),
        ("bytes", POINTER(Bytes)),
        ("buffer_count", c_uint32),
        ("bytes_count", c_uint32),
        ("threads", c_uint32 * 3),
        ("group_size", c_uint32 * 3),
        ("waits", c_int32),
    )


class CacheStats(ctypes.Structure):
    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            *("memory_hits", "libraries", "archive_hits", "compiled"),
            *("evicted", "archive_repairs", "pipelines", "kernels"),
        )
    )


class Counts(ctypes.Structure):
    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            *("libraries", "pipelines_compiled", "pipelines_loaded", "archives_rejected"),
            *("dispatches", "executed", "barriers", "buffers", "buffer_bytes"),
        )
    )


#: Structures by their names in mfa.h.
STRUCTURES = {
    "MFADeviceInfo": DeviceInfo,
    "MFABuffer": BufferPlace,
    "MFABytes": Bytes,
    "MFALaunch": LaunchRecord,
    "MFACacheStats": CacheStats,
}


@dataclass
class Buffer:
    """A buffer of the stand-in, and the calls that reach its bytes."""

    pointer: int
    address: int
    size: int

    def write(self, data: bytes) -> None:
        assert len(data) <= self.size
        ctypes.memmove(self.address, data, len(data))

    def read(self) -> bytes:
        return ctypes.string_at(self.address, self.size)


@dataclass
class Launch:
    """One MFALaunch; buffers are (pointer, offset in bytes), bytes follow them; the index is the position."""

    kernel: int
    buffers: Sequence[tuple[int, int]] = ()
    data: Sequence[bytes] = ()
    threads: tuple[int, int, int] = (1, 1, 1)
    group_size: tuple[int, int, int] = (1, 1, 1)
    waits: bool = False
    indices: Sequence[int] = field(default=())

    def record(self) -> LaunchRecord:
        indices = self.indices or range(len(self.buffers) + len(self.data))
        places = [BufferPlace(pointer, offset, i) for (pointer, offset), i in zip(self.buffers, indices, strict=False)]
        values = [Bytes(d, len(d), i) for d, i in zip(self.data, indices[len(self.buffers) :], strict=False)]
        return LaunchRecord(
            self.kernel,
            (BufferPlace * len(places))(*places),
            (Bytes * len(values))(*values),
            len(places),
            len(values),
            self.threads,
            self.group_size,
            int(self.waits),
        )


class Runtime:
    """The two libraries: ``mfa`` with the product's C functions, ``standin`` with the stand-in's."""

    def __init__(self) -> None:
        self.simulate(True)
        self.standin = ctypes.CDLL(str(LIB / "libMetal.so"))
        self.mfa = ctypes.CDLL(str(LIB / "libMetalRuntime.so"))
        for name in ("standin_device", "standin_make_buffer", "standin_buffer_contents"):
            getattr(self.standin, name).restype = c_void_p
        for name in ("standin_make_encoder", "standin_make_idle_encoder"):
            getattr(self.standin, name).restype = c_void_p
        self.standin.standin_make_buffer.argtypes = (c_uint64,)
        for name in ("standin_buffer_contents", "standin_end_encoding", "standin_release"):
            getattr(self.standin, name).argtypes = (c_void_p,)
        self.standin.standin_end_encoding.restype = c_char_p
        self.standin.standin_take_fault.restype = c_char_p
        self.mfa.mfa_last_error.restype = c_char_p
        self.mfa.mfa_device_info.argtypes = (c_void_p, POINTER(DeviceInfo))
        self.mfa.mfa_configure.argtypes = (c_char_p, c_char_p, c_uint32, c_uint64)
        self.mfa.mfa_kernel.argtypes = (c_void_p, c_char_p, c_char_p, POINTER(c_int64))
        self.mfa.mfa_release_kernel.argtypes = (c_int64,)
        self.mfa.mfa_kernel_limits.argtypes = (c_int64, *(POINTER(c_uint32),) * 3)
        self.mfa.mfa_encode.argtypes = (c_void_p, POINTER(LaunchRecord), c_uint32)
        self.mfa.mfa_cache_stats.argtypes = (POINTER(CacheStats),)
        self.device = self.standin.standin_device()

    def simulate(self, on: bool) -> None:
        """Whether kernels compile and run on the simulator; else they are only found by name."""
        executor.install(LIB / "libMetal.so", simulate=on)

    def require(self, status: int) -> None:
        if status != 0:
            raise MetalError(status, self.mfa.mfa_last_error().decode())

    def device_info(self) -> DeviceInfo:
        info = DeviceInfo()
        self.require(self.mfa.mfa_device_info(self.device, info))
        return info

    def configure(
        self, folder: Path | None = None, version: str = "1.0", most_pipelines: int = 256, most_bytes: int = 1 << 30
    ) -> None:
        path = None if folder is None else os.fsencode(folder)
        self.require(self.mfa.mfa_configure(path, version.encode(), most_pipelines, most_bytes))

    def kernel(self, source: str, function: str) -> int:
        number = c_int64()
        self.require(self.mfa.mfa_kernel(self.device, source.encode(), function.encode(), number))
        return number.value

    def release_kernel(self, kernel: int) -> None:
        self.require(self.mfa.mfa_release_kernel(kernel))

    def kernel_limits(self, kernel: int) -> tuple[int, int, int]:
        limits = [c_uint32() for _ in range(3)]
        self.require(self.mfa.mfa_kernel_limits(kernel, *limits))
        return limits[0].value, limits[1].value, limits[2].value

    def stats(self) -> dict[str, int]:
        stats = CacheStats()
        self.require(self.mfa.mfa_cache_stats(stats))
        return {name: getattr(stats, name) for name, _ in CacheStats._fields_}

    def counts(self) -> dict[str, int]:
        counts = Counts()
        self.standin.standin_counts(ctypes.byref(counts))
        return {name: getattr(counts, name) for name, _ in Counts._fields_}

    @contextmanager
    def buffer(self, content: int | bytes) -> Iterator[Buffer]:
        size = content if isinstance(content, int) else len(content)
        pointer = self.standin.standin_make_buffer(size)
        if pointer is None:
            raise MemoryError(f"no buffer of {size} bytes")
        buffer = Buffer(pointer, self.standin.standin_buffer_contents(pointer), size)
        if isinstance(content, bytes):
            buffer.write(content)
        yield buffer
        self.standin.standin_release(pointer)

    def encode(self, encoder: int, *launches: Launch) -> None:
        records = (LaunchRecord * len(launches))(*(launch.record() for launch in launches))
        self.require(self.mfa.mfa_encode(encoder, records, len(launches)))

    @contextmanager
    def encoder(self) -> Iterator[int]:
        """An open encoder; what was encoded has run when the block ends.

        Raises:
            MetalError: what the validation or the execution found.
        """
        encoder = self.standin.standin_make_encoder()
        fault: Any = b"not ended"
        try:
            yield encoder
        finally:
            fault = self.standin.standin_end_encoding(encoder)
            self.standin.standin_release(encoder)
        if fault is not None:
            raise MetalError(-1, fault.decode())

    def run(self, *launches: Launch) -> None:
        with self.encoder() as encoder:
            self.encode(encoder, *launches)


@functools.cache
def load() -> Runtime:
    """The libraries that build_swift.sh made, with the simulator behind them."""
    return Runtime()
