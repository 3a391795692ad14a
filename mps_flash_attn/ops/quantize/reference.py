"""Quantization written out in PyTorch's operations: the one reference that tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import FORMATS, Format

__all__ = ["NF4", "dequantize", "numbers", "pack", "quantize", "unpack"]

#: Of Dettmers et al., arXiv:2305.14314, appendix E.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def numbers(format: Format) -> Tensor:  # noqa: A002
    """What each code stands for, ``[2 ** bits]`` in float64."""
    codes = torch.arange(2**format.bits, dtype=torch.uint8)
    if format is FORMATS["nf4"]:
        return torch.tensor(NF4, dtype=torch.float64)
    if format is FORMATS["int4"]:
        return torch.where(codes < 8, codes.double(), codes.double() - 16)
    return codes.view(format.dtype).double()


def unpack(stored: Tensor, format: Format, columns: int) -> Tensor:  # noqa: A002
    """Codes ``[..., D]`` of stored bytes."""
    if format.in_groups:
        stored = torch.stack([stored & 15, stored >> 4], -1).flatten(-2)
    return stored[..., :columns]


def pack(codes: Tensor, format: Format) -> Tensor:  # noqa: A002
    """Stored bytes of uint8 codes ``[..., D]``; half a byte behind an odd row stands for 0."""
    if not format.in_groups:
        return codes
    zero = 7 if format is FORMATS["nf4"] else 0
    even = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2), value=zero)
    return even[..., ::2] | even[..., 1::2] << 4


def dequantize(stored: Tensor, scale: Tensor, format: Format, group_size: int, columns: int) -> Tensor:  # noqa: A002
    """``[..., D]``: each number times its scale, in the dtype of ``scale``."""
    values = numbers(format).to(scale.dtype)[unpack(stored, format, columns).long()]
    return values * _each_column(scale, format, group_size, columns)


def quantize(input: Tensor, format: Format, group_size: int) -> tuple[Tensor, Tensor]:  # noqa: A002
    """Stored bytes and scales, with operations in the dtype of ``input``."""
    columns = input.shape[-1]
    width = group_size if format.in_groups else columns
    scale = torch.stack([x.abs().amax(-1) for x in input.split(width, -1)], -1) / format.largest
    over_scale = input / _each_column(scale, format, group_size, columns)
    over_scale = over_scale.nan_to_num(nan=0)
    finite = numbers(format).nan_to_num(nan=torch.inf)
    codes = (over_scale.unsqueeze(-1) - finite.to(input.dtype)).abs().argmin(-1)
    return pack(codes.to(torch.uint8), format), scale


def _each_column(scale: Tensor, format: Format, group_size: int, columns: int) -> Tensor:  # noqa: A002
    width = group_size if format.in_groups else columns
    return scale.repeat_interleave(width, -1)[..., :columns]
