"""Fixtures of the tests that pretend to be on a Mac; ``make check-apple`` runs them.

Where ``PRETEND_MPS_METAL`` names a stand-in for Metal, they run through the runtime ``metal``, else through
``torch_mps`` with the simulator in the place of ``torch.mps.compile_shader``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from mps_flash_attn.ops.attention import function
from mps_flash_attn.runtime import base, torch_mps

from . import mps

#: Set by ``make check-apple``. The device, once loaded, stays for the rest of the process, so other tests go first.
collect_ignore_glob = [] if os.environ.get("MPS_FLASH_ATTN_CHECK_APPLE") else ["test_mps_*.py"]


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pretend device and the runtime that serves it."""
    mps.load()
    forced = "metal" if os.environ.get(mps.METAL_VARIABLE) else "torch_mps"
    monkeypatch.setattr(torch.mps, "compile_shader", mps.compile_shader)
    monkeypatch.setenv(base.RUNTIME_VARIABLE, forced)
    _forget()
    yield
    mps.limit_memory()
    _forget()


def _forget() -> None:
    base.for_device.cache_clear()
    torch_mps.compile_shader.cache_clear()
    function._forward_calls.clear()
    function._backward_calls.clear()
