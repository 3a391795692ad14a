"""Ways for a tensor to lie in memory, which the operations' cases draw from."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

__all__ = ["LayoutName", "lay"]

#: Contiguous; its dimensions reversed; a slice of a wider tensor, so that rows start at odd addresses; its first
#: dimension expanded from one.
LayoutName = Literal["contiguous", "transposed", "sliced", "expanded"]


def lay(tensor: Tensor, layout: LayoutName) -> Tensor:
    """The same values in that layout, or where it is expanded those of the first dimension's first for all.

    Around a slice there is NaN, so that a result shows what was read beyond it.
    """
    if layout == "transposed":
        reverse = tuple(reversed(range(tensor.dim())))
        return tensor.permute(reverse).contiguous().permute(reverse)
    if layout == "sliced":
        wide = tensor.new_full([n + 3 for n in tensor.shape], float("nan"))
        return wide[(slice(1, -2),) * tensor.dim()].copy_(tensor)
    if layout == "expanded":
        return tensor[:1].expand_as(tensor)
    return tensor
