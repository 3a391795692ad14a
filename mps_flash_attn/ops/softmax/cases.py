"""Softmax problems that tests share: shapes, layouts and kinds of values, and the tensors they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from ..layouts import LayoutName, lay
from ..rows import Operand
from . import plan

__all__ = ["Case", "ValuesName", "launches"]

#: Standard normal values; those and an offset of 1e4; one large value a row; a third of the values -inf.
ValuesName = Literal["normal", "offset", "one-hot", "infinite"]


@dataclass(frozen=True)
class Case:
    """One problem along ``dim`` from 0."""

    shape: tuple[int, ...]
    dim: int
    log: bool = False
    layout: LayoutName = "contiguous"
    values: ValuesName = "normal"

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """An input and a gradient of the output, from PyTorch's generator."""
        x = lay(self._values(device).to(dtype), self.layout)
        return x, lay(torch.randn(self.shape, device=device).to(dtype), self.layout)

    def _values(self, device: str) -> Tensor:
        x = torch.randn(self.shape, device=device)
        if self.values == "offset":
            x += 1e4
        elif self.values == "one-hot":
            x[(slice(None),) * self.dim + (0,)] += 100
        elif self.values == "infinite":
            hidden = torch.rand(self.shape, device=device) < 1 / 3
            hidden[(slice(None),) * self.dim + (0,)] = False
            x = x.masked_fill(hidden, -torch.inf)
        return x


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernels' preprocessor, in each dtype that Metal has."""
    capabilities = capabilities or Capabilities()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape, dim, log, result in (
            ((5, 24), 1, False, dtype),
            ((5, 23), 1, True, dtype),
            ((5, 4096), 1, True, torch.float32),
            ((2, 100_000), 1, False, dtype),
            ((3, 50, 2000), 1, True, dtype),
        ):
            strides = torch.empty(shape, device="meta").stride()
            x, y = Operand(dtype, strides), Operand(result, strides)
            yield plan.forward(plan.Problem(shape, dim, (x, y), log), capabilities)
            yield plan.backward(plan.Problem(shape, dim, (x, y, y), log), capabilities)
