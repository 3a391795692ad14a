"""What compute-sanitizer watches: every kernel once on small problems, or one kernel with a planted fault.

``python -m tests.sanitizer.launches`` runs the kernels of all operations, ``... launches FAULT`` one of `FAULTS`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

import torch

from mps_flash_attn import launch, ops
from mps_flash_attn.runtime import cuda
from tests.ops.attention import ours
from tests.ops.barriers import barriers, without_barrier

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"


def every_kernel() -> None:
    """Launches what each operation's ``self_checks.py`` lists."""
    launches = 0
    for module in pkgutil.iter_modules(ops.__path__):
        if not module.ispkg:
            continue
        self_checks: Any = importlib.import_module(f"{ops.__name__}.{module.name}.self_checks")
        for check in self_checks.self_checks(cuda.CAPABILITIES):
            inputs = [x.cuda() for x in check.inputs]
            outputs = [torch.empty_like(x.pytorch, device="cuda") for x in check.outputs]
            launch.bind(check.launch, cuda)(*inputs, *outputs)
            torch.cuda.synchronize()
            launches += 1
    print(f"{launches} launches")


def _run(text: str, threads: int, *sizes: int) -> None:
    tensors = [torch.zeros(size).cuda() for size in sizes]
    cuda.compile_shader(HEADER + text).f(*tensors, threads=threads, group_size=threads)
    torch.cuda.synchronize()


def out_of_bounds() -> None:
    """Reads one element past the end of a tensor."""
    _run(
        """kernel void f(device float* out, const device float* x, uint i [[thread_position_in_grid]]) {
            out[i] = x[i + 1];
        }""",
        64,
        64,
        64,
    )


def uninitialised() -> None:
    """Reads a tensor that nobody wrote."""
    x = torch.empty(64, device="cuda")
    text = "kernel void f(device float* x, uint i [[thread_position_in_grid]]) { x[i] += 1; }"
    cuda.compile_shader(HEADER + text).f(x)
    torch.cuda.synchronize()


def race() -> None:
    """Two simdgroups write and read the same threadgroup memory with no barrier between."""
    _run(
        """kernel void f(device float* out, uint i [[thread_position_in_grid]]) {
            threadgroup float x[64];
            x[i] = i;
            out[i] = x[63 - i];
        }""",
        64,
        64,
    )


def divergent_barrier() -> None:
    """Half of a simdgroup never comes to the barrier."""
    _run(
        """kernel void f(device float* out, uint i [[thread_position_in_grid]]) {
            if (i % 32 < 16) threadgroup_barrier(mem_flags::mem_threadgroup);
            out[i] = i;
        }""",
        64,
        64,
    )


def missing_barrier(number: int) -> None:
    """An attention kernel without one of its barriers."""
    from mps_flash_attn.ops.attention.cases import Case

    path, index = attention_barriers()[number]
    # A head size that warpgroups do not multiply: what they read of threadgroup memory racecheck does not follow.
    inputs = Case(200, 200, 48, batch=1, query_heads=1, key_heads=1).inputs(torch.float16, "cuda")
    with without_barrier(path, index):
        ours(inputs)
        torch.cuda.synchronize()


def attention_barriers() -> list[tuple[str, int]]:
    """The barriers that matter with two buffers: that of one buffer stands in a branch that is not taken.

    Those of the mask's gradient, which is not asked for here, the simulator misses.
    """
    kernels = [(path, index) for path, index in barriers("ops/attention/") if "dmask" not in path]
    return [(path, index) for path, index in kernels if "forward.metal" in path or index == 1]


#: By name: the tool that has to find it, and the fault.
FAULTS: dict[str, tuple[str, Callable[[], None]]] = {
    "out_of_bounds": ("memcheck", out_of_bounds),
    "uninitialised": ("initcheck", uninitialised),
    "race": ("racecheck", race),
    "divergent_barrier": ("synccheck", divergent_barrier),
}
FAULTS |= {
    f"missing_barrier_{number}": ("racecheck", lambda number=number: missing_barrier(number))  # type: ignore[misc]
    for number in range(len(attention_barriers()))
}


if __name__ == "__main__":
    FAULTS[sys.argv[1]][1]() if len(sys.argv) > 1 else every_kernel()
