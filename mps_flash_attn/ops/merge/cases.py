"""Partial attentions that tests and checks share: shapes, layouts and log-sum-exps, and the tensors they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from ..dtypes import accumulator_dtype
from ..layouts import LayoutName, lay
from . import plan
from .function import describe

__all__ = ["Case", "Inputs", "launches"]


@dataclass(frozen=True)
class Inputs:
    """The arguments of ``merge_forward``, and a gradient for each of its outputs."""

    first: Tensor
    first_lse: Tensor
    others: Tensor
    others_lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor

    @property
    def outs(self) -> Tensor:
        """All parts, ``[S, ..., D]``."""
        return torch.cat([self.first[None], self.others])

    @property
    def lses(self) -> Tensor:
        return torch.cat([self.first_lse[None], self.others_lse])


@dataclass(frozen=True)
class Case:
    """Some parts of a result of this shape ``[..., D]``.

    Attributes:
        parts: S.
        spread: standard deviation of the log-sum-exps.
        unseen: share of the rows of each part that saw no key: they hold NaN, which nobody may look at.
    """

    shape: tuple[int, ...]
    parts: int = 2
    layout: LayoutName = "contiguous"
    spread: float = 1.0
    unseen: float = 0.0

    def inputs(self, dtype: torch.dtype, result: torch.dtype | None = None, device: str = "cpu") -> Inputs:
        """Random tensors from PyTorch's generator."""
        shape, of_lse = (self.parts, *self.shape), accumulator_dtype(dtype)
        lses = self.spread * torch.randn(shape[:-1], device=device).to(of_lse)
        lses[torch.rand(lses.shape, device=device) < self.unseen] = -torch.inf
        outs = torch.randn(shape, device=device).to(dtype).masked_fill((lses == -torch.inf).unsqueeze(-1), torch.nan)
        grad_out = torch.randn(self.shape, device=device).to(dtype if result is None else result)
        grad_lse = torch.randn(self.shape[:-1], device=device).to(of_lse)
        tensors = outs[0], lses[0], outs[1:], lses[1:], grad_out, grad_lse
        return Inputs(*(lay(x, self.layout) if x.dim() else x for x in tensors))


def launches(capabilities: Capabilities | None = None) -> Iterator[Launch]:
    """Launches that between them take every branch of the kernels' preprocessor, in each dtype that Metal has."""
    capabilities = capabilities or Capabilities()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for case, parts_dtype in ((Case((6, 64)), torch.float32), (Case((6, 17), layout="sliced"), dtype)):
            inputs = case.inputs(parts_dtype, dtype, "meta")
            tensors = inputs.first, inputs.first_lse, inputs.others, inputs.others_lse
            yield plan.forward(describe(*tensors, inputs.grad_out, inputs.grad_lse), capabilities)
            for lse_gradient in (False, True):
                described = describe(*tensors, inputs.grad_out, inputs.grad_lse, *tensors, lse_gradient=lse_gradient)
                yield plan.backward(described, capabilities)
