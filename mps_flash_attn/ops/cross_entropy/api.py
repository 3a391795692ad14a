"""`cross_entropy` on tensors as PyTorch users have them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ..checks import require_match, require_number, require_reverse_mode, require_shape, require_tensor
from ..dtypes import ELEMENTS, wide_dtype
from ..reduction.api import sum as reduce_sum
from . import function as _function  # noqa: F401  (registers the operators)
from .function import class_dim, number_dtype

__all__ = ["cross_entropy"]

_REDUCTIONS = ("none", "mean", "sum")

_forward = torch.ops.mps_flash_attn.cross_entropy_forward.default


def cross_entropy(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["none", "mean", "sum"] = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of logits with classes, as :func:`torch.nn.functional.cross_entropy`; differentiable, once.

    Log-softmax, the choice of the class and label smoothing are one kernel that reads each row once, with the online
    softmax of Milakov and Gimelshein (2018, arXiv:1805.02867); the log-softmax is never in memory. The backward kernel
    recomputes the softmax from two numbers a row.

    Args:
        input: logits ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]`` of ``C`` classes, any strides, no copy is made;
            float32, float16, bfloat16, or float64 on the simulator.
        target: classes ``[]``, ``[N]`` or ``[N, d1, ...]``, int64 or uint8; or probabilities of the classes, a
            floating-point tensor of the shape of `input`, which are differentiable too and need not add up to 1.
        weight: of each class, ``[C]``; 1 if None.
        ignore_index: rows of this class have loss 0 and gradient 0, and do not count in the mean. With probabilities it
            has to be negative, and means nothing.
        reduction: ``"none"`` gives the loss of each row, ``"sum"`` their sum, ``"mean"`` their sum divided by that of
            the rows' weights, or with probabilities by the number of rows.
        label_smoothing: share of the target that is spread evenly over all classes, from 0 to 1 (Szegedy et al. 2016,
            arXiv:1512.00567).

    Returns:
        A number, or with ``"none"`` one for each row, in the dtype of `input`, promoted with that of probabilities.
        Sums are kept in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: arguments of the wrong kind or shape; a class that does not exist. To find that, the
            device is waited for once a call, before the kernel; compiled calls do so too. The kernel itself reads
            nothing for such a class.
        UnsupportedError: a `weight` that requires grad, forward-mode differentiation, ``torch.func`` gradients, more
            than 8 dimensions whose strides do not combine. It is a ``ValueError``.

    Autocast:
        Inside :class:`torch.autocast` the result is float32, as PyTorch's is.

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import cross_entropy
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, 3]))
        tensor(1.3863)
    """
    _check(input, target, weight)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index is a {type(ignore_index).__name__}; accepted is an int")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; accepted are {', '.join(map(repr, _REDUCTIONS))}")
    smoothing = require_number("label_smoothing", label_smoothing, least=0)
    if smoothing > 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; accepted are numbers from 0 to 1")
    require_reverse_mode("cross_entropy")

    dtype = wide_dtype(input, on_cpu=True)
    if target.is_floating_point():
        if ignore_index >= 0:
            raise ValueError(f"ignore_index is {ignore_index}; accepted with probabilities is none from 0 on")
        dtype = torch.promote_types(dtype, target.dtype)
    else:
        target = target.long()
    weight = None if weight is None else weight.to(number_dtype(input, target)).contiguous()
    loss, row_weight, _ = _forward(input, target, weight, ignore_index, smoothing)
    if reduction != "none":
        total = reduce_sum(loss)
        loss = total / reduce_sum(row_weight) if reduction == "mean" else total
    return loss.to(dtype)


def _check(tensor: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """Kinds, shapes and devices of the tensors."""
    require_tensor("input", tensor)
    accepted = (torch.int64, torch.uint8, *ELEMENTS)
    require_tensor("target", target, accepted, "int64 and uint8 of classes, floating-point dtypes of probabilities")
    require_match("target", target, "input", tensor, dtype=False)
    if tensor.dim() == 0:
        raise ValueError("input has no dimensions; accepted are [C], [N, C] and [N, C, d1, ...]")
    dim = class_dim(tensor)
    classes = tensor.shape[dim]
    if classes == 0:
        raise ValueError(f"input has shape {tuple(tensor.shape)}, with no classes; accepted is one or more")
    if target.is_floating_point():
        require_shape("target", target, tuple(tensor.shape), "input's shape, of probabilities")
    else:
        rows = (*tensor.shape[:dim], *tensor.shape[dim + 1 :])
        require_shape("target", target, rows, "input's shape without classes")
    if weight is not None:
        require_tensor("weight", weight)
        require_match("weight", weight, "input", tensor, dtype=False)
        require_shape("weight", weight, (classes,), "one number a class")
        if weight.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError(
                "weight requires grad and its gradient is not implemented; accepted are a detached weight or no_grad()"
            )
