"""`matmul` and `linear`: products of tensors as PyTorch users have them, in front of the operator ``gemm``."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..attention.arguments import autocast_dtype
from ..checks import require_match, require_reverse_mode, require_shape, require_tensor
from .activation import Activation, ActivationName
from .function import gemm_operator

__all__ = ["linear", "matmul"]


_ACTIVATIONS: dict[str | None, Activation] = {
    None: Activation.NONE,
    "relu": Activation.RELU,
    "gelu": Activation.GELU,
    "gelu_tanh": Activation.GELU_TANH,
    "silu": Activation.SILU,
}


def matmul(input: Tensor, other: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
    r"""The product of two tensors, with the shapes, broadcasting and gradients of :func:`torch.matmul`.

    Sums are kept in float32 (float64 for float64) and rounded once. A matrix whose rows or columns are contiguous is
    read in place, transposed, sliced or expanded; one that is strided in both dimensions is copied.

    Args:
        input: ``[..., M, K]``, or ``[K]``. float32, float16, bfloat16, or float64 on the simulator.
        other: ``[..., K, N]``, or ``[K]``, with the dtype and device of `input`. Dimensions before the last two
            broadcast. With more than four of them that cannot be merged, both tensors are copied.

    Returns:
        ``[..., M, N]`` in the dtype of `input`, without ``M`` where `input`, or ``N`` where `other` has one dimension.
        Where ``K`` is 0 it is 0. Twice differentiable.

    Raises:
        TypeError: no tensors, or dtypes that differ or have no kernel.
        ValueError: shapes or devices that do not go together; `UnsupportedError`, which is one, for forward-mode
            differentiation and the gradients of ``torch.func``.

    Autocast:
        Inside :class:`torch.autocast`, both are cast to its dtype, as by PyTorch (float64 stays).

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import matmul
        >>> matmul(torch.randn(2, 3, 4), torch.randn(4, 5)).shape
        torch.Size([2, 3, 5])
    """
    for name, tensor in (("input", input), ("other", other)):
        require_tensor(name, tensor)
        if tensor.dim() == 0:
            raise ValueError(f"{name} has no dimensions; accepted is one or more")
    require_reverse_mode("matmul")
    left, right = _autocast(input, other)
    require_match("other", right, "input", left)
    a = left if left.dim() > 1 else left.unsqueeze(0)
    b = right if right.dim() > 1 else right.unsqueeze(1)
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"other has shape {tuple(other.shape)} and input {tuple(input.shape)}; accepted are matrices [..., M, K] "
            "and [..., K, N]"
        )
    try:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"other has batch dimensions {tuple(b.shape[:-2])} and input {tuple(a.shape[:-2])}; accepted are such as "
            "broadcast"
        ) from None
    shape = (*batch, *((a.shape[-2],) if left.dim() > 1 else ()), *((b.shape[-1],) if right.dim() > 1 else ()))
    if b.dim() == 2 and _is_one_matrix(a):
        a = a.flatten(0, -2)
    return _product(a, b, None, Activation.NONE).view(shape)


def linear(
    input: Tensor,  # noqa: A002 - PyTorch's name
    weight: Tensor,
    bias: Tensor | None = None,
    activation: ActivationName | None = None,
) -> Tensor:
    r"""``activation(input @ weight.T + bias)`` in one kernel, with gradients.

    As :func:`torch.nn.functional.linear`, but the activation is applied before anything is rounded or written.

    Args:
        input: ``[..., K]``. float32, float16, bfloat16, or float64 on the simulator. Its leading dimensions are taken
            for one; where strides forbid a view of that kind it is copied, as one that is strided in both is.
        weight: ``[N, K]`` with the dtype and device of `input`, or ``[K]`` for a single output without dimension.
        bias: ``[N]``, or without dimensions for such a weight.
        activation: ``"relu"``, ``"gelu"`` (by the error function), ``"gelu_tanh"`` (its approximation by tanh),
            ``"silu"``, or None.

    Returns:
        ``[..., N]`` in the dtype of `input`.

    Raises:
        TypeError: no tensors, or dtypes that differ or have no kernel.
        ValueError: shapes, devices or an activation that do not go together; `UnsupportedError`, which is one, for
            forward-mode differentiation, the gradients of ``torch.func`` and second derivatives with an activation.

    Gradients:
        For GELU and SiLU, ``input @ weight.T + bias`` is written beside the result, rounded to the same dtype, when a
        gradient may be asked for; ReLU needs only its result. Sums are in a fixed order.

    Autocast:
        Inside :class:`torch.autocast`, all tensors are cast to its dtype, as by PyTorch (float64 stays).

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import linear
        >>> linear(torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5), activation="gelu").shape
        torch.Size([2, 3, 5])
    """
    if activation not in _ACTIVATIONS:
        accepted = ", ".join(map(repr, _ACTIVATIONS))
        raise ValueError(f"activation is {activation!r}; accepted are {accepted}")
    require_tensor("input", input)
    require_tensor("weight", weight)
    if input.dim() == 0:
        raise ValueError("input has no dimensions; accepted is one or more")
    if weight.dim() not in (1, 2) or weight.shape[-1] != input.shape[-1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; accepted are [N, K] and [K] with K {input.shape[-1]} as in input"
        )
    if bias is not None:
        require_tensor("bias", bias)
        require_shape("bias", bias, tuple(weight.shape[:-1]), "one value for each row of weight")
    require_reverse_mode("linear")
    x, w, *biases = _autocast(input, weight, *(() if bias is None else (bias,)))
    require_match("weight", w, "input", x)
    for tensor in biases:
        require_match("bias", tensor, "input", x)
    rows = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
    columns = (w if w.dim() == 2 else w.unsqueeze(0)).mT
    vector = biases[0].view(-1) if biases else None
    return _product(rows, columns, vector, _ACTIVATIONS[activation]).view((*input.shape[:-1], *weight.shape[:-1]))


def _product(a: Tensor, b: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (a, b, bias))
    c: Tensor = gemm_operator(a, b, bias, int(activation), gradient and activation.needs_input)[0]
    return c


def _is_one_matrix(a: Tensor) -> bool:
    """Whether the rows of all matrices are those of one, by their strides."""
    lead = [(n, s) for n, s in zip(a.shape[:-1], a.stride()[:-1], strict=True) if n != 1]
    return all(outer[1] == inner[0] * inner[1] for outer, inner in itertools.pairwise(lead))


def _autocast(*operands: Tensor) -> tuple[Tensor, ...]:
    """The operands in autocast's dtype where it is on; PyTorch's rule: float64 stays as it is."""
    dtype = autocast_dtype(operands[0].device.type)
    if dtype is None:
        return operands
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in operands)
