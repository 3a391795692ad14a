"""Fixtures of the tests that pretend to be on a Mac; ``make check-apple`` runs them.

They go through the runtime ``metal`` and the stand-in for Metal behind it or, where ``MPS_FLASH_ATTN_CHECK_APPLE`` is
``torch_mps``, through that one, with the simulator in the place of ``torch.mps.compile_shader``. Where it is ``gpu``,
on a Mac, nothing is pretended: the tests of attention run on the GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from mps_flash_attn.ops import calls
from mps_flash_attn.runtime import base, torch_mps

from . import mps

_CHECKED = os.environ.get("MPS_FLASH_ATTN_CHECK_APPLE", "")

#: The device stays in a process for good, and the proof downloads much: both are for ``make check-apple`` alone. The
#: proof needs no stand-in, so it is made outside of the root that has one.
collect_ignore_glob = {
    "metal": ["test_link_proof.py"],
    "torch_mps": ["test_mps_metal*.py"],
    "gpu": ["test_mps_[!a]*.py", "test_link_proof.py"],
}.get(_CHECKED, ["test_mps_*.py", "test_link_proof.py"])

if _CHECKED == "metal":
    mps.load_metal()  # before any test imports the runtime


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pretend device and the runtime that serves it."""
    if _CHECKED == "gpu":
        yield
        return
    mps.load()
    monkeypatch.setattr(torch.mps, "compile_shader", mps.compile_shader)
    monkeypatch.setenv(base.RUNTIME_VARIABLE, _CHECKED)
    _forget()
    yield
    mps.limit_memory()
    _forget()


def _forget() -> None:
    base.for_device.cache_clear()
    torch_mps.compile_shader.cache_clear()
    calls.forget()
