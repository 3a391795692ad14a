"""Rows to quantize that tests and checks share: shapes, layouts and formats, and the tensors they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from ..layouts import LayoutName, lay
from . import plan, reference
from .formats import FORMATS, Format
from .function import describe_dequantize, describe_quantize

__all__ = ["CHECKED", "Case", "launches"]


@dataclass(frozen=True)
class Case:
    """Rows ``[*shape, columns]`` and the format that they are stored in."""

    shape: tuple[int, ...]
    columns: int
    format: str
    group_size: int = 32
    layout: LayoutName = "contiguous"

    @property
    def of(self) -> Format:
        return FORMATS[self.format]

    def input(self, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        """Random numbers from PyTorch's generator: standard normal values, each row times another power of ten."""
        values = torch.randn(*self.shape, self.columns, device=device)
        values *= 10.0 ** torch.randint(-4, 4, (*self.shape, 1), device=device)
        return lay(values.to(dtype), self.layout)

    def stored(self) -> tuple[Tensor, Tensor]:
        """Bytes, and scales that are powers of two, as they come out of quantization of numbers that float16 has."""
        width = self.group_size if self.of.in_groups else self.columns
        numbers = reference.numbers(self.of).abs()
        usual = (numbers <= self.of.largest).logical_and(~reference.numbers(self.of).signbit() | (numbers != 0))
        codes = usual.nonzero().flatten()[torch.randint(int(usual.sum()), (*self.shape, self.columns))]
        codes[..., ::width] = int(numbers.nan_to_num(nan=0, posinf=0).where(usual, 0).argmax())
        powers = 1 if self.format == "fp8_e5m2" else 4  # whose own range is that of float16
        scale = 2.0 ** -torch.randint(powers, (*self.shape, self.of.groups(self.columns, self.group_size)))
        return reference.pack(codes.to(torch.uint8), self.of), scale


#: A format of each kind in each dtype, with rows of whole packs and of odd length, and all formats in one.
CHECKED = (
    *((torch.float16, Case((3, 2), 48, name)) for name in FORMATS),
    *((dtype, Case((5,), 17, name, 16)) for dtype in (torch.float32, torch.bfloat16) for name in ("int8", "nf4")),
)


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernels' preprocessor, in each dtype that Metal has."""
    capabilities = capabilities or Capabilities()
    for dtype, case in CHECKED:
        stored, scale = case.stored()
        input = torch.empty(*case.shape, case.columns, dtype=dtype)  # noqa: A001
        yield plan.quantize(describe_quantize(input, case.format, case.group_size), capabilities)
        described = describe_dequantize(stored, scale, input, case.format, case.group_size)
        yield plan.dequantize(described, capabilities)
