"""Which runtime serves a device."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

from ..errors import UnsupportedError
from ..launch import Runtime

__all__ = ["RUNTIMES", "RUNTIME_VARIABLE", "for_device", "load", "why_not"]

#: Environment variable that forces a runtime by name.
RUNTIME_VARIABLE = "MPS_FLASH_ATTN_RUNTIME"


#: The runtimes of each device type, the preferred one first.
RUNTIMES = {"cpu": ("simulator",), "cuda": ("cuda",), "mps": ("metal", "torch_mps")}


def load(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        ImportError: it was not built, or lacks something that it is made from.
    """
    runtime: Any = importlib.import_module(f"{__package__}.{name}")
    return runtime


def why_not(name: str) -> str | None:
    """Why this machine cannot use the runtime of that name; ``None`` if it can."""
    try:
        return load(name).unavailable()
    except ImportError as error:
        return f"it was not built ({error})"


@functools.cache
def for_device(device_type: str) -> Runtime:
    """The runtime for tensors of a device type: the first that this machine can use, or the one that is forced.

    Raises:
        UnsupportedError: no runtime serves that type.
        ValueError: ``MPS_FLASH_ATTN_RUNTIME`` names a runtime that does not, or that this machine cannot use.
    """
    choices = RUNTIMES.get(device_type)
    if choices is None:
        raise UnsupportedError(f"no runtime for device type {device_type!r}; there are runtimes for {list(RUNTIMES)}")
    forced = os.environ.get(RUNTIME_VARIABLE)
    if not forced:
        return load(next((name for name in choices[:-1] if why_not(name) is None), choices[-1]))
    if forced not in choices:
        raise ValueError(
            f"{RUNTIME_VARIABLE}={forced!r} does not run {device_type!r} tensors; accepted: {list(choices)}"
        )
    reason = why_not(forced)
    if reason is not None:
        raise ValueError(f"{RUNTIME_VARIABLE}={forced!r} cannot be used on this machine: {reason}")
    return load(forced)
