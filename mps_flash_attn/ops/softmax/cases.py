"""Softmax problems that tests share: shapes, layouts and kinds of values, and the tensors they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from ..rows import Operand
from . import plan

__all__ = ["Case", "LayoutName", "ValuesName", "launches"]

#: How a tensor lies in memory: contiguous; its dimensions reversed; a slice of a wider tensor, so that rows start at
#: odd addresses; its first dimension expanded from one.
LayoutName = Literal["contiguous", "transposed", "sliced", "expanded"]

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
        x = self._lay(self._values(device).to(dtype))
        return x, self._lay(torch.randn(self.shape, device=device).to(dtype))

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

    def _lay(self, x: Tensor) -> Tensor:
        if self.layout == "transposed":
            reverse = tuple(reversed(range(x.dim())))
            return x.permute(reverse).contiguous().permute(reverse)
        if self.layout == "sliced":
            wide = x.new_full([n + 3 for n in x.shape], torch.nan)
            view = wide[(slice(1, -2),) * x.dim()]
            return view.copy_(x)
        if self.layout == "expanded":
            return x[:1].expand_as(x)
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
