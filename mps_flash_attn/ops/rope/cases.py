"""Rotations that tests and checks share: sizes, layouts and sources of angles, and the tensors they stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from . import plan, reference
from .plan import Angles

__all__ = ["AnglesName", "Case", "LayoutName", "launches"]

#: How the input lies in memory: contiguous; ``[B, L, H, D]`` seen as ``[B, H, L, D]``; a slice of a wider tensor, so
#: that rows start at odd addresses; one batch expanded to all; its last dimension strided.
LayoutName = Literal["contiguous", "transposed", "sliced", "expanded", "columns"]

#: Where angles come from: the first position; positions of all rows, or of each batch; tables, or tables of each batch.
AnglesName = Literal["offset", "positions", "batch-positions", "tables", "batch-tables"]


@dataclass(frozen=True)
class Case:
    """One problem: ``input [*shape, D]``, whose last size but one is the length."""

    shape: tuple[int, ...]
    columns: int
    rotary_dim: int
    interleaved: bool = False
    angles: AnglesName = "offset"
    layout: LayoutName = "contiguous"
    first: int = 0
    position_dtype: torch.dtype = torch.int64
    base: float = 10000.0

    def input(self, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        """Random numbers from PyTorch's generator: standard normal values."""
        shape = (*self.shape, self.columns)
        if self.layout == "transposed" and len(shape) > 2:
            swapped = (*shape[:-3], shape[-2], shape[-3], shape[-1])
            return torch.randn(swapped, device=device).to(dtype).transpose(-2, -3)
        if self.layout == "sliced":
            wide = torch.randn([n + 3 for n in shape], device=device).to(dtype)
            return wide[tuple(slice(1, n + 1) for n in shape)]
        if self.layout == "expanded" and len(shape) > 2 and shape[0]:
            return torch.randn(shape[1:], device=device).to(dtype).expand(shape)
        if self.layout == "columns":
            return torch.randn(*shape[:-2], shape[-1], shape[-2], device=device).to(dtype).transpose(-1, -2)
        return torch.randn(shape, device=device).to(dtype)

    def positions(self) -> Tensor:
        """``[L]``, or ``[B, L]`` where batches differ."""
        length = self.shape[-1]
        implied = torch.arange(self.first, self.first + length)
        if self.angles == "offset":
            return implied
        batches = self.shape[:1] if self.angles.startswith("batch") and len(self.shape) > 1 else ()
        return torch.randint(-5, 5, (*batches, length)).add(implied).to(self.position_dtype)

    def arguments(self, positions: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        """The keyword arguments of `mps_flash_attn.functional.rope` that say this."""
        others = {"base": self.base, "rotary_dim": self.rotary_dim, "interleaved": self.interleaved}
        if self.angles == "offset":
            return {**others, "offset": self.first}
        if self.angles.endswith("positions"):
            return {**others, "positions": positions}
        radians = reference.angles(positions, self.rotary_dim, self.base)
        table = torch.promote_types(dtype, torch.float32)
        return {**others, "cos": radians.cos().to(table), "sin": radians.sin().to(table)}

    def expected(self, input: Tensor, positions: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:  # noqa: A002
        """The result in float64, and that of PyTorch's operations in input's dtype with tables rounded to it."""
        radians = reference.angles(positions, self.rotary_dim, self.base)
        if positions.dim() == 2:  # [B, L, R / 2] to [B, 1, ..., L, R / 2]
            radians = radians.view(len(positions), *(1,) * (input.dim() - 3), *radians.shape[1:])
        cos, sin = radians.cos(), -radians.sin() if inverse else radians.sin()
        exact = reference.rope(input.double(), cos, sin, self.interleaved)
        return exact, reference.rope(input, cos.to(input.dtype), sin.to(input.dtype), self.interleaved)


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernel's preprocessor, in each dtype that Metal has."""
    capabilities = capabilities or Capabilities()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for angles, interleaved, outer, step in (
            (Angles.IMPLIED, False, (2,), 16),
            (Angles.POSITIONS, True, (2, 3), 16),
            (Angles.TABLES, True, (2,), 2),
        ):
            strides = (1000 * math.prod(outer),) * len(outer) + (1000, 100)
            yield plan.forward(
                plan.Problem(
                    dtype=dtype,
                    outer=outer,
                    inner=4,
                    length=10,
                    columns=96,
                    rotary_dim=64,
                    input_strides=strides,
                    output_strides=strides,
                    batches=2,
                    angles=angles,
                    position_dtype=torch.int64,
                    angle_strides=(10, 1),
                    step=step,
                    offset=0,
                    interleaved=interleaved,
                    inverse=False,
                ),
                capabilities,
            )
