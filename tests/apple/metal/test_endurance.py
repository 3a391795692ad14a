"""Many launches: nothing grows, and encoding stays cheap."""

from __future__ import annotations

import ctypes
import random
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from . import native
from .kernels import distinct

_LAUNCHES = 10_000
_PIPELINES = 8
#: The stand-in keeps shells of released objects; a leak of 50 bytes a launch is more.
_GROWTH_BYTES = 500_000
#: A launch with eight buffers takes about 2 us on an idle machine: only a blow-up is to fail here.
_MOST_MICROSECONDS = 50

_EIGHT_BUFFERS = "kernel void k({}) {{ a0[0] = 0; }}".format(
    ", ".join(f"device float* a{i} [[buffer({i})]]" for i in range(8))
)


@pytest.fixture
def idle(metal: native.Runtime) -> Iterator[None]:
    """Dispatches are checked and not executed."""
    metal.simulate(False)
    metal.standin.standin_set_execution(0)
    yield
    metal.standin.standin_set_execution(1)
    metal.simulate(True)


class _Allocator(ctypes.Structure):
    """``struct mallinfo2`` of the C library."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _allocated_bytes() -> int:
    """What was allocated and not freed: exact, where resident memory hides what fits into pages freed before."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Allocator
    info = mallinfo()
    return info.uordblks + info.hblkhd


@pytest.mark.usefixtures("idle")
def test_ten_thousand_launches_leave_nothing_behind(metal: native.Runtime, seed: int) -> None:
    random.seed(seed)
    metal.configure(most_pipelines=_PIPELINES)
    texts = [distinct() for _ in range(2 * _PIPELINES)]
    before, evicted = metal.counts(), metal.stats()["evicted"]

    def launch(count: int) -> None:
        for _ in range(count // 100):
            with metal.encoder() as encoder, metal.buffer(random.randrange(1, 64) << 12) as x:
                for _ in range(100):
                    kernel = metal.kernel(random.choice(texts), "scale")
                    threads = tuple(random.randrange(1, 1000) for _ in range(3))
                    group = (random.randrange(1, 33), 1, 1)
                    offset = 4 * random.randrange(1024)
                    factor = struct.pack("f", random.random())
                    metal.encode(encoder, native.Launch(kernel, [(x.pointer, offset)], [factor], threads, group))

    launch(2000)
    allocated = _allocated_bytes()
    launch(_LAUNCHES)
    grown = _allocated_bytes() - allocated
    print(f"{grown} bytes more than before {_LAUNCHES} launches")
    assert grown <= _GROWTH_BYTES
    assert metal.stats()["pipelines"] <= _PIPELINES
    assert metal.stats()["evicted"] > evicted
    after = metal.counts()
    assert after["buffers"] == before["buffers"]
    assert after["dispatches"] - before["dispatches"] == _LAUNCHES + 2000


@pytest.mark.usefixtures("idle")
def test_ten_thousand_texts_leave_nothing_behind(metal: native.Runtime) -> None:
    """A launch each, of a text that nobody has had before and nobody keeps."""
    metal.configure(most_pipelines=_PIPELINES)
    kernels = metal.stats()["kernels"]  # held by other tests
    padding = "//" + "x" * 4096

    def launch(count: int) -> None:
        for _ in range(count // 100):
            with metal.encoder() as encoder, metal.buffer(64) as x:
                for _ in range(100):
                    kernel = metal.kernel(distinct() + padding, "scale")
                    metal.encode(encoder, native.Launch(kernel, [(x.pointer, 0)], [bytes(4)], (8, 1, 1), (8, 1, 1)))
                    metal.release_kernel(kernel)

    launch(1000)
    before, allocated = metal.stats(), _allocated_bytes()
    launch(_LAUNCHES)
    grown = _allocated_bytes() - allocated
    print(f"{grown} bytes more than before {_LAUNCHES} texts")
    assert grown <= _GROWTH_BYTES
    assert metal.stats()["libraries"] - before["libraries"] == _LAUNCHES
    assert metal.stats()["kernels"] <= kernels + _PIPELINES


@pytest.mark.usefixtures("idle")
def test_encoding_is_cheap(metal: native.Runtime) -> None:
    kernel = metal.kernel(distinct(_EIGHT_BUFFERS), "k")
    with metal.buffer(4096) as x:
        launch = native.Launch(kernel, [(x.pointer, 64 * i) for i in range(8)], [bytes(256)], (64, 1, 1), (32, 1, 1))
        record = launch.record()
        before = metal.counts()["dispatches"]
        times = []
        for _ in range(10):
            with metal.encoder() as encoder:
                start = time.perf_counter()
                for _ in range(500):
                    metal.mfa.mfa_encode(encoder, record, 1)
                times.append((time.perf_counter() - start) / 500)
        assert metal.counts()["dispatches"] - before == 5000
    microseconds = 1e6 * min(times)
    print(f"{microseconds:.2f} us from ctypes to the encoded dispatch")
    assert microseconds <= _MOST_MICROSECONDS


@pytest.mark.usefixtures("idle")
def test_threads_launch_at_once(metal: native.Runtime) -> None:
    """Each thread has an encoder; pipelines are evicted under their feet."""
    metal.configure(most_pipelines=2)
    texts = [distinct() for _ in range(4)]
    failures: list[Exception] = []
    before = metal.counts()["dispatches"]

    def work() -> None:
        try:
            with metal.encoder() as encoder, metal.buffer(64) as x:
                for i in range(200):
                    kernel = metal.kernel(texts[i % 4], "scale")
                    metal.encode(encoder, native.Launch(kernel, [(x.pointer, 0)], [bytes(4)], (8, 1, 1), (8, 1, 1)))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert metal.counts()["dispatches"] - before == 800
    assert metal.stats()["pipelines"] <= 2
