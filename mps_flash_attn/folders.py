"""Where this package keeps files between processes."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import platformdirs

__all__ = ["CACHE_VARIABLE", "cache_path", "cache_root"]

#: Environment variable that names the folder of all caches.
CACHE_VARIABLE = "MPS_FLASH_ATTN_CACHE_DIR"


#: What the folder follows from.
_VARIABLES = (CACHE_VARIABLE, "XDG_CACHE_HOME", "HOME")


def cache_root() -> Path:
    """The folder of all caches, one folder in it for each runtime: ``MPS_FLASH_ATTN_CACHE_DIR``, else the user's."""
    return cache_path("")


def cache_path(name: str) -> Path:
    """What has this name in that folder."""
    return _cache_path(name, *map(os.environ.get, _VARIABLES))


@functools.lru_cache(maxsize=64)
def _cache_path(name: str, named: str | None, *user: str | None) -> Path:
    """Kept, as finding the user's folder takes longer than all else that planning a launch does."""
    return Path(named or platformdirs.user_cache_dir("mps-flash-attn"), name)
