"""Embedding problems that tests and checks share: sizes, layouts and repetitions, and the tensors they stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from . import plan

__all__ = ["Case", "Inputs", "LayoutName", "Repetition", "launches"]

#: How each tensor lies in memory: contiguous; with its dimensions in reverse order; a slice of a wider tensor, so that
#: rows start at odd addresses; its first dimension expanded from one element.
LayoutName = Literal["contiguous", "transposed", "sliced", "expanded"]

#: Which indices occur: any; none twice as long as the rows last; one alone; mostly a few, as words do.
Repetition = Literal["random", "distinct", "same", "skewed"]


@dataclass(frozen=True)
class Inputs:
    """Arguments of ``embedding_forward`` and a gradient of its output."""

    input: Tensor
    weight: Tensor
    grad_output: Tensor


@dataclass(frozen=True)
class Case:
    """One problem: indices of this shape into ``weight [rows, columns]``."""

    shape: tuple[int, ...]
    rows: int
    columns: int
    repetition: Repetition = "random"
    layout: LayoutName = "contiguous"
    index_dtype: torch.dtype = torch.int64

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> Inputs:
        """Random tensors from PyTorch's generator: standard normal values."""
        count = math.prod(self.shape)
        if self.repetition == "distinct":
            indices = torch.cat([torch.randperm(self.rows) for _ in range(count // self.rows + 1)])[:count]
        elif self.repetition == "same":
            indices = torch.randint(self.rows, (1,)).expand(count)
        elif self.repetition == "skewed":
            indices = (self.rows * torch.rand(count) ** 8).long()
        else:
            indices = torch.randint(self.rows, (count,))
        weight, gradient = torch.randn(self.rows, self.columns), torch.randn(*self.shape, self.columns)
        return Inputs(
            input=self._lay(indices.reshape(self.shape).to(self.index_dtype).to(device)),
            weight=self._lay(weight.to(dtype).to(device)),
            grad_output=self._lay(gradient.to(dtype).to(device)),
        )

    def _lay(self, tensor: Tensor) -> Tensor:
        if self.layout == "transposed":
            order = tuple(reversed(range(tensor.dim())))
            return tensor.permute(order).contiguous().permute(order)
        if self.layout == "sliced":
            wide = tensor.new_zeros([n + 3 for n in tensor.shape])
            inner = wide[tuple(slice(1, n + 1) for n in tensor.shape)]
            return inner.copy_(tensor)
        if self.layout == "expanded" and tensor.dim() and tensor.numel():
            return tensor[:1].expand(tensor.shape)
        return tensor


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernels' preprocessor, in each dtype that Metal has."""
    capabilities = capabilities or Capabilities()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for index_dtype, sizes, step in ((torch.int64, (100,), 16), (torch.int32, (3, 4), 2)):
            tokens = plan.Tokens(sizes, (1,) * len(sizes), step)
            problem = plan.Problem(
                dtype=dtype,
                index_dtype=index_dtype,
                indices=tokens,
                rows=1000,
                columns=64,
                row_stride=64,
                step=step,
                gradient=tokens,
            )
            yield plan.forward(problem, capabilities)
            yield from plan.backward(replace(problem, by_count=index_dtype == torch.int32), capabilities)
            for norm_type in (1.0, 2.0, math.inf):
                yield plan.renormalise(replace(problem, norm_type=norm_type), capabilities)[1]
