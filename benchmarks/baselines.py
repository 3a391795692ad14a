"""What our attention is compared with: the textbook formula, and PyTorch's own Metal kernel in the simulator."""

from __future__ import annotations

import functools
import math
import re
import struct
from pathlib import Path

import torch
from torch import Tensor

from mps_flash_attn.runtime import simulator

__all__ = ["PREFILL_HEAD_SIZES", "naive_attention", "pytorch_metal_source", "pytorch_prefill"]

_HEADERS = Path(torch.__file__).parent / "include"
_INCLUDE = re.compile(r"\s*#\s*include\s*<(?P<path>[^>]+)>")
_ELEMENTS = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat"}

# Query rows, key rows and simdgroups of a threadgroup, by head size, as PrefillAttention.h instantiates its kernel.
_PREFILL_TILES = {
    32: (32, 32, 4),
    64: (32, 32, 4),
    72: (32, 32, 4),
    80: (32, 32, 4),
    96: (32, 32, 4),
    128: (32, 16, 4),
    256: (16, 8, 2),
}
PREFILL_HEAD_SIZES = tuple(_PREFILL_TILES)


def naive_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    """Attention as the textbook writes it: the [length, length] matrices exist, and autograd keeps them.

    Tensors are [batch, heads, length, head_dim].
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if is_causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ value


@functools.cache
def pytorch_metal_source(header: str) -> str:
    """A Metal header of the installed PyTorch as one text, behind the lines that PyTorch's own build puts first.

    The header's own list of instantiations at its end is left out: it has hundreds of kernels.

    Args:
        header: its name in ``torch/include/ATen/native/mps/kernels``.
    """
    included: set[str] = set()

    def expand(path: str) -> str:
        included.add(path)
        lines = []
        for line in (_HEADERS / path).read_text(encoding="utf-8").splitlines(keepends=True):
            include = _INCLUDE.match(line)
            if include is None or not (_HEADERS / include["path"]).is_file():
                lines.append("\n" if line.startswith("#pragma once") else line)
            elif include["path"] not in included:
                lines.append(expand(include["path"]))
        return "".join(lines)

    prelude = expand("c10/metal/utils.h") + "using namespace metal;\n"
    kernels = expand(f"ATen/native/mps/kernels/{header}")
    return prelude + re.sub(r"^ *instantiate_\w+\(\w+, \w+\);?$", "", kernels, flags=re.MULTILINE)


def pytorch_prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Runs the attention kernel of PyTorch's MPS backend, ``PrefillAttention.h``, in the simulator.

    Args:
        query: [batch, heads, queries, head_dim], on the CPU; head_dim one of ``PREFILL_HEAD_SIZES``.
        key, value: [batch, key heads, keys, head_dim]; key heads divide heads.
        is_causal: query ``i`` sees keys up to ``i``.
        attn_mask: boolean or of the query's dtype, [batch, heads, queries, keys] with a unit last stride.
        scale: factor of the scores, ``1 / sqrt(head_dim)`` by default.

    Returns:
        The output, [batch, heads, queries, head_dim], contiguous.
    """
    batch, heads, queries, head_dim = query.shape
    keys = key.shape[2]
    rows, columns, simdgroups = _PREFILL_TILES[head_dim]
    element = _ELEMENTS[query.dtype]
    mask_element = "bool" if attn_mask is not None and attn_mask.dtype == torch.bool else element
    variant = f"{element}, {rows}, {columns}, {head_dim}, {simdgroups}, 1, {int(attn_mask is not None)}, "
    variant += f"{int(is_causal)}, {mask_element}"
    source = pytorch_metal_source("PrefillAttention.h")
    source += f'\ninstantiate_kernel("prefill", prefill_attention, {variant})\n'
    output = torch.empty(query.shape, dtype=query.dtype)
    params = struct.pack(
        "<6i2f12i",
        *(batch, heads, head_dim, queries, keys, heads // key.shape[1]),
        *(scale if scale is not None else 1 / math.sqrt(head_dim), 1.0),  # no soft cap
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *output.stride()[:3],
    )
    mask_strides = (0, 0, 0, 0) if attn_mask is None else attn_mask.stride()
    simulator.compile_shader(source).prefill(
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
