"""What our attention is compared with: the textbook formula, and PyTorch's own Metal kernel in the simulator."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mps_flash_attn.runtime import simulator

__all__ = ["PREFILL_HEAD_SIZES", "naive_attention", "pytorch_prefill"]

# Query rows, key rows and simdgroups of a threadgroup, by head size, as PrefillAttention.h instantiates its kernel.
_PREFILL_TILES = dict.fromkeys((32, 64, 72, 80, 96), (32, 32, 4)) | {128: (32, 16, 4), 256: (16, 8, 2)}
_PREFILL_HEADER = "ATen/native/mps/kernels/PrefillAttention.h"

#: Head sizes that PyTorch's kernel has; none if the installed PyTorch is older than the kernel.
PREFILL_HEAD_SIZES = (
    tuple(_PREFILL_TILES) if (Path(torch.__file__).parent / "include" / _PREFILL_HEADER).is_file() else ()
)

_PREFILL_SOURCE = f"""
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
#include <c10/metal/utils.h>
using namespace metal;
#include <{_PREFILL_HEADER}>
"""


def naive_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    """Attention as the textbook writes it: the [length, length] matrices exist, and autograd keeps them.

    Tensors are [batch, heads, length, head_dim].
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if is_causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ value


def pytorch_prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """Runs the attention kernel of PyTorch's MPS backend, ``PrefillAttention.h``, in the simulator.

    Args:
        query: [batch, heads, queries, head_dim], on the CPU; head_dim one of ``PREFILL_HEAD_SIZES``.
        key, value: [batch, key heads, keys, head_dim]; key heads divide heads.
        is_causal: query ``i`` sees keys up to ``i``.
        attn_mask: boolean or of the query's dtype, [batch, heads, queries, keys] with a unit last stride.

    Returns:
        The output, [batch, heads, queries, head_dim], contiguous.
    """
    batch, heads, queries, head_dim = query.shape
    keys = key.shape[2]
    rows, columns, simdgroups = _PREFILL_TILES[head_dim]
    dtype = str(query.dtype).removeprefix("torch.")
    mask_name = "bool_" if attn_mask is not None and attn_mask.dtype == torch.bool else dtype
    name = (
        f"prefill_attention_{dtype}_bq{rows}_bk{columns}_bd{head_dim}_wm{simdgroups}_wn1"
        f"_hm{int(attn_mask is not None)}_dc{int(is_causal)}_mask{mask_name}"
    )
    output = torch.full_like(query, torch.nan, memory_format=torch.contiguous_format)
    params = struct.pack(
        "<6i2f12i",
        *(batch, heads, head_dim, queries, keys, heads // key.shape[1]),
        *(1 / math.sqrt(head_dim), 1.0),  # scale; a soft cap of 1 is none
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *output.stride()[:3],
    )
    mask_strides = (0, 0, 0, 0) if attn_mask is None else attn_mask.stride()
    kernel: Any = getattr(simulator.compile_shader(_PREFILL_SOURCE), name)
    kernel(
        query,
        key,
        value,
        output,
        torch.frombuffer(bytearray(params), dtype=torch.uint8),
        torch.tensor(mask_strides, dtype=torch.int32),
        query if attn_mask is None else attn_mask,  # the kernel reads no mask then, but takes a buffer
        threads=(-(-queries // rows) * 32 * simdgroups, heads, batch),
        group_size=(32 * simdgroups, 1, 1),
    )
    return output
