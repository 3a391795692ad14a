"""Kernels without one of their barriers: what the simulator's checks have to find."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

from mps_flash_attn import source
from mps_flash_attn.ops import calls

__all__ = ["BARRIER", "barriers", "without_barrier"]

BARRIER = re.compile(r"(?:threadgroup|simdgroup)_barrier\([^;]*\);")


def barriers(folder: str) -> list[tuple[str, int]]:
    """Each barrier of the kernels under ``folder``: the kernel's file, and its number in the flattened text."""
    return [
        (path, number)
        for path in source.kernel_files()
        if path.startswith(folder)
        for number in range(len(BARRIER.findall(source.flatten(path))))
    ]


@contextlib.contextmanager
def without_barrier(path: str, number: int) -> Iterator[None]:
    """Has every operation compile that kernel without that barrier."""
    specialise = source.specialise

    def fault(which: str, defines: tuple[source.Define, ...]) -> str:
        text = specialise(which, defines)
        if which != path:
            return text
        found = list(BARRIER.finditer(text))[number]
        return text[: found.start()] + text[found.end() :]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "specialise", fault)
        calls.forget()
        try:
            yield
        finally:
            calls.forget()
