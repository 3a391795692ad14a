"""Fixtures that the tests of several operations share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from mps_flash_attn import folders, launch, tune
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


@pytest.fixture
def assert_refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object], type[Exception], str], None]:
    """Asserts that a call raises an error of just this type, in whose message are these words, and launches nothing."""

    def no_launch(*arguments: object) -> NoReturn:
        raise AssertionError("a kernel is prepared")

    def check(call: Callable[[], object], error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=re.escape(words)) as caught:
            call()
        assert type(caught.value) is error

    calls.forget()
    monkeypatch.setattr(launch, "bind", no_launch)
    return check
