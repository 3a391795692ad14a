"""Where this package keeps files between processes."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

__all__ = ["CACHE_VARIABLE", "cache_root"]

#: Environment variable that names the folder of all caches.
CACHE_VARIABLE = "MPS_FLASH_ATTN_CACHE_DIR"


def cache_root() -> Path:
    """The folder of all caches, one folder in it for each runtime: ``MPS_FLASH_ATTN_CACHE_DIR``, else the user's."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("mps-flash-attn"))
