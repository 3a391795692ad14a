"""Sums, products, activations and gated activations: checks in front of the elementwise operators."""

# ruff: noqa: A002 -- `input` is what PyTorch calls it

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..checks import require_match, require_number, require_reverse_mode, require_shape, require_tensor
from .function import elementwise, gate_halves

__all__ = ["add", "geglu", "gelu", "mul", "relu", "relu_squared", "relu_squared_glu", "silu", "swiglu"]

_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}


def add(input: Tensor, other: Tensor | float) -> Tensor:
    """``input + other``, broadcast as :func:`torch.add`.

    Args:
        input: float32, float16, bfloat16, or float64 on the simulator; any shape and strides, read where it lies.
        other: a tensor that broadcasts against `input`, in any of those dtypes, or a finite number.

    Returns:
        A tensor of the broadcast shape in the dtype of :func:`torch.result_type`, differentiable once. Each operand is
        read in its own dtype and gets its gradient in it; that of one that was broadcast is summed.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes that do not broadcast, two devices, a number that is not finite.
        UnsupportedError: second derivatives of what is not linear, forward-mode differentiation, ``torch.func``
            gradients. It is a ``ValueError``.

    Autocast:
        None of the elementwise functions changes a dtype under autocast: as in PyTorch. A residual in float32 and what
        autocast made of it in float16 give float32.

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import add
        >>> add(torch.ones(2, 3), torch.arange(3.0))
        tensor([[1., 2., 3.],
                [1., 2., 3.]])
    """
    return _binary(input, other, "add")


def mul(input: Tensor, other: Tensor | float) -> Tensor:
    """``input * other``, broadcast as :func:`torch.mul`; arguments, result and errors as for `add`."""
    return _binary(input, other, "mul")


def relu(input: Tensor) -> Tensor:
    """``max(input, 0)``, as :func:`torch.nn.functional.relu`; NaN stays. Argument, result and errors as for `add`."""
    return _activation(input, "relu")


def relu_squared(input: Tensor) -> Tensor:
    """``max(input, 0) ** 2`` (So et al., Primer, arXiv:2109.08668); argument, result and errors as for `add`."""
    return _activation(input, "relu_squared")


def gelu(input: Tensor, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """``input`` times the normal distribution's function of it, as :func:`torch.nn.functional.gelu`.

    Hendrycks and Gimpel, arXiv:1606.08415.

    Args:
        input: as for `add`.
        approximate: ``"none"``, by the error function; ``"tanh"``, by the paper's approximation, which differs by up to
            0.0005.

    Returns:
        A tensor like `input`, differentiable once.

    Raises:
        TypeError, ValueError, UnsupportedError: as for `add`.
    """
    return _activation(input, _require_gelu(approximate))


def silu(input: Tensor) -> Tensor:
    """``input / (1 + exp(-input))``, as :func:`torch.nn.functional.silu`; argument, result and errors as for `add`."""
    return _activation(input, "silu")


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """``silu(gate) * up`` in one kernel (Shazeer, arXiv:2002.05202).

    Args:
        gate: ``[..., n]``, dtypes as for `add`; without `up`, ``[..., 2 n]``: the gate and then what it is applied to.
        up: with the shape and device of `gate`, in any of those dtypes.

    Returns:
        ``[..., n]`` in the dtype that PyTorch promotes them to, differentiable once.

    Raises:
        TypeError, ValueError, UnsupportedError: as for `add`; also an odd last size without `up`.
    """
    return _gate(gate, up, "silu")


def geglu(gate: Tensor, up: Tensor | None = None, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """``gelu(gate, approximate) * up`` in one kernel; arguments, result and errors as for `swiglu` and `gelu`."""
    return _gate(gate, up, _require_gelu(approximate))


def relu_squared_glu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """``max(gate, 0) ** 2 * up`` in one kernel; arguments, result and errors as for `swiglu`."""
    return _gate(gate, up, "relu_squared")


def _require_gelu(approximate: object) -> str:
    activation = _GELUS.get(approximate) if isinstance(approximate, str) else None
    if activation is None:
        raise ValueError(f"approximate is {approximate!r}; accepted are 'none' and 'tanh'")
    return activation


def _require_first(name: str, tensor: Tensor) -> None:
    require_reverse_mode("elementwise operations")
    require_tensor(name, tensor)


def _binary(input: Tensor, other: Tensor | float, combine: str) -> Tensor:
    _require_first("input", input)
    if not isinstance(other, Tensor):
        if isinstance(other, bool) or not isinstance(other, (int, float)):
            raise TypeError(f"other is a {type(other).__name__}; accepted are a Tensor and a number")
        return elementwise(input, None, require_number("other", other), "identity", combine)
    require_tensor("other", other)
    require_match("other", other, "input", input, dtype=False)
    try:
        torch.broadcast_shapes(input.shape, other.shape)
    except RuntimeError as error:
        raise ValueError(
            f"other has shape {tuple(other.shape)}; accepted is what broadcasts with input, {tuple(input.shape)}"
        ) from error
    return elementwise(input, other, None, "identity", combine)


def _activation(input: Tensor, activation: str) -> Tensor:
    _require_first("input", input)
    return elementwise(input, None, None, activation, "none")


def _gate(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    _require_first("gate", gate)
    if up is not None:
        require_tensor("up", up)
        require_match("up", up, "gate", gate, dtype=False)
        require_shape("up", up, tuple(gate.shape), "that of gate")
        return elementwise(gate, up, None, activation, "mul")
    if gate.dim() == 0 or gate.shape[-1] % 2:
        raise ValueError(f"gate has shape {tuple(gate.shape)}; accepted without up is an even last size")
    return gate_halves(gate, activation)
