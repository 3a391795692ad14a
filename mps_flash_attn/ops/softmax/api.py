"""`softmax` and `log_softmax` on tensors as PyTorch users have them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calls import shortcut
from ..checks import require_dim, require_reverse_mode, require_tensor
from ..dtypes import ELEMENTS, wide_dtype
from .function import softmax_forward

__all__ = ["log_softmax", "softmax"]

_forward = shortcut(torch.ops.mps_flash_attn.softmax_forward.default, softmax_forward._init_fn)


def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:  # noqa: A002
    """``exp(x) / sum(exp(x))`` along a dimension, as :func:`torch.softmax`; differentiable, once.

    The largest value of each row and the sum of its exponentials are found in one reading, by the online softmax of
    Milakov and Gimelshein (2018, arXiv:1805.02867). Rows of up to some thousand elements are read once in all, longer
    ones twice.

    Args:
        input: any shape and strides, no copy is made; float32, float16, bfloat16, or float64 on the simulator.
        dim: the dimension along which the result sums to 1.
        dtype: of the result; that of `input` if None. A wider one costs no copy of `input`.

    Returns:
        A tensor like `input`. Sums are kept in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument of the wrong kind, a dimension that is not there.
        UnsupportedError: forward-mode differentiation, ``torch.func`` gradients, a dimension of 2^31 elements, more
            than 8 dimensions whose strides do not combine. It is a ``ValueError``.

    Numerics:
        As in PyTorch, a row that is -inf throughout, or that has +inf or NaN in it, gives NaN.

    Autocast:
        Inside :class:`torch.autocast` the result is float32 on GPUs, as PyTorch's is; on the CPU it keeps its dtype.

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import softmax
        >>> softmax(torch.zeros(2, 4), dim=1)
        tensor([[0.2500, 0.2500, 0.2500, 0.2500],
                [0.2500, 0.2500, 0.2500, 0.2500]])
    """
    return _softmax(input, dim, dtype, log=False)


def log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:  # noqa: A002
    """``x - log(sum(exp(x)))`` along a dimension, as :func:`torch.log_softmax`; differentiable, once.

    Arguments, numerics and errors are those of `softmax`.

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import log_softmax
        >>> log_softmax(torch.zeros(1, 4), dim=1)
        tensor([[-1.3863, -1.3863, -1.3863, -1.3863]])
    """
    return _softmax(input, dim, dtype, log=True)


def _softmax(tensor: Tensor, dim: int, dtype: torch.dtype | None, *, log: bool) -> Tensor:
    require_tensor("input", tensor)
    dim = require_dim("dim", dim, tensor.dim())
    if dtype is None:
        dtype = wide_dtype(tensor)
    elif dtype not in ELEMENTS:
        raise TypeError(f"dtype is {dtype}; accepted are None, {', '.join(map(str, ELEMENTS))}")
    require_reverse_mode("log_softmax" if log else "softmax")
    return _forward(tensor, dim, log, dtype)
