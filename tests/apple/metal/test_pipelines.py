"""The cache of pipelines: in memory, on disk, and what happens when the disk or another process does its worst."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from . import native
from .kernels import distinct

#: Makes kernels in a process of its own: argv is [folder, version, texts as JSON]; prints the counters.
_OTHER_PROCESS = """
import json, sys
from pathlib import Path
from tests.apple.metal import native
runtime = native.load()
runtime.simulate(False)
runtime.configure(Path(sys.argv[1]), sys.argv[2])
for text in json.loads(sys.argv[3]):
    runtime.kernel(text, "scale")
counts, stats = runtime.counts(), runtime.stats()
assert counts["libraries"] == stats["libraries"], (counts, stats)
print(json.dumps({**counts, **stats}))
"""


@pytest.fixture(autouse=True)
def unsimulated(metal: native.Runtime) -> Iterator[None]:
    """Nothing runs here, so nothing is compiled for the CPU."""
    metal.simulate(False)
    yield
    metal.simulate(True)


def _start(folder: Path, texts: list[str], version: str = "1.0", **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _OTHER_PROCESS, str(folder), version, json.dumps(texts)],
        cwd=native.ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def _elsewhere(folder: Path, texts: list[str], version: str = "1.0", **environment: str) -> dict[str, int]:
    """The counters of a new process that made those kernels."""
    process = _start(folder, texts, version, **environment)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    return json.loads(output)


@contextmanager
def _changes(metal: native.Runtime) -> Iterator[dict[str, int]]:
    """By how much the counters moved, filled in when the block ends."""
    moved: dict[str, int] = {}
    before = metal.counts() | metal.stats()
    yield moved
    after = metal.counts() | metal.stats()
    moved.update({name: after[name] - before[name] for name in after})


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _forget(metal: native.Runtime, folder: Path | None, **settings: Any) -> None:
    """Empties the memory of pipelines, as a new process finds it, by making another one the only one that may stay."""
    metal.configure(None, most_pipelines=1)
    metal.kernel(distinct(), "scale")
    metal.configure(folder, **settings)


def test_memory_is_asked_first(metal: native.Runtime) -> None:
    text = distinct()
    with _changes(metal) as first:
        metal.kernel(text, "scale")
    with _changes(metal) as second:
        metal.kernel(text, "scale")
    assert (first["compiled"], first["memory_hits"]) == (1, 0)
    assert (second["compiled"], second["memory_hits"], second["libraries"]) == (0, 1, 0)


def test_the_pipeline_used_longest_ago_is_dropped_and_made_again(metal: native.Runtime) -> None:
    _forget(metal, None, most_pipelines=2)
    texts = [distinct() for _ in range(3)]
    numbers = [metal.kernel(text, "scale") for text in texts[:2]]
    metal.kernel_limits(numbers[0])  # so that the second one is now the oldest
    with _changes(metal) as moved:
        numbers.append(metal.kernel(texts[2], "scale"))
    assert (moved["evicted"], metal.stats()["pipelines"]) == (1, 2)
    with _changes(metal) as moved:
        metal.kernel_limits(numbers[0])
        metal.kernel_limits(numbers[2])
    assert (moved["memory_hits"], moved["compiled"]) == (2, 0)
    with _changes(metal) as moved:
        assert metal.kernel(texts[1], "scale") == numbers[1]
    assert (moved["compiled"], moved["evicted"]) == (1, 1)


def test_many_threads_compile_a_kernel_once(metal: native.Runtime) -> None:
    metal.simulate(True)  # compiling for the CPU takes so long that all threads ask for the kernel meanwhile
    texts = [distinct() for _ in range(2)]
    numbers: list[list[int]] = []
    start = threading.Barrier(6)

    def work() -> None:
        start.wait()
        numbers.append([metal.kernel(text, "scale") for text in texts])

    with _changes(metal) as moved:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(numbers) == 6
    assert all(found == numbers[0] for found in numbers)
    assert (moved["compiled"], moved["archive_hits"], moved["libraries"]) == (2, 0, 2)


def test_a_second_process_compiles_nothing(archives: Path, metal: native.Runtime) -> None:
    texts = [distinct() for _ in range(2)]
    for text in texts:
        metal.kernel(text, "scale")
    assert len(_files(archives)) == 2
    there = _elsewhere(archives, texts)
    assert (there["archive_hits"], there["compiled"], there["archive_repairs"]) == (2, 0, 0)
    assert (there["pipelines_loaded"], there["pipelines_compiled"]) == (2, 0)
    assert there["libraries"] == 2  # Metal parses the texts nevertheless, and the counter says so


@pytest.mark.parametrize(
    "other", [{"version": "1.1"}, {"STANDIN_GPU_NAME": "Other GPU"}], ids=["package version", "GPU"]
)
def test_archives_serve_only_what_they_were_made_for(
    archives: Path, metal: native.Runtime, other: dict[str, str]
) -> None:
    text = distinct()
    metal.kernel(text, "scale")
    there = _elsewhere(archives, [text], **other)
    assert (there["archive_hits"], there["compiled"], there["archive_repairs"]) == (0, 1, 0)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _replace(path: Path) -> None:
    path.write_bytes(b"something else")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _flip, _replace, _empty])
def test_a_damaged_archive_is_made_anew(archives: Path, metal: native.Runtime, damage: Callable[[Path], None]) -> None:
    """Metal itself never gets to read what is damaged."""
    text = distinct()
    number = metal.kernel(text, "scale")
    (archive,) = _files(archives)
    damage(archive)
    for expected in ({"archive_repairs": 1, "compiled": 1}, {"archive_repairs": 0, "archive_hits": 1, "compiled": 0}):
        _forget(metal, archives)
        with _changes(metal) as moved:
            assert metal.kernel(text, "scale") == number
        assert {name: moved[name] for name in expected} == expected
        assert moved["archives_rejected"] == 0
    assert len(_files(archives)) == 1


def _name_of(key: str, content: bytes) -> str:
    """As the runtime names an archive: with FNV-1a of its content."""
    hash_ = 0xCBF29CE484222325
    for byte in content:
        hash_ = (hash_ ^ byte) * 0x100000001B3 % 2**64
    return f"{key}-{hash_:016x}.metalarchive"


def test_an_archive_that_metal_refuses_is_made_anew(archives: Path, metal: native.Runtime) -> None:
    """Whole, as it was written, but for a Metal of another kind."""
    text = distinct()
    metal.kernel(text, "scale")
    (archive,) = _files(archives)
    key = archive.name.partition("-")[0]
    assert archive.name == _name_of(key, archive.read_bytes())
    archive.unlink()
    archive.with_name(_name_of(key, b"another form")).write_bytes(b"another form")
    _forget(metal, archives)
    with _changes(metal) as moved:
        metal.kernel(text, "scale")
    assert (moved["archives_rejected"], moved["archive_repairs"], moved["compiled"]) == (1, 1, 1)
    assert _files(archives) == [archive]


def test_an_archive_without_the_pipeline_is_made_anew(archives: Path, metal: native.Runtime) -> None:
    """As if two texts had the same hash: the archive is whole, but it is not for this kernel."""
    one, other = distinct(), distinct()
    metal.kernel(one, "scale")
    (first,) = _files(archives)
    metal.kernel(other, "scale")
    (second,) = set(_files(archives)) - {first}
    second.unlink()
    first.rename(first.with_name(f"{second.name.partition('-')[0]}-{first.name.partition('-')[2]}"))
    _forget(metal, archives)
    with _changes(metal) as moved:
        metal.kernel(other, "scale")
    assert (moved["archive_repairs"], moved["compiled"]) == (1, 1)
    assert len(_files(archives)) == 1


_READ_ONLY, _REMOUNT, _DETACH = 1, 32, 2
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(folder: Path, flags: int = 0, options: str = "") -> None:
    if _libc.mount(b"none", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount a file system on {folder}")


@contextmanager
def _file_system(folder: Path, bytes_: int) -> Iterator[None]:
    """A file system of its own in the folder; the Debian root's mount namespace is private, so nobody else sees it."""
    _mount(folder, options=f"size={bytes_}")
    try:
        yield
    finally:
        _libc.umount2(os.fsencode(folder), _DETACH)


