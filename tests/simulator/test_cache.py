"""Compiled kernels on disk: made once, by whoever comes first; damage is noticed; problems are told plainly."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mps_flash_attn import CacheError, CompilerNotFoundError
from mps_flash_attn.runtime import simulator
from mps_flash_attn.runtime.cache import Cache, content_key
from mps_flash_attn.runtime.translation import host_compiler
from mps_flash_attn.runtime.translation.host_compiler import find_compiler

KERNEL = "kernel void add(device float* x, uint i [[thread_position_in_grid]]) { x[i] += 3; }"

# Stands in front of the compiler and notes its runs that produce a library's code.
COUNTING_COMPILER = """#!/bin/sh
case "$*" in *kernels.o\\ *|*kernels.o) echo run >> "{log}"; {wait} ;; esac
exec g++ "$@"
"""
LAUNCH = f"""
import torch
from mps_flash_attn.runtime import simulator
x = torch.zeros(4)
simulator.compile_shader({KERNEL!r}).add(x)
assert x.tolist() == [3.0] * 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("MPS_FLASH_ATTN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "simulator"


def counting_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: str = ":") -> Callable[[], int]:
    """Makes a compiler that counts its runs the one that is used; returns how to ask for the count."""
    log, script = tmp_path / "runs", tmp_path / "c++"
    script.write_text(COUNTING_COMPILER.format(log=log, wait=wait))
    script.chmod(0o755)
    monkeypatch.setenv("MPS_FLASH_ATTN_CXX", str(script))
    # Each library is compiled and linked: two runs.
    return lambda: log.read_text().count("run") // 2 if log.exists() else 0


def launch_in_process() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", LAUNCH], stderr=subprocess.PIPE, text=True)


def test_a_second_process_compiles_and_preprocesses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = counting_compiler(tmp_path, monkeypatch)
    for _ in range(2):
        process = launch_in_process()
        assert process.wait() == 0, process.communicate()[1]
        assert runs() == 1
    assert {path.suffix for path in folder.glob("*.*")} == {".so", ".json"}


def test_two_processes_at_once_compile_once_and_both_succeed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = counting_compiler(tmp_path, monkeypatch, wait="sleep 2")
    processes = [launch_in_process() for _ in range(2)]
    for process in processes:
        assert process.wait() == 0, process.communicate()[1]
    assert runs() == 1


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_files_are_made_again(damage: str, folder: Path) -> None:
    for _ in range(2):
        process = launch_in_process()
        assert process.wait() == 0, process.communicate()[1]
        for path in folder.glob("*.*"):
            data = path.read_bytes()
            middle = len(data) // 2
            path.write_bytes(
                {
                    "truncate": data[:middle],
                    "flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
                    "empty": b"",
                }[damage]
            )


def test_another_text_flag_or_compiler_is_another_entry(folder: Path) -> None:
    keys = {content_key(*parts) for parts in [("a", "b"), ("ab", ""), ("", "ab"), ("a", "c"), ("a",), ("a", "b", "")]}
    assert len(keys) == 6


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MPS_FLASH_ATTN_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(CacheError, match=rf"cannot keep compiled kernels in {tmp_path}/file.*MPS_FLASH_ATTN_CACHE_DIR"):
        simulator.compile_shader(KERNEL)


def test_a_failure_to_make_a_file_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail() -> bytes:
        raise RuntimeError("cannot be made")

    with pytest.raises(RuntimeError, match="cannot be made"):
        cache.path("aa", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]
    assert cache.read("aa", lambda: b"made") == b"made"


def test_files_that_were_not_used_for_longest_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=3000)
    long_ago = time.time() - 1000
    for age, name in enumerate(["aa", "bb", "cc"]):
        path = cache.path(name, lambda: bytes(900))
        os.utime(path, (long_ago - age, long_ago - age))
    assert cache.read("bb", lambda: b"") == bytes(900)  # used just now
    cache.path("dd", lambda: bytes(900))
    assert {path.name for path in tmp_path.iterdir()} == {"aa", "bb", "dd", "locks"}


def test_files_in_use_are_kept_even_above_the_limit(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=1000)
    for name in ("aa", "bb", "cc"):
        cache.path(name, lambda: bytes(900))
    assert {path.name for path in tmp_path.iterdir()} == {"aa", "bb", "cc", "locks"}


def test_the_hash_at_the_end_is_of_what_is_before_it(tmp_path: Path) -> None:
    data = Cache(tmp_path).path("aa", lambda: b"contents").read_bytes()
    assert data == b"contents" + hashlib.sha256(b"contents").digest()


def test_use_of_a_file_is_noted(folder: Path) -> None:
    path = Cache(folder).path("aa", lambda: b"contents")
    before = path.stat().st_mtime_ns
    time.sleep(0.01)
    assert Cache(folder).read("aa", lambda: b"made anew") == b"contents"
    assert path.stat().st_mtime_ns > before


def test_a_missing_compiler_is_told_with_how_to_get_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPS_FLASH_ATTN_CXX", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CompilerNotFoundError, match=r"looked for g\+\+ and clang\+\+ in PATH.*apt-get install g\+\+"):
        simulator.compile_shader(KERNEL)


@pytest.mark.parametrize("status", [0, 2])
def test_a_mac_without_apples_tools_is_asked_nothing(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in /usr/bin there opens a dialog when it is run."""
    monkeypatch.delenv("MPS_FLASH_ATTN_CXX", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    select, ran = tmp_path / "xcode-select", []
    select.write_text(f"#!/bin/sh\nexit {status}\n")
    select.chmod(0o755)
    run = subprocess.run
    monkeypatch.setattr(host_compiler, "_XCODE_SELECT", str(select))
    monkeypatch.setattr(host_compiler.sys, "platform", "darwin")
    monkeypatch.setattr(host_compiler.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(
        host_compiler.subprocess, "run", lambda command, **o: ran.append(command[0]) or run(command, **o)
    )
    host_compiler._find_compiler.cache_clear()
    try:
        if status == 0:
            assert host_compiler.find_compiler().command == ("g++",)
        else:
            with pytest.raises(CompilerNotFoundError, match="xcode-select --install"):
                host_compiler.find_compiler()
            assert set(ran) == {str(select)}
    finally:
        host_compiler._find_compiler.cache_clear()


def test_a_requested_compiler_that_is_missing_is_not_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_FLASH_ATTN_CXX", "no-such-compiler --flag")
    with pytest.raises(CompilerNotFoundError, match="'no-such-compiler --flag', named by MPS_FLASH_ATTN_CXX"):
        simulator.compile_shader(KERNEL)


@pytest.mark.parametrize("name", ["g++", "clang++", "clang++-14", "clang++-19"])
def test_every_compiler_at_hand_builds_both_variants(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_FLASH_ATTN_CXX", name)
    try:
        find_compiler()
    except CompilerNotFoundError:
        pytest.skip(f"{name} is not installed")
    x = torch.zeros(100)
    kernel = simulator.compile_shader(KERNEL).add
    kernel(x)
    with simulator.check():
        kernel(x)
    with simulator.profile() as profile:
        kernel(x)
    assert x.tolist() == [9.0] * 100
    assert profile.total == simulator.Counters(device_bytes_read=400, device_bytes_written=400)
