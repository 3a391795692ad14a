"""These tests read declarations: they need no device, but PyPI once."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("MPS_FLASH_ATTN_CHECK_APPLE") else ["test_*.py"]
