"""`embedding`: rows of a weight by their numbers, in front of the embedding operators."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import require_match, require_number, require_reverse_mode, require_tensor
from .function import NO_PADDING
from .plan import INDICES

__all__ = ["embedding"]

_forward = torch.ops.mps_flash_attn.embedding_forward.default
_renormalise = torch.ops.mps_flash_attn.embedding_renormalise.default


def embedding(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """The rows of `weight` that `input` numbers: ``output[..., :] = weight[input[...]]``.

    Arguments and meaning follow :func:`torch.nn.functional.embedding`; gradients flow to `weight`. They are summed by
    owners of rows over tokens in their order, after a stable counting sort of the indices: no atomics, so the same bits
    on every run.

    Args:
        input: indices, int32 or int64, of any shape ``[*]`` and strides, each in ``0 .. V - 1``.
        weight: ``[V, D]``, any strides: only one whose last dimension is strided is copied. float32, float16, bfloat16,
            or float64 on the simulator.
        padding_idx: the row that gets no gradient, in ``-V .. V - 1``, negative counted from the end; None for none.
        max_norm: the rows that `input` numbers are first divided, in place and unseen by autograd, so that none has a
            larger norm: each once, however often it occurs. `weight` must not be expanded. None leaves them.
        norm_type: the order of that norm, above 0; ``inf`` for the largest magnitude.
        scale_grad_by_freq: each row's gradient is divided by how often `input` has its number.
        sparse: the gradient is a sparse COO tensor that holds the gradient of each token, as PyTorch's does and its
            optimisers for sparse gradients take it. Not with `scale_grad_by_freq`.

    Returns:
        ``[*, D]`` in the dtype of `weight`.

    Raises:
        TypeError: an argument has the wrong type, or a tensor a dtype that is not accepted.
        ValueError: shapes, devices or options that contradict each other.
        IndexError: an index outside ``0 .. V - 1``. To find it before anything is launched, each call waits for a GPU
            to compute the indices.
        UnsupportedError: forward-mode differentiation, ``torch.func`` gradients. It is a ``ValueError``.

    Numerics:
        The output is exact. Gradients are added in float32 (float64 for float64) and rounded once.

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import embedding
        >>> weight = torch.eye(4, requires_grad=True)
        >>> out = embedding(torch.tensor([[1, 3], [1, 0]]), weight, padding_idx=0)
        >>> out.shape
        torch.Size([2, 2, 4])
        >>> out.sum().backward()
        >>> weight.grad[:, 0]
        tensor([0., 2., 0., 1.])
    """
    require_tensor("input", input, INDICES, "int32 and int64")
    require_tensor("weight", weight)
    require_match("input", input, "weight", weight, dtype=False)
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; accepted are two dimensions [V, D]")
    for name, flag in (("scale_grad_by_freq", scale_grad_by_freq), ("sparse", sparse)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is a {type(flag).__name__}; accepted is a bool")
    if sparse and scale_grad_by_freq:
        raise ValueError("sparse and scale_grad_by_freq are True; accepted is one of them, as in PyTorch")
    require_reverse_mode("embedding")
    padding_row = _padding_row(padding_idx, weight.shape[0])
    if max_norm is not None:
        order = norm_type if norm_type == math.inf else require_number("norm_type", norm_type)
        if order <= 0:
            raise ValueError(f"norm_type is {norm_type}; accepted are numbers above 0 and inf")
        _renormalise(weight.detach(), input, require_number("max_norm", max_norm, least=0), order)
    return _forward(input, weight, padding_row, scale_grad_by_freq, sparse)


def _padding_row(padding_idx: int | None, rows: int) -> int:
    if padding_idx is None:
        return NO_PADDING
    if isinstance(padding_idx, bool) or not isinstance(padding_idx, int):
        raise TypeError(f"padding_idx is a {type(padding_idx).__name__}; accepted is an int or None")
    if not -rows <= padding_idx < rows:
        raise ValueError(f"padding_idx is {padding_idx}; accepted are {-rows} to {rows - 1}, rows of weight")
    return padding_idx % rows
