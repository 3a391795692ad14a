"""How threads run: barriers, collectives, divergence, threadgroup memory, faults, OS threads, fork."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mps_flash_attn import KernelLaunchError
from mps_flash_attn.runtime import simulator

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"
POSITION = "uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]"
SUM = f"""{HEADER}
kernel void group_sum(const device int* x, device int* y, {POSITION},
                      uint i [[thread_position_in_grid]], uint size [[threads_per_threadgroup]],
                      uint group [[threadgroup_position_in_grid]]) {{
    threadgroup int stage[1024];
    stage[t] = x[i];
    for (uint half_size = 512; half_size > 0; half_size /= 2) {{
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (t < half_size && t + half_size < size) stage[t] += stage[t + half_size];
    }}
    if (t == 0) y[group] = stage[0];
}}
"""


def run(body: str, *, threads: int = 32, group_size: int | None = None, source: str = HEADER) -> list[float]:
    """What a kernel with this body leaves in ``float y[threads]``."""
    kernel = simulator.compile_shader(
        f"{source}kernel void body(device float* y, {POSITION}, uint i [[thread_position_in_grid]]) {{\n{body}\n}}"
    ).body
    y = torch.zeros(threads)
    kernel(y, threads=threads, group_size=group_size or threads)
    return y.tolist()


@pytest.mark.parametrize("os_threads", [1, 2, 7])
@pytest.mark.parametrize("group_size", [1, 31, 32, 33, 250, 1024])
def test_barriers_order_a_reduction(group_size: int, os_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_FLASH_ATTN_SIMULATOR_THREADS", str(os_threads))
    x = torch.randint(1000, (2500,), dtype=torch.int32)
    groups = -(-2500 // group_size)
    y = torch.zeros(groups, dtype=torch.int32)
    simulator.compile_shader(SUM).group_sum(x, y, threads=2500, group_size=group_size)
    expected = torch.nn.functional.pad(x, (0, groups * group_size - 2500)).view(groups, group_size).sum(1)
    assert torch.equal(y.long(), expected)


def test_a_collective_in_a_branch_is_of_the_lanes_that_are_there() -> None:
    y = run("if (lane < 7) y[t] = simd_sum(1.0f);\nelse if (lane < 20) y[t] = simd_sum(10.0f);")
    assert y == [7.0] * 7 + [130.0] * 13 + [0.0] * 12


def test_lanes_leave_a_loop_at_different_times_and_meet_behind_it() -> None:
    y = run("float n = 0; for (uint j = 0; j < lane; ++j) n = simd_sum(1.0f);\ny[t] = n + 100 * simd_sum(1.0f);")
    # Lane l takes part in l rounds; in the last of them lanes l ... 31 are left.
    assert y == [3200.0] + [3200.0 + 32 - lane for lane in range(1, 32)]


def test_lanes_that_have_returned_take_no_part() -> None:
    assert run("if (lane % 2 == 1) return;\ny[t] = simd_sum(1.0f);") == [16.0, 0.0] * 16


def test_the_last_simdgroup_may_be_ragged() -> None:
    assert run("y[t] = simd_sum(1.0f);", threads=40) == [32.0] * 32 + [8.0] * 8


def test_simdgroups_may_wait_at_different_barriers() -> None:
    body = """threadgroup float stage[64];
    if (t < 32) { stage[t] = t; threadgroup_barrier(mem_flags::mem_threadgroup); }
    else { stage[t] = t; threadgroup_barrier(mem_flags::mem_threadgroup); }
    y[t] = stage[63 - t];"""
    assert run(body, threads=64) == [float(63 - t) for t in range(64)]


def test_a_barrier_that_cannot_be_completed_is_an_error() -> None:
    with pytest.raises(
        KernelLaunchError,
        match=r"kernel 'body': .*threadgroup_barrier at line 5 can never be completed: of the 64 threads of "
        r"threadgroup \(0, 0, 0\), 0-9, 32-63 wait at it and 10-31 have returned from the kernel",
    ):
        run("if (t >= 10 && t < 32) return;\nthreadgroup_barrier(mem_flags::mem_threadgroup);", threads=64)
    assert run("y[t] = 1;", threads=64) == [1.0] * 64


@pytest.mark.parametrize(
    ("source", "floats", "fits"),
    [
        (HEADER, 8192, True),
        (HEADER, 8193, False),
        (f"{HEADER}constant double one = 1;\n", 16384, True),
        (f"{HEADER}constant double one = 1;\n", 16385, False),
    ],
)
def test_threadgroup_memory_is_limited(source: str, floats: int, fits: bool) -> None:
    body = f"threadgroup float first[100];\nthreadgroup float rest[{floats - 100}];\nfirst[t] = rest[t] = t;y[t] = 1;"
    if fits:
        assert run(body, source=source) == [1.0] * 32
        return
    limit = floats // 8192 * 32768
    words = rf"array 'rest' at line \d+ brings the total to {4 * floats} bytes of threadgroup memory; at most {limit} "
    with pytest.raises(KernelLaunchError, match=words):
        run(body, source=source)


def test_an_array_declared_in_a_loop_is_one_array() -> None:
    body = """float sum = 0;
    for (uint j = 0; j < 100; ++j) {
        threadgroup float stage[1024];
        stage[t] = j;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        sum += stage[31 - t];
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    y[t] = sum;"""
    assert run(body) == [4950.0] * 32


FAULTS = {
    "y[t] = 5 / (int(i) - 45);": r"integer division by zero by thread \(13, 0, 0\) of threadgroup \(1, 0, 0\)",
    "y[long(i) << 44] = 1;": r"access to invalid memory by thread \(1, 0, 0\) of threadgroup \(0, 0, 0\)",
    "float a[40000]; for (uint j = 0; j < 40000; ++j) a[j] = y[j % 32] + j; y[t] = a[i];": "KiB of private memory",
}


@pytest.mark.parametrize("body", FAULTS)
@pytest.mark.parametrize("os_threads", [1, 2])
def test_a_fault_ends_the_launch_and_not_the_process(
    body: str, os_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPS_FLASH_ATTN_SIMULATOR_THREADS", str(os_threads))
    for _ in range(2):
        with pytest.raises(KernelLaunchError, match=rf"kernel 'body': fault: .*{FAULTS[body]}"):
            run(body, threads=64, group_size=32)
    assert run("y[t] = simd_sum(1.0f);") == [32.0] * 32


def test_faults_outside_of_kernels_are_not_touched() -> None:
    script = """
import ctypes, faulthandler, torch
from mps_flash_attn.runtime import simulator
simulator.compile_shader("kernel void nothing(device float* y) {}").nothing(torch.zeros(1))
faulthandler.disable()
ctypes.string_at(0)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == -11, result


def test_faults_are_caught_after_another_library_took_the_signals() -> None:
    script = """
import ctypes, faulthandler, torch
from mps_flash_attn.errors import KernelLaunchError
from mps_flash_attn.runtime import simulator
kernels = simulator.compile_shader(
    "kernel void nothing(device float* y) {}"
    "kernel void wild(device float* y, uint i [[thread_position_in_grid]]) { y[long(i + 1) << 44] = 1; }"
)
for take in (faulthandler.disable, faulthandler.enable):
    kernels.nothing(torch.zeros(1))
    take()
    try:
        kernels.wild(torch.zeros(1), threads=1)
    except KernelLaunchError as error:
        print(error)
ctypes.string_at(0)
"""
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.stdout.count("access to invalid memory") == 2, result
    assert result.returncode == -11, result
    assert "ctypes" in result.stderr, result


def test_launches_from_several_python_threads() -> None:
    lib = simulator.compile_shader(SUM)
    failures: list[BaseException] = []

    def work(value: int) -> None:
        try:
            x, y = torch.full((4096,), value, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
            for _ in range(20):
                lib.group_sum(x, y.zero_(), threads=4096, group_size=512)
                assert y.tolist() == [512 * value] * 8
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("checked", [False, True])
def test_a_long_launch_can_be_interrupted(checked: bool) -> None:
    kernel = simulator.compile_shader(
        f"{HEADER}kernel void spin(device float* y) {{ for (int j = 0; j < 1000; ++j) y[0] = simd_sum(1.0f); }}"
    ).spin
    y = torch.zeros(1)
    with simulator.check() if checked else contextlib.nullcontext():
        kernel(y, threads=1)
        threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            kernel(y, threads=1 << 31, group_size=32)


def _launch_in_child(results: multiprocessing.SimpleQueue[list[float]]) -> None:
    results.put(run("y[t] = simd_sum(1.0f);", threads=2048, group_size=64)[:3])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_launch() -> None:
    assert run("y[t] = simd_sum(1.0f);", threads=2048, group_size=64)[0] == 32
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_launch_in_child, args=(results,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert results.get() == [32.0] * 3


def test_fibers_without_assembly(tmp_path: Path) -> None:
    """The fallback of CPUs that no assembly was written for runs what the usual build runs."""
    root = Path(__file__).parents[2]
    if not (root / "csrc" / "simulator" / "fiber.cpp").exists():
        pytest.skip("needs the sources of the extension module")
    (tmp_path / "main.cpp").write_text("""
#include "fiber.h"
#include <cstdio>
#include <vector>
using namespace simt;
static Fiber ring[3], start;
static void live(void* argument) {
    const long self = reinterpret_cast<long>(argument);
    for (int round = 0; round < 3; ++round) {
        std::printf("%ld", self);
        switch_fiber(ring[self], round == 2 && self == 2 ? start : ring[(self + 1) % 3]);
    }
}
int main() {
    std::vector<std::vector<char>> stacks(3, std::vector<char>(1 << 16));
    for (long i = 0; i < 3; ++i) {
        prepare_fiber(ring[i], stacks[i].data(), stacks[i].data() + stacks[i].size(), live, reinterpret_cast<void*>(i));
    }
    switch_fiber(start, ring[0]);
}
""")
    for flags in ([], ["-DSIMT_FIBER_UCONTEXT"]):
        program = tmp_path / f"fibers{len(flags)}"
        sources = [str(tmp_path / "main.cpp"), str(root / "csrc" / "simulator" / "fiber.cpp")]
        compiler = os.environ.get("CXX", "g++")
        subprocess.run(
            [compiler, "-std=c++17", *flags, f"-I{root}/csrc/simulator", *sources, "-o", program], check=True
        )
        assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "012" * 3
