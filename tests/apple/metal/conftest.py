"""Fixtures of the tests that call the C ABI; ``make check-apple`` runs them in the Debian root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import native

collect_ignore_glob = [] if os.environ.get("MPS_FLASH_ATTN_CHECK_APPLE") == "metal" else ["test_*.py"]


@pytest.fixture
def metal() -> Iterator[native.Runtime]:
    """The runtime without a cache on disk; a fault that nobody took fails the test."""
    runtime = native.load()
    runtime.configure()
    yield runtime
    runtime.configure()
    assert runtime.standin.standin_take_fault() is None


@pytest.fixture
def archives(metal: native.Runtime, tmp_path: Path) -> Path:
    """A folder where the runtime keeps pipelines."""
    folder = tmp_path / "archives"
    metal.configure(folder)
    return folder
