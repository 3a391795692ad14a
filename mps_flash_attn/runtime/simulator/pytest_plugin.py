"""The pytest fixture ``simulator_check``; pytest finds it where the package is installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

__all__ = ["simulator_check"]


@pytest.fixture
def simulator_check() -> Iterator[None]:
    """Checks every kernel that the test launches on the simulator; see ``mps_flash_attn.runtime.simulator.check``."""
    from . import check

    with check():
        yield
