"""`layer_norm`, `rms_norm` and their forms with a residual: checks in front of the operators of normalisation."""

# ruff: noqa: A002 -- `input` is what PyTorch calls it

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..calls import shortcut
from ..checks import require_match, require_number, require_reverse_mode, require_shape, require_tensor
from ..dtypes import accumulator_dtype, wide_dtype
from .function import add_norm, norm

__all__ = ["add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm"]

_norm = shortcut(torch.ops.mps_flash_attn.norm.default, norm._init_fn)
_add_norm = shortcut(torch.ops.mps_flash_attn.add_norm.default, add_norm._init_fn)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, as :func:`torch.nn.functional.layer_norm`.

    Mean and (biased) variance are taken over the last ``len(normalized_shape)`` dimensions: Ba, Kiros and Hinton,
    arXiv:1607.06450.

    Args:
        input: ``[..., *normalized_shape]``; float32, float16, bfloat16, or float64 on the simulator. Any strides: it is
            copied only where the elements to normalise together are not neighbours in memory.
        normalized_shape: the last sizes of `input`, at least one.
        weight: of shape `normalized_shape`, with the dtype of `input`, or float32 beside a 16-bit one; 1 if None.
        bias: like `weight`; 0 if None.
        eps: added to the variance, 0 or more.

    Returns:
        A contiguous tensor with the shape and dtype of `input`, differentiable once with respect to all three tensors.

    Raises:
        TypeError: an argument has the wrong type, or a tensor a dtype that does not go with the others.
        ValueError: shapes, devices or values that contradict each other.
        UnsupportedError: second derivatives, forward-mode differentiation, ``torch.func`` gradients. It is a
            ``ValueError``.

    Numerics:
        Statistics and sums are kept in float32 (float64 for float64); gradients are deterministic.

    Autocast:
        On devices where PyTorch computes `layer_norm` in float32 under autocast (``mps``, ``cuda``), so does this; on
        the CPU, as there, dtypes stay as they are.

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import layer_norm
        >>> x, weight = torch.randn(2, 5, 16), torch.ones(16)
        >>> torch.allclose(layer_norm(x, (16,), weight), torch.nn.functional.layer_norm(x, (16,), weight), atol=1e-5)
        True
    """
    x, _, weight, bias, dims = _arguments(input, None, normalized_shape, weight, bias)
    return _norm(x, weight, bias, dims, require_number("eps", eps, least=0), True)[0]


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """``x / sqrt(mean(x ** 2) + eps) * weight``, as :func:`torch.nn.functional.rms_norm`.

    Root mean square normalisation: Zhang and Sennrich, arXiv:1910.07467.

    Args:
        input: as for `layer_norm`.
        normalized_shape: as for `layer_norm`.
        weight: as for `layer_norm`.
        eps: added to the mean of the squares, 0 or more; if None, PyTorch's default, the machine epsilon of the dtype
            that sums are kept in.

    Returns:
        A contiguous tensor with the shape and dtype of `input`, differentiable once with respect to both tensors.

    Raises:
        TypeError, ValueError, UnsupportedError: as for `layer_norm`.
    """
    x, _, weight, _, dims = _arguments(input, None, normalized_shape, weight, None)
    return _norm(x, weight, None, dims, _rms_eps(eps, x), False)[0]


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """`layer_norm` of ``input + residual`` in one kernel: what a transformer block does between two of its layers.

    The sum is rounded to the dtype of `input` before it is normalised, so that the result is the one of adding first.

    Args:
        input: as for `layer_norm`.
        residual: with the shape, dtype and device of `input`; nothing is broadcast.
        normalized_shape, weight, bias, eps: as for `layer_norm`.

    Returns:
        The normalised sum, and the sum, which the next residual connection takes. Both are differentiable once.

    Raises:
        TypeError, ValueError, UnsupportedError: as for `layer_norm`.
    """
    x, added, weight, bias, dims = _arguments(input, residual, normalized_shape, weight, bias)
    y, total, _ = _add_norm(x, added, weight, bias, dims, require_number("eps", eps, least=0), True)
    return y, total


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`rms_norm` of ``input + residual`` in one kernel; arguments, results and errors as for `add_layer_norm`.

    Returns:
        The normalised sum, and the sum.
    """
    x, added, weight, _, dims = _arguments(input, residual, normalized_shape, weight, None)
    y, total, _ = _add_norm(x, added, weight, None, dims, _rms_eps(eps, x), False)
    return y, total


def _rms_eps(eps: float | None, x: Tensor) -> float:
    return torch.finfo(accumulator_dtype(x.dtype)).eps if eps is None else require_number("eps", eps, least=0)


def _arguments(
    input: Tensor,
    residual: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, int]:
    """The tensors as the operators take them, parameters with one dimension, and how many dimensions a row has."""
    require_reverse_mode("normalisation")
    require_tensor("input", input)
    if residual is not None:
        require_tensor("residual", residual)
        require_match("residual", residual, "input", input)
        require_shape("residual", residual, tuple(input.shape), "that of input")
    shape = _row_shape(input, normalized_shape)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        require_tensor(name, parameter)
        require_match(name, parameter, "input", input, dtype=False)
        require_shape(name, parameter, shape, "normalized_shape")
        if parameter.dtype not in (input.dtype, accumulator_dtype(input.dtype)):
            raise TypeError(
                f"{name} has dtype {parameter.dtype} and input {input.dtype}; accepted are input's and, beside a "
                "16-bit one, float32"
            )
    if weight is not None and bias is not None:
        require_match("bias", bias, "weight", weight)
    tensors = [None if x is None else x.to(wide_dtype(x)) for x in (input, residual, weight, bias)]
    if len(shape) > 1:
        tensors[2:] = [None if p is None else p.reshape(-1) for p in tensors[2:]]
    x, added, weight, bias = tensors
    assert x is not None
    return x, added, weight, bias, len(shape)


def _row_shape(input: Tensor, normalized_shape: Sequence[int]) -> tuple[int, ...]:
    """The sizes to normalise over, once they are known to be the input's last."""
    if isinstance(normalized_shape, str) or not isinstance(normalized_shape, Sequence):
        raise TypeError(f"normalized_shape is a {type(normalized_shape).__name__}; accepted is a sequence of ints")
    for n in normalized_shape:
        if isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)):
            raise TypeError(f"normalized_shape holds a {type(n).__name__}; accepted are ints")
    shape = tuple(normalized_shape)
    if not shape:
        raise ValueError("normalized_shape is empty; accepted are one size or more")
    if tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"normalized_shape is {shape}; accepted are the last sizes of input, whose shape is {tuple(input.shape)}"
        )
    return shape