def test_a_full_disk_costs_only_the_archive(metal: native.Runtime, tmp_path: Path) -> None:
    with _file_system(tmp_path, 4096):
        metal.configure(tmp_path)
        with _changes(metal) as moved:
            number = metal.kernel(distinct() + "//" + "x" * 8192, "scale")
        assert (moved["compiled"], moved["archive_repairs"]) == (1, 0)
        assert metal.kernel_limits(number)[0] == 1024
        assert _files(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_read(metal: native.Runtime, tmp_path: Path) -> None:
    stored, fresh = distinct(), distinct()
    with _file_system(tmp_path, 1 << 20):
        metal.configure(tmp_path)
        metal.kernel(stored, "scale")
        _mount(tmp_path, _REMOUNT | _READ_ONLY)
        _forget(metal, tmp_path)
        with _changes(metal) as moved:
            metal.kernel(stored, "scale")
            metal.kernel(fresh, "scale")
        assert (moved["archive_hits"], moved["compiled"], moved["archive_repairs"]) == (1, 1, 0)


def test_a_folder_that_cannot_be_made_is_done_without(metal: native.Runtime, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    metal.configure(tmp_path / "file" / "archives")
    with _changes(metal) as moved:
        metal.kernel(distinct(), "scale")
    assert moved["compiled"] == 1


def test_processes_may_race(tmp_path: Path) -> None:
    """Files stay half written for so long that the other process is bound to come across them."""
    texts = [distinct() for _ in range(12)]
    processes = [_start(tmp_path, texts, STANDIN_SLOW_WRITES="1") for _ in range(2)]
    counts = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    for count in counts:
        assert (count["archive_repairs"], count["archives_rejected"]) == (0, 0)
        assert count["compiled"] + count["archive_hits"] == len(texts)
    assert not list(tmp_path.rglob("*.draft"))
    after = _elsewhere(tmp_path, texts)
    assert (after["archive_hits"], after["compiled"], after["archive_repairs"]) == (len(texts), 0, 0)


def test_the_disk_is_bounded(metal: native.Runtime, tmp_path: Path) -> None:
    texts = [distinct() for _ in range(4)]
    metal.configure(tmp_path)
    metal.kernel(texts[0], "scale")
    (first,) = _files(tmp_path)
    size = first.stat().st_size
    metal.configure(tmp_path, most_bytes=3 * size + size // 2)
    for age, text in enumerate(texts[1:]):
        metal.kernel(text, "scale")
        newest = max(_files(tmp_path), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (time.time() - 100 + age,) * 2)
    files = _files(tmp_path)
    assert len(files) == 3
    assert first in files  # it was used last: the others were dated back
    assert sum(path.stat().st_size for path in files) <= 3 * size + size // 2


def test_drafts_of_processes_that_died_are_swept(metal: native.Runtime, tmp_path: Path) -> None:
    dead, alive = tmp_path / "dead.draft", tmp_path / "alive.draft"
    for draft in (dead, alive):
        draft.write_bytes(b"half an archive")
    os.utime(dead, (time.time() - 7200,) * 2)
    metal.configure(tmp_path)
    metal.kernel(distinct(), "scale")
    assert not dead.exists()
    assert alive.exists()
