"""The pytest fixture ``simulator_check``.

Put ``pytest_plugins = ["mps_flash_attn.runtime.simulator.pytest_plugin"]`` into a ``conftest.py`` to have it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .check import check

__all__ = ["simulator_check"]


@pytest.fixture
def simulator_check() -> Iterator[None]:
    """Checks every kernel that the test launches on the simulator; see ``mps_flash_attn.runtime.simulator.check``."""
    with check():
        yield
