"""What the operators' rules for ``torch.vmap`` share: the mapped dimension becomes one more of their operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError

__all__ = ["InDims", "each", "last", "lead"]

#: Of each argument the mapped dimension; ``None`` where it is the same in every call, or no tensor.
InDims = Sequence[Any]


def lead(x: Tensor, dim: int | None, size: int, rank: int | None = None) -> Tensor:
    """A view with the mapped dimension first; a tensor that has none is expanded.

    Args:
        size: of the mapped dimension.
        rank: of the operand in each call; dimensions of size 1 are put in front of fewer.
    """
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    missing = 0 if rank is None else rank + 1 - x.dim()
    inserted = (slice(None), *(None,) * missing)
    return x[inserted]


def last(x: Tensor, dim: int | None, size: int) -> Tensor:
    """A view with the mapped dimension last; a tensor that has none is expanded."""
    return x.unsqueeze(-1).expand(*x.shape, size) if dim is None else x.movedim(dim, -1)


def each(operator: Callable[..., Any], size: int, args: Sequence[Any], in_dims: InDims) -> tuple[Any, Any]:
    """One call for each index of the mapped dimension, where the operator has no place for it: what a rule returns."""
    if size == 0:
        raise UnsupportedError("the dimension that vmap maps over has size 0; accepted here are sizes from 1")
    results = [
        operator(
            *(
                arg.select(dim, i) if isinstance(arg, Tensor) and dim is not None else arg
                for arg, dim in zip(args, in_dims, strict=True)
            )
        )
        for i in range(size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
