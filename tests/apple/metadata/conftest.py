"""These tests read declarations: they need no device, but PyPI once."""

from __future__ import annotations

import os

import pytest

collect_ignore_glob = [] if os.environ.get("MPS_FLASH_ATTN_CHECK_APPLE") else ["test_*.py"]


@pytest.fixture(autouse=True)
def device() -> None:
    """Stands in front of the fixture that loads the pretend device."""
