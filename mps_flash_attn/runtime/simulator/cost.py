"""What counted work would cost on an Apple GPU: a model, for ranking variants of one kernel where there is no GPU.

It adds up throughputs of one core of an M1-class GPU. It knows nothing of latency, occupancy, registers that spill,
caches, or instructions other than those that are counted, so it says which variant does less work and not how long
anything takes.
"""

from __future__ import annotations

from collections.abc import Callable

from .profile import profile

__all__ = ["CYCLES", "model_cycles"]

#: Cycles of a core for one of each thing that `Counters` and `Transactions` count. Throughputs are those that
#: metal-benchmarks measured (github.com/philipturner/metal-benchmarks): a cycle has 128 multiply-adds, 32 base-2
#: exponentials, or 64 bytes of threadgroup memory, and a pass over its 32 banks gives 128. Segments of device memory,
#: 128 bytes, are counted as if nothing was cached, and charged at the rate of the system-level cache, 16 bytes a cycle.
#: What a barrier makes a core wait is an assumption.
CYCLES = {
    "matrix_products": 8 * 8 * 8 / 128,
    "exponentials": 1 / 32,
    "threadgroup_passes": 128 / 64,
    "device_segments": 128 / 16,
    "threadgroup_barriers": 32.0,
    "simdgroup_barriers": 4.0,
}


def model_cycles(call: Callable[[], None]) -> float:
    """The modelled cost of what a call launches: the sum of all that is counted, each at its weight in `CYCLES`."""
    with profile(transactions=True) as counts:
        call()
    found = {**vars(counts.total), **vars(counts.transactions)}
    return sum(cycles * found[name] for name, cycles in CYCLES.items())
