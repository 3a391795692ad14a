"""New rows in caches that they fill, so that what these held before is nowhere to be seen."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...launch import Capabilities
from ...self_check import Expected, SelfCheck
from . import plan
from .cases import CHECKED

__all__ = ["self_checks"]


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of the kernel in each dtype that Metal has, made one problem at a time."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for case in CHECKED:
            x = case.inputs(dtype)
            lengths = x.cache_seqlens
            numbers = x.cache_batch_idx if x.block_table is None else x.block_table
            given = (x.cos, x.sin, lengths, numbers)
            exact, pytorch = (x.expected(case.interleaved, exact=exact) for exact in (True, False))
            yield SelfCheck(
                f"{case.length} rows of {case.columns} and {case.value_columns}, R {case.rotary_dim}, {case.place}",
                dtype,
                plan.store(x.problem(case.interleaved), capabilities),
                (x.key, x.value, *(lengths if tensor is None else tensor for tensor in given)),
                tuple(map(Expected, ("k_cache", "v_cache"), exact, pytorch)),
            )
