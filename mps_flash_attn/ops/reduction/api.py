"""`sum` and `amax` on tensors as PyTorch users have them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import require_dim, require_reverse_mode, require_tensor
from ..dtypes import ELEMENTS, wide_dtype
from . import function as _function  # noqa: F401  (registers the operators)

__all__ = ["amax", "sum"]

_sum = torch.ops.mps_flash_attn.reduction_sum.default
_amax = torch.ops.mps_flash_attn.reduction_amax.default


def sum(  # noqa: A001
    input: Tensor,  # noqa: A002
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The sum of a tensor, or of its rows over some dimensions, as :func:`torch.sum`; differentiable.

    The order in which a row is added up depends on shape and strides alone, so the result is the same every time.

    Args:
        input: any shape and strides, no copy is made; float32, float16, bfloat16, or float64 on the simulator.
        dim: one dimension, several, or None or an empty sequence for all.
        keepdim: whether these dimensions stay, with size 1.
        dtype: of the result; that of `input` if None.

    Returns:
        The sums, contiguous. They are kept in float32 (float64 for float64) and rounded once.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, a dimension that is not there or named twice.
        UnsupportedError: forward-mode differentiation, ``torch.func`` gradients, rows of 2^31 elements, more than 8
            dimensions whose strides do not combine. It is a ``ValueError``.

    Autocast:
        Inside :class:`torch.autocast` the result is float32 on GPUs, as PyTorch's is; on the CPU it keeps its dtype.

    Example:
        >>> import torch
        >>> from mps_flash_attn import functional
        >>> functional.sum(torch.ones(2, 3, 4), dim=(0, 2))
        tensor([8., 8., 8.])
    """
    require_tensor("input", input)
    if dtype is None:
        dtype = wide_dtype(input)
    elif dtype not in ELEMENTS:
        raise TypeError(f"dtype is {dtype}; accepted are None, {', '.join(map(str, ELEMENTS))}")
    dims = _dims(dim, input.dim())
    require_reverse_mode("sum")
    return _sum(input, dims, bool(keepdim), dtype)


def amax(input: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:  # noqa: A002
    """The largest value of a tensor, or of its rows over some dimensions, as :func:`torch.amax`; differentiable, once.

    NaN where a row has one. Equal largest elements share the gradient evenly, as in PyTorch.

    Args:
        input: as in `sum`; the dimensions that are reduced must have elements.
        dim: one dimension, several, or an empty sequence for all.
        keepdim: whether these dimensions stay, with size 1.

    Raises:
        TypeError, ValueError, UnsupportedError: as in `sum`, and for a row without elements.

    Example:
        >>> import torch
        >>> from mps_flash_attn import functional
        >>> functional.amax(torch.tensor([[1.0, 5.0], [7.0, 3.0]]), dim=1)
        tensor([5., 7.])
    """
    require_tensor("input", input)
    dims = _dims(dim, input.dim())
    for each in dims:
        if input.dim() > 0 and input.shape[each] == 0:
            raise ValueError(
                f"input has shape {tuple(input.shape)} and dim is {dim}; accepted are dimensions with elements"
            )
    require_reverse_mode("amax")
    return _amax(input, dims, bool(keepdim))


def _dims(dim: int | Sequence[int] | None, rank: int) -> list[int]:
    """The dimensions from the front, in order."""
    if dim is None or (isinstance(dim, Sequence) and not isinstance(dim, str) and len(dim) == 0):
        return list(range(max(rank, 1)))
    if not isinstance(dim, Sequence) or isinstance(dim, str):
        return [require_dim("dim", dim, rank)]
    dims = sorted(require_dim("dim", each, rank) for each in dim)
    if len(set(dims)) < len(dims):
        raise ValueError(f"dim is {tuple(dim)}, with a dimension twice; accepted is each once")
    return dims
