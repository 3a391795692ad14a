"""Transactions: what the lanes of a simdgroup ask of memory together, in kernels whose counts are plain."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from mps_flash_attn.runtime import simulator

SOURCE = """
#include <metal_stdlib>
using namespace metal;

kernel void read(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                 constant long& stride [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    y[i] = x[i * stride];
}
kernel void read_quads(const device float4* x [[buffer(0)]], device float* y [[buffer(1)]],
                       uint i [[thread_position_in_grid]]) {
    y[i] = x[i].x;
}
kernel void read_half_of_lanes(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                               uint i [[thread_position_in_grid]]) {
    if (i % 2) y[i] = x[i];
}
kernel void repeat(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                   uint i [[thread_position_in_grid]]) {
    float sum = 0;
    for (int n = 0; n < 5; n++) sum += x[n * 32 + i];
    y[i] = sum;
}
kernel void banks(device float* y [[buffer(0)]], constant long& stride [[buffer(1)]],
                  ushort i [[thread_index_in_threadgroup]]) {
    threadgroup float words[32 * 33];
    words[i * stride] = i;
    y[i] = 0;
}
"""


@functools.cache
def library() -> Any:
    return simulator.compile_shader(SOURCE)


def count(name: str, *arguments: Any, threads: int = 32) -> simulator.Transactions:
    with simulator.profile(transactions=True) as profile:
        getattr(library(), name)(*arguments, threads=threads, group_size=32)
    return profile.transactions


@pytest.mark.parametrize(("stride", "segments"), [(0, 1), (1, 1), (2, 2), (8, 8), (32, 32), (100, 32)])
def test_segments_follow_the_stride(stride: int, segments: int) -> None:
    found = count("read", torch.zeros(32 * 100), torch.zeros(32), stride)
    assert found == simulator.Transactions(device_accesses=2, device_segments=segments + 1)


def test_a_segment_is_128_bytes_of_a_tensor() -> None:
    assert count("read_quads", torch.zeros(128), torch.zeros(32)).device_segments == 4 + 1
    assert count("read", torch.zeros(33)[1:], torch.zeros(32), 1).device_segments == 2


def test_lanes_that_stay_behind_are_no_part_of_an_access() -> None:
    found = count("read_half_of_lanes", torch.zeros(32), torch.zeros(32))
    assert found == simulator.Transactions(device_accesses=2, device_segments=2)


def test_each_turn_of_a_loop_is_an_access() -> None:
    found = count("repeat", torch.zeros(32 * 5), torch.zeros(32))
    assert found == simulator.Transactions(device_accesses=6, device_segments=6)


def test_simdgroups_and_threadgroups_add_up() -> None:
    found = count("read", torch.zeros(320), torch.zeros(320), 1, threads=320)
    assert found == simulator.Transactions(device_accesses=20, device_segments=20)


@pytest.mark.parametrize(("stride", "passes"), [(1, 1), (2, 2), (3, 1), (4, 4), (32, 32), (33, 1)])
def test_words_of_one_bank_need_a_pass_each(stride: int, passes: int) -> None:
    found = count("banks", torch.zeros(32), stride)
    assert found.threadgroup_accesses == 1
    assert found.threadgroup_passes == passes
    assert found.threadgroup_conflicts == passes - 1


def test_a_word_for_all_lanes_is_one_pass() -> None:
    assert count("banks", torch.zeros(32), 0).threadgroup_passes == 1


def test_not_counted_unless_asked_for() -> None:
    with simulator.profile() as profile:
        library().read(torch.zeros(32), torch.zeros(32), 1, threads=32)
    assert profile.transactions == simulator.Transactions()
    assert profile.total.device_bytes == 256
