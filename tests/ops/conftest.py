"""Fixtures that the tests of several operations share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mps_flash_attn import folders, tune
from mps_flash_attn.ops import calls


@pytest.fixture
def own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A store of tilings for this test alone, and used; compiled kernels are those of all tests."""
    compiled = folders.cache_root() / "simulator"
    compiled.mkdir(parents=True, exist_ok=True)
    (tmp_path / "simulator").symlink_to(compiled)
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.delenv(tune.VARIABLE)
    calls.forget()
    yield
    calls.forget()
