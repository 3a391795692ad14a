"""Each check finds a planted fault and passes the sound twin of the faulty kernel."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import Tensor

from mps_flash_attn import KernelCheckError
from mps_flash_attn.runtime import simulator
from mps_flash_attn.runtime.simulator.pytest_plugin import simulator_check  # noqa: F401

# Each thread hands its element to the next thread of the threadgroup, through threadgroup memory.
ROTATE = """
kernel void rotate(const device float* x, device float* y, constant uint& n,
                   uint t [[thread_index_in_threadgroup]], uint i [[thread_position_in_grid]],
                   uint size [[threads_per_threadgroup]]) {
    threadgroup float stage[128];
    stage[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = stage[(t + 1) % size];
}
"""
# Each simdgroup sums its part of a row; the first simdgroup adds the sums up.
ROW_SUM = """
kernel void row_sum(const device float* x, device float* y, constant uint& n,
                    uint t [[thread_index_in_threadgroup]], uint row [[threadgroup_position_in_grid]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float parts[4];
    float sum = 0;
    for (uint j = t; j < n; j += 128) sum += x[row * n + j];
    sum = simd_sum(sum);
    if (lane == 0) parts[simdgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (t == 0) y[row] = parts[0] + parts[1] + parts[2] + parts[3];
}
"""
# Two lanes exchange values within their simdgroup.
EXCHANGE = """
kernel void exchange(const device float* x, device float* y, constant uint& n,
                     uint t [[thread_index_in_threadgroup]]) {
    threadgroup float stage[128];
    stage[t] = x[t];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[t] = stage[t ^ 1];
}
"""
# Each thread writes through device memory to its neighbour.
THROUGH_DEVICE = """
kernel void through_device(device float* x, device float* y, constant uint& n,
                           uint t [[thread_index_in_threadgroup]]) {
    x[t] = t;
    threadgroup_barrier(mem_flags::mem_device);
    y[t] = x[t ^ 64];
}
"""
COUNT = """
kernel void count(const device float* x, device atomic_uint* y, constant uint& n,
                  uint i [[thread_position_in_grid]]) {
    atomic_fetch_add_explicit(y, 1u, memory_order_relaxed);
}
"""
PRIVATE = """
kernel void spill(const device float* x, device float* y, constant uint& n, uint i [[thread_position_in_grid]]) {
    float window[5];
    for (uint j = 0; j < 5; ++j) window[j] = x[i] + j;
    float sum = 0;
    for (uint j = 0; j < n; ++j) sum += window[j];
    y[i] = sum;
}
"""
BRANCH = """
kernel void branch(const device float* x, device float* y, constant uint& n,
                   uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    float sum = simd_sum(x[t]);
    if (lane < 16) sum += 1;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[t] = sum;
}
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A sound kernel and how a change makes it faulty.

    Attributes:
        text: the sound kernel of the arguments (x, y, n).
        old, new: the change.
        finds: a pattern that some finding matches; ``{old}`` stands for the number of the changed line.
        x, y: elements of the tensors.
        n: the constant.
        threads: of the grid; threadgroups have 128.
    """

    text: str
    old: str
    new: str
    finds: str
    x: int = 256
    y: int = 256
    n: int = 0
    threads: int = 256

    def run(self, text: str) -> tuple[Tensor, Tensor]:
        library = simulator.compile_shader(text)
        (name,) = dir(library)
        x = torch.randn(self.x)
        y = torch.zeros(self.y, dtype=torch.int32 if "atomic" in text else torch.float32)
        getattr(library, name)(x, y, self.n, threads=self.threads, group_size=128)
        return x, y


TWO_ROWS = {"x": 2 * 300, "y": 2, "n": 300}
CASES = {
    "missing barrier": Case(ROTATE, "threadgroup_barrier(mem_flags::mem_threadgroup);", "", "data race.*'stage'"),
    "barrier without flag": Case(ROTATE, "mem_threadgroup);", "mem_none);", "data race.*'stage'.*mem_threadgroup"),
    "barrier with another flag": Case(ROTATE, "mem_threadgroup);", "mem_device);", "data race.*'stage'"),
    "barrier of a simdgroup only": Case(ROTATE, "threadgroup_barrier", "simdgroup_barrier", "data race.*'stage'"),
    "missing barrier of a simdgroup": Case(
        EXCHANGE, "simdgroup_barrier(mem_flags::mem_threadgroup);", "", "data race.*'stage'", threads=128
    ),
    "simdgroup barrier without flag": Case(
        EXCHANGE, "mem_threadgroup);", "mem_none);", "data race.*'stage'", threads=128
    ),
    "device memory is not ordered by mem_threadgroup": Case(
        THROUGH_DEVICE, "mem_device);", "mem_threadgroup);", r"data race.*buffer 0 \('x'\).*mem_device", threads=128
    ),
    "threadgroups are not ordered": Case(
        ROTATE, "y[i] =", "y[t] =", r"data race.*buffer 1 \('y'\).*nothing orders threadgroups"
    ),
    "same value from all threads": Case(ROW_SUM, "if (t == 0) y", "y", r"data race.*buffer 1 \('y'\)", **TWO_ROWS),
    "order of threads": Case(
        COUNT,
        "atomic_fetch_add_explicit(y, 1u, memory_order_relaxed);",
        "atomic_store_explicit(y, i, memory_order_relaxed);",
        r"order of threads: byte 0 \(element 0\) of buffer 1 \('y'\)",
    ),
    "atomic and plain access": Case(
        COUNT,
        "atomic_fetch_add_explicit(y, 1u, memory_order_relaxed);",
        "*(device uint*)y += 1;",
        r"data race.*buffer 1 \('y'\)",
    ),
    "device read beyond the end": Case(
        ROTATE,
        "x[i];",
        "x[i + 1];",
        r"out of bounds: read of 4 bytes that begin at the end of buffer 0 \('x'\), 1024 "
        r"bytes long, by thread \(127, 0, 0\) of threadgroup \(1, 0, 0\) at kernel.metal:{old}",
    ),
    "device write before the beginning": Case(
        ROTATE,
        "y[i] =",
        "y[long(i) - 3] =",
        r"out of bounds: write of 4 bytes that begin 12 bytes before buffer 1 \('y'\)",
    ),
    "constant read beyond the end": Case(
        ROW_SUM,
        "x[row * n + j];",
        "x[row * n + j] + (&n)[2];",
        r"out of bounds: read.*end of buffer 2 \('n'\)",
        **TWO_ROWS,
    ),
    "threadgroup array through its type": Case(
        ROTATE, "(t + 1) % size", "t + 1", r"out of bounds: index 128 of an array.*at kernel.metal:{old}"
    ),
    "threadgroup array through a pointer": Case(
        ROTATE,
        "stage[(t + 1) % size]",
        "((threadgroup float*)stage)[t + 1]",
        r"out of bounds: read of 4 bytes that begin at the end of threadgroup array 'stage' \(line \d+\), 512 b",
    ),
    "private array": Case(PRIVATE, "j < n", "j <= n", "out of bounds: index 5 of an array of type", n=5),
    "uninitialised threadgroup memory": Case(
        ROW_SUM,
        "if (lane == 0) parts",
        "if (lane == 0 && simdgroup != 2) parts",
        r"uninitialised: read of bytes 8-11 of threadgroup array 'parts'",
        **TWO_ROWS,
    ),
    "divergent simd_sum": Case(
        BRANCH,
        "sum += 1;",
        "sum += simd_sum(1.0f);",
        r"divergence: simd_sum at line {old} is reached by lanes 0-15 of simdgroup 0 .* lanes 16-31 wait at "
        r"threadgroup_barrier at line",
        threads=128,
        x=128,
        y=128,
    ),
    "divergent simdgroup barrier": Case(
        BRANCH,
        "sum += 1;",
        "simdgroup_barrier(mem_flags::mem_none);",
        "divergence: simdgroup_barrier at line {old} is reached by lanes 0-15",
        threads=128,
        x=128,
        y=128,
    ),
    "lanes that returned": Case(
        BRANCH,
        "float sum = simd_sum(x[t]);",
        "if (lane > 20) return; float sum = simd_sum(x[t]);",
        "divergence: simd_sum at line {old} is reached by lanes 0-20.*lanes 21-31 have returned",
        threads=128,
        x=128,
        y=128,
    ),
    "barrier that some threads never reach": Case(
        BRANCH,
        "if (lane < 16) sum += 1;",
        "if (t >= 64) return;",
        "divergence: threadgroup_barrier at line .* can never be completed.* 0-63 wait at it and 64-127 have returned",
        threads=128,
        x=128,
        y=128,
    ),
    "different barriers": Case(
        BRANCH,
        "if (lane < 16) sum += 1;",
        "if (t < 64) { threadgroup_barrier(mem_flags::mem_threadgroup); y[t] = sum; return; }",
        "divergence: the threads of threadgroup .* meet at different barriers: threads 0-63 at line {old}, ",
        threads=128,
        x=128,
        y=128,
    ),
    "division by zero": Case(
        PRIVATE,
        "window[j] = x[i] + j",
        "window[j] = x[i] + int(i) / int(n - 5)",
        "fault: integer division by zero by thread",
        n=5,
    ),
}
HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_finds_the_planted_fault_alone(case: Case) -> None:
    with simulator.check():
        case.run(HEADER + case.text)

    assert case.text.count(case.old) == 1
    line = (HEADER + case.text).split(case.old)[0].count("\n") + 1
    with pytest.raises(KernelCheckError) as caught, simulator.check():
        case.run(HEADER + case.text.replace(case.old, case.new))
    pattern = case.finds.replace("{old}", str(line))
    assert any(re.search(pattern, finding) for finding in caught.value.findings), caught.value
    assert len(caught.value.findings) <= 21


def test_lanes_may_write_the_same_value_in_lockstep() -> None:
    text = HEADER + ROW_SUM.replace("if (t == 0) y", "if (simdgroup == 1) y")
    with simulator.check():
        Case(ROW_SUM, "", "", "", **TWO_ROWS).run(text)
    different = text.replace("parts[3];", "parts[3] + lane;")
    with pytest.raises(KernelCheckError, match=r"data race.*buffer 1 \('y'\)"), simulator.check():
        Case(ROW_SUM, "", "", "", **TWO_ROWS).run(different)


def test_reports_each_pair_of_lines_once_and_both_lines() -> None:
    text = HEADER + ROTATE.replace("threadgroup_barrier(mem_flags::mem_threadgroup);", "")
    with pytest.raises(KernelCheckError) as caught, simulator.check():
        Case(ROTATE, "", "", "").run(text)
    races = [finding for finding in caught.value.findings if finding.startswith("data race")]
    lines = [set(re.findall(r"kernel.metal:(\d+)", race)) for race in races]
    write = (HEADER + ROTATE).split("stage[t] =")[0].count("\n") + 1
    assert lines == [{str(write), str(write + 2)}]


def test_random_order_can_be_repeated() -> None:
    text = HEADER + COUNT.replace("atomic_fetch_add_explicit(y, 1u", "atomic_store_explicit(y, i")
    reports = []
    for seed in (7, 7, 8):
        with pytest.raises(KernelCheckError) as caught, simulator.check(seed=seed):
            Case(COUNT, "", "", "").run(text)
        reports.append(str(caught.value))
    assert reports[0] == reports[1]
    assert "of seed 7" in reports[0]
    assert "of seed 8" in reports[2]


def test_result_is_that_of_an_unchecked_launch() -> None:
    with simulator.check():
        x, y = Case(ROTATE, "", "", "").run(HEADER + ROTATE)
    assert torch.equal(y.view(2, 128), x.view(2, 128).roll(-1, 1))


def test_tensors_stay_as_they_were_when_a_fault_is_found() -> None:
    kernel = simulator.compile_shader(
        HEADER + "kernel void fill(device float* y, uint i [[thread_position_in_grid]]) { y[i] = 1; y[0] = i; }"
    )
    y = torch.zeros(64)
    with pytest.raises(KernelCheckError), simulator.check():
        kernel.fill(y)
    assert torch.equal(y, torch.zeros(64))


def test_tensors_that_share_memory_share_it_while_checked() -> None:
    kernel = simulator.compile_shader(
        HEADER
        + """kernel void shift(device float* x, device float* y, uint i [[thread_position_in_grid]]) {
                 y[i] = 1;
                 threadgroup_barrier(mem_flags::mem_device);
                 x[i] += 1;
             }"""
    )
    memory = torch.zeros(40)
    with simulator.check():
        kernel.shift(memory[:32], memory[8:], threads=32, group_size=32)
    assert torch.equal(memory, torch.tensor([1.0] * 8 + [2.0] * 24 + [1.0] * 8))


def test_a_strided_tensor_is_checked_to_its_last_element() -> None:
    kernel = simulator.compile_shader(
        HEADER
        + """kernel void copy(const device float* x, device float* y, constant uint& stride,
                              uint i [[thread_position_in_grid]]) { y[i] = x[i * stride]; }"""
    )
    x, y = torch.randn(16, 10)[:, 3], torch.zeros(16)
    with simulator.check():
        kernel.copy(x, y, 10, threads=16)
        assert torch.equal(x, y)
        with pytest.raises(KernelCheckError, match="read of 4 bytes that begin 36 bytes beyond the end of buffer 0"):
            kernel.copy(x[:-1], y, 10, threads=16)


@pytest.mark.parametrize("access", ["y[i * 8 + 5] = 1;", "y[i * 8] = 1; y[1] += y[i * 8 + 5];"])
def test_what_lies_between_the_elements_of_a_tensor_is_not_its_memory(access: str) -> None:
    kernel = simulator.compile_shader(
        f"{HEADER}kernel void touch(device float* y, uint i [[thread_position_in_grid]]) {{ {access} }}"
    )
    with (
        pytest.raises(KernelCheckError, match=r"bytes 20-23, which lie between the elements of buffer 0 \('y'\)"),
        simulator.check(),
    ):
        kernel.touch(torch.zeros(4, 8)[:, :5], threads=1)


def test_what_lies_between_the_elements_of_one_tensor_may_be_anothers() -> None:
    kernel = simulator.compile_shader(
        HEADER
        + """kernel void swap(device float* x, device float* y, uint i [[thread_position_in_grid]]) {
                 const float old = x[i * 8];
                 x[i * 8] = y[i * 8];
                 y[i * 8] = old;
             }"""
    )
    memory = torch.arange(32.0).view(4, 8)
    with simulator.check():
        kernel.swap(memory[:, 0], memory[:, 4].expand(2, 4), threads=4)
    assert memory[:, 0].tolist() == [4.0, 12.0, 20.0, 28.0]


def test_lists_of_tensors_are_checked_too() -> None:
    kernel = simulator.compile_shader(
        HEADER
        + """kernel void gather(device float* constant* xs, device float* y, constant uint& last,
                                uint i [[thread_position_in_grid]]) { y[i] = xs[0][i] + xs[1][i + last]; }"""
    )
    xs, y = [torch.randn(8), torch.randn(8)], torch.zeros(8)
    with simulator.check():
        kernel.gather(xs, y, 0, threads=8)
        assert torch.equal(y, xs[0] + xs[1])
        with pytest.raises(KernelCheckError, match=r"that begin at the end of buffer 0 \('xs'\)\[1\]"):
            kernel.gather(xs, y, 1, threads=8)


def test_an_empty_tensor_must_not_be_read() -> None:
    kernel = simulator.compile_shader(
        HEADER + "kernel void read(const device float* x, device float* y) { y[0] = x[0]; }"
    )
    with pytest.raises(KernelCheckError, match=r"buffer 0 \('x'\), 0 bytes long"), simulator.check():
        kernel.read(torch.empty(0), torch.zeros(1), threads=1)


def test_is_checking_is_of_the_calling_thread_and_nests() -> None:
    assert not simulator.is_checking()
    with simulator.check():
        assert simulator.is_checking()
        with simulator.profile():
            assert not simulator.is_checking()
        assert simulator.is_checking()
    assert not simulator.is_checking()


def test_fixture_checks_a_whole_test(simulator_check: None) -> None:  # noqa: F811
    assert simulator.is_checking()
    with pytest.raises(KernelCheckError):
        Case(ROTATE, "", "", "").run(HEADER + ROTATE.replace("[(t + 1) % size]", "[t + 1]"))


def test_counts_equal_hand_counts() -> None:
    with simulator.profile() as profile:
        case = Case(ROW_SUM, "", "", "", **TWO_ROWS)
        case.run(HEADER + ROW_SUM)
    (record,) = profile.launches
    assert record.kernel == "row_sum"
    assert (
        record.counters
        == profile.total
        == simulator.Counters(
            threadgroup_barriers=2,
            device_bytes_read=4 * 2 * 300,
            device_bytes_written=4 * 2,
            threadgroup_bytes_read=4 * 2 * 4,
            threadgroup_bytes_written=4 * 2 * 4,
        )
    )


@pytest.mark.parametrize("element", ["half", "float", "float4", "char", "uint2", "bfloat"])
def test_bytes_of_every_width_are_counted_exactly(element: str) -> None:
    size = {"half": 2, "float": 4, "float4": 16, "char": 1, "uint2": 8, "bfloat": 2}[element]
    kernel = simulator.compile_shader(
        f"""{HEADER}kernel void copy(const device {element}* x, device {element}* y,
                                     uint i [[thread_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {{
            threadgroup {element} stage[32];
            stage[t] = x[i];
            simdgroup_barrier(mem_flags::mem_threadgroup);
            y[i] = stage[t] + stage[t ^ 1];
        }}"""
    )
    x, y = torch.zeros(50 * size, dtype=torch.uint8), torch.zeros(50 * size, dtype=torch.uint8)
    with simulator.profile() as profile:
        kernel.copy(x, y, threads=50, group_size=32)
    assert profile.total == simulator.Counters(
        simdgroup_barriers=2,
        device_bytes_read=50 * size,
        device_bytes_written=50 * size,
        threadgroup_bytes_read=2 * 50 * size,
        threadgroup_bytes_written=50 * size,
    )


def test_counts_are_the_same_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    totals = set()
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("MPS_FLASH_ATTN_SIMULATOR_THREADS", threads)
        with simulator.profile() as profile:
            Case(ROTATE, "", "", "", threads=3000, x=3000, y=3000).run(HEADER + ROTATE)
        totals.add(profile.total)
    assert len(totals) == 1


def test_text_that_metal_rejects_is_a_finding() -> None:
    pytest.importorskip("clang.cindex")
    text = """#include <metal_stdlib>
using namespace metal;
inline float first({space} float* x) {{ return x[0]; }}
kernel void copy(device float* x, device float* y, uint i [[thread_position_in_grid]]) {{
    y[i] = first(x);
}}
"""
    x, y = torch.ones(4), torch.zeros(4)
    with simulator.check():
        simulator.compile_shader(text.format(space="device")).copy(x, y, threads=4, group_size=4)
    illegal = simulator.compile_shader(text.format(space="thread"))
    with simulator.check(strict_parse=False):
        illegal.copy(x, y, threads=4, group_size=4)
    with pytest.raises(KernelCheckError, match=r"strict parse: kernel.metal:5:12: error: .*first"), simulator.check():
        illegal.copy(x, y, threads=4, group_size=4)
