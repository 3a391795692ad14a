"""What the host remembers of tensors of integers: until they change or die, and not where it need not."""

from __future__ import annotations

import gc
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from mps_flash_attn import UnsupportedError
from mps_flash_attn.ops import host_values as module
from mps_flash_attn.ops.host_values import filled, host_values, require_distinct, require_entries


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """CPU tensors are remembered as those of a GPU are; what was read from one."""
    read, found = module._read, list[Tensor]()

    def counted(tensor: Tensor, name: str) -> tuple[int, ...]:
        found.append(tensor.clone())
        return read(tensor, name)

    monkeypatch.setattr(module, "_is_remembered", lambda tensor: not tensor.is_inference())
    monkeypatch.setattr(module, "_read", counted)
    return found


def test_values_are_those_of_any_layout() -> None:
    table = torch.arange(6, dtype=torch.int32).view(2, 3)
    assert host_values(table.T) == (0, 3, 1, 4, 2, 5)
    assert host_values(table[:, :0]) == ()
    assert host_values(table[1, 2]) == (5,)


def test_a_tensor_is_read_once_until_it_changes(reads: list[Tensor]) -> None:
    lengths = torch.tensor([3, 4])
    assert host_values(lengths) == host_values(lengths) == (3, 4)
    assert len(reads) == 1
    lengths += 1
    assert host_values(lengths) == (4, 5)
    lengths[:1].zero_()  # through a view, which shares the count of changes
    assert host_values(lengths) == host_values(lengths) == (0, 5)
    assert len(reads) == 3
    lengths.data = torch.tensor([7, 8])
    assert host_values(lengths) == (7, 8)
    lengths.resize_(1)
    assert host_values(lengths) == (7,)


def test_equal_tensors_are_told_apart(reads: list[Tensor]) -> None:
    first, second = torch.tensor([1, 2]), torch.tensor([1, 2])
    assert host_values(first) == host_values(second)
    assert len(reads) == 2
    second[0] = 5
    assert host_values(first) == (1, 2)
    assert host_values(second) == (5, 2)


def test_nothing_is_kept_of_a_tensor_that_died(reads: list[Tensor]) -> None:
    gc.collect()
    before = len(module._known)
    lengths = torch.tensor([3, 4])
    host_values(lengths)
    assert len(module._known) == before + 1
    del lengths
    gc.collect()
    assert len(module._known) == before


def test_tensors_without_a_count_of_changes_are_read_each_time(reads: list[Tensor]) -> None:
    with torch.inference_mode():
        lengths = torch.tensor([3, 4])
        assert host_values(lengths) == (3, 4)
        lengths += 1
        assert host_values(lengths) == (4, 5)
    assert len(reads) == 2


def test_the_hosts_own_memory_is_read_each_time() -> None:
    lengths = torch.tensor([3, 4])
    shared = lengths.numpy()
    assert host_values(lengths) == (3, 4)
    shared[0] = 5  # PyTorch does not count this
    assert host_values(lengths) == (5, 4)


def test_a_tensor_of_one_value_is_not_read_until_it_changes(reads: list[Tensor]) -> None:
    lengths = filled(5, 3, torch.device("cpu"))
    assert lengths.dtype == torch.int32
    assert host_values(lengths) == (5, 5, 5)
    assert not reads
    lengths[1] = 7
    assert host_values(lengths) == (5, 7, 5)


def test_nothing_is_read_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert host_values(torch.tensor([3])) == (3,)
    on_gpu: Any = types.SimpleNamespace(is_cuda=True, device=torch.device("cuda"), is_inference=lambda: True)
    with pytest.raises(UnsupportedError, match="cache_seqlens is on cuda and a CUDA graph is being captured"):
        host_values(on_gpu, "cache_seqlens")


def test_entries_outside_the_range_are_named() -> None:
    require_entries("cache_seqlens", (0, 3), 0, 3, "rows")
    require_entries("cache_seqlens", (), 0, -1, "rows")
    for values in ((0, 4, 9), (0, -1)):
        with pytest.raises(ValueError, match=rf"cache_seqlens\[1\] is {values[1]}; accepted are 0 to 3, rows"):
            require_entries("cache_seqlens", values, 0, 3, "rows")


def test_equal_entries_are_named() -> None:
    require_distinct("cache_batch_idx", (2, 0, 1), "reason")
    with pytest.raises(ValueError, match=r"cache_batch_idx\[2\] is 2, as cache_batch_idx\[0\] is; .* ones, reason"):
        require_distinct("cache_batch_idx", (2, 0, 2), "reason")
