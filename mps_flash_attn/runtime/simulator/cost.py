"""What counted work would cost on an Apple GPU: a model, for ranking variants of one kernel where there is no GPU.

It adds up throughputs of one core of an M1-class GPU. It knows nothing of latency, occupancy, registers that spill,
bank conflicts, or instructions other than those that are counted, so it says which variant does less work and not how
long anything takes.
"""

from __future__ import annotations

from dataclasses import fields

from .profile import Counters

__all__ = ["CYCLES", "model_cycles"]

#: Cycles of a core for one of each thing that `Counters` counts. Throughputs are those that metal-benchmarks measured
#: (github.com/philipturner/metal-benchmarks): 128 multiply-adds, 32 base-2 exponentials and 64 bytes of threadgroup
#: memory a cycle. Device bytes are counted as if nothing was cached, and charged at the rate of the system-level cache,
#: 16 bytes a cycle. What a barrier makes a core wait is an assumption.
CYCLES = {
    "matrix_products": 8 * 8 * 8 / 128,
    "exponentials": 1 / 32,
    "threadgroup_barriers": 32.0,
    "simdgroup_barriers": 4.0,
    "device_bytes_read": 1 / 16,
    "device_bytes_written": 1 / 16,
    "threadgroup_bytes_read": 1 / 64,
    "threadgroup_bytes_written": 1 / 64,
}


def model_cycles(counters: Counters) -> float:
    """The modelled cost: the sum of all that was counted, each at its weight in `CYCLES`."""
    return sum(CYCLES[entry.name] * getattr(counters, entry.name) for entry in fields(Counters))
