"""Reduction problems that tests share: shapes, dimensions and layouts, and the tensors they stand for."""

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
from .plan import Operation

__all__ = ["Case", "ValuesName", "launches"]

#: Standard normal values; those and an offset of 1e4; small whole numbers, of which many are equal; a third -inf.
ValuesName = Literal["normal", "offset", "whole", "infinite"]


@dataclass(frozen=True)
class Case:
    """One problem over ``dims``, which count from 0."""

    shape: tuple[int, ...]
    dims: tuple[int, ...]
    layout: LayoutName = "contiguous"
    values: ValuesName = "normal"

    def input(self, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        """From PyTorch's generator."""
        x = torch.randn(self.shape, device=device)
        if self.values == "offset":
            x += 1e4
        elif self.values == "whole":
            x = x.round()
        elif self.values == "infinite":
            x = x.masked_fill(torch.rand(self.shape, device=device) < 1 / 3, -torch.inf)
        return lay(x.to(dtype), self.layout)


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernels' preprocessor, in each dtype that Metal has."""
    capabilities = capabilities or Capabilities()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape, dims in (((5, 24), (1,)), ((5, 23), (1,)), ((2, 3, 100_000), (0, 2)), ((500, 3, 50), (0,))):
            x = Operand(dtype, torch.empty(shape, device="meta").stride())
            kept = [1 if dim in dims else size for dim, size in enumerate(shape)]
            row = Operand(dtype, torch.empty(kept, device="meta").stride())
            for operation in Operation:
                y = row if operation == Operation.TIES else None
                problem = plan.Problem(shape, dims, x, row, operation, y)
                yield from plan.reduction(problem, capabilities).launches
            yield plan.amax_backward(shape, dims, (x, x), (row, row, row), capabilities)
