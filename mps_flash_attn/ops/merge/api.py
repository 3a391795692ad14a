"""`merge_attention` on tensors as PyTorch users have them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calls import shortcut
from ..checks import require_match, require_reverse_mode, require_shape, require_tensor
from ..dtypes import ELEMENTS, accumulator_dtype
from .function import merge_forward

__all__ = ["merge_attention"]

_forward = shortcut(torch.ops.mps_flash_attn.merge_forward.default, merge_forward._init_fn)


def merge_attention(
    out1: Tensor, lse1: Tensor, out2: Tensor, lse2: Tensor, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    r"""Attention over all keys from two attentions of the same queries over disjoint keys; exact, not an approximation.

    With ``lse = log(exp(lse1) + exp(lse2))`` and weights ``wi = exp(lsei - lse)``, the result is ``w1 out1 + w2 out2``:
    a softmax may be computed part by part (Milakov and Gimelshein 2018, arXiv:1805.02867). Parts may come from chunks
    of a cache, or from other devices, and may be merged in any order, one after the other. Differentiable, once, in
    all four tensors.

    Args:
        out1: ``[..., D]``, as `flash_attention` returns it; float32, float16, bfloat16, or float64 on the simulator.
            Any strides, no copy is made.
        lse1: ``[...]``, the natural logarithm of each row's sum of exponentials, as `flash_attention` returns it with
            `return_lse`; float32 (float64 for float64).
        out2: ``[..., D]`` in the dtype of `out1`.
        lse2: ``[...]`` in the dtype of `lse1`.
        dtype: of the result; that of `out1` if None. Parts kept in float32 may so end as float16.

    Returns:
        ``[..., D]``, and its log-sum-exp ``[...]`` in the dtype of `lse1`, both to be merged again.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shapes, dtypes or devices that do not go together.
        UnsupportedError: forward-mode differentiation, ``torch.func`` gradients. It is a ``ValueError``.

    Numerics:
        Weights and sums are float32 (float64 for float64). A part whose log-sum-exp is ``-inf`` saw no key: its row is
        not looked at, whatever it holds, and gets gradients 0. Where both are ``-inf``, the result is 0 and ``-inf``.

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import flash_attention, merge_attention
        >>> query, key, value = torch.randn(3, 1, 2, 16, 64).unbind()
        >>> near = flash_attention(query, key[:, :, :10], value[:, :, :10], return_lse=True)
        >>> far = flash_attention(query, key[:, :, 10:], value[:, :, 10:], return_lse=True)
        >>> out, lse = merge_attention(*near, *far)
        >>> torch.allclose(out, flash_attention(query, key, value), atol=1e-6)
        True
    """
    require_tensor("out1", out1)
    if out1.dim() == 0 or out1.shape[-1] == 0:
        raise ValueError(f"out1 has shape {tuple(out1.shape)}; accepted are [..., D] with D from 1")
    lse_dtype = accumulator_dtype(out1.dtype)
    require_tensor("out2", out2)
    require_match("out2", out2, "out1", out1)
    require_shape("out2", out2, tuple(out1.shape), "the shape of out1")
    for name, lse in (("lse1", lse1), ("lse2", lse2)):
        require_tensor(name, lse, (lse_dtype,), f"{lse_dtype} for {out1.dtype}")
        require_match(name, lse, "out1", out1, dtype=False)
        require_shape(name, lse, tuple(out1.shape[:-1]), "that of out1 without its last size")
    if dtype is None:
        dtype = out1.dtype
    elif dtype not in ELEMENTS or accumulator_dtype(dtype) != lse_dtype:
        accepted = [x for x in ELEMENTS if accumulator_dtype(x) == lse_dtype]
        raise TypeError(f"dtype is {dtype}; accepted for {out1.dtype} are None, {', '.join(map(str, accepted))}")
    require_reverse_mode("merge_attention")
    out, lse = _forward(out1, lse1, out2[None], lse2[None], dtype)
    return out, lse
