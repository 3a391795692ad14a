"""Small kernels for the tests of the C ABI."""

from __future__ import annotations

import itertools
import random

__all__ = ["SCALE", "distinct"]

#: Multiplies ``x`` by a number passed by value.
SCALE = """
#include <metal_stdlib>
using namespace metal;
kernel void scale(device float* x [[buffer(0)]], constant float& factor [[buffer(1)]],
                  uint i [[thread_position_in_grid]]) {
    x[i] *= factor;
}
"""

_serial = itertools.count()
_session = random.SystemRandom().getrandbits(64)


def distinct(source: str = SCALE) -> str:
    """The same kernels in a text that no process has had before."""
    return f"// {_session:x} {next(_serial)}\n{source}"
