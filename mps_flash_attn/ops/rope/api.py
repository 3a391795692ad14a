"""`rope` and `rope_tables`: rotary position embedding, in front of its operator."""

# ruff: noqa: A002 -- `input` is what PyTorch calls it

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ..checks import require_match, require_number, require_reverse_mode, require_tensor
from . import function, plan, reference

__all__ = ["rope", "rope_tables"]


def rope(
    input: Tensor,
    *,
    base: float = 10000.0,
    positions: Tensor | None = None,
    offset: int = 0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> Tensor:
    r"""Rotary position embedding: turns pairs of columns by angles that grow with the row's position.

    Su et al. 2021 (arXiv:2104.09864): at position ``p``, pair ``i`` of the first ``R`` columns turns by
    ``p * base ** (-2 i / R)`` radians, ``(x, y) -> (x cos - y sin, x sin + y cos)``. The other columns are copied. The
    gradient is the rotation back.

    Args:
        input: ``[..., L, D]``, any strides: only a tensor whose last dimension is strided is copied. float32, float16,
            bfloat16, or float64 on the simulator.
        base: greater than 0.
        positions: int32 or int64, ``[L]``, or ``[B, L]`` where the first of input's dimensions is ``B``. Any values,
            negative ones too. None for ``offset, offset + 1, ...``.
        offset: the first position, where `positions` is None: the number of rows before these ones.
        rotary_dim: ``R``, even, at most ``D``; by default all of an even ``D``, or twice the last size of `cos`.
        interleaved: pair ``i`` is columns ``(2 i, 2 i + 1)``, as in GPT-J and the paper; otherwise
            ``(i, i + R / 2)``, as in GPT-NeoX and Llama.
        cos: cosines ``[L, R / 2]`` or ``[B, L, R / 2]`` in any floating dtype, for angles of another rule than that of
            `base` and positions; `rope_tables` makes those of this rule.
        sin: sines in the shape of `cos`. The two come together, and without `positions` and `offset`.

    Returns:
        ``[..., L, D]`` in the dtype of `input`.

    Raises:
        TypeError: an argument has the wrong type, or a tensor a dtype that is not accepted.
        ValueError: shapes, devices or values that contradict each other.
        UnsupportedError: tables that require grad, forward-mode differentiation, ``torch.func`` gradients. It is a
            ``ValueError``.

    Numerics:
        Angles are as exact at position 10,000,000 as at 1: kernels multiply 64-bit fractions of a turn, computed in
        float64, and whole turns overflow. Pairs turn in float32 (float64 for float64) and are rounded once.

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import rope
        >>> query = torch.randn(2, 8, 16, 64)
        >>> torch.equal(rope(query)[:, :, :1], query[:, :, :1])
        True
        >>> rope(query, offset=5)[:, :, :4].sub(rope(query[:, :, :4], positions=torch.arange(5, 9))).abs().max()
        tensor(0.)
    """
    require_tensor("input", input)
    if input.dim() < 2:
        raise ValueError(f"input has shape {tuple(input.shape)}; accepted are two dimensions or more: [..., L, D]")
    _require_int("offset", offset)
    require_reverse_mode("rope")
    if cos is not None or sin is not None:
        for name, table in (("cos", cos), ("sin", sin)):
            if table is None:
                raise ValueError(f"{name} is None; accepted are both cos and sin, or none of them")
            require_tensor(name, table)
            require_match(name, table, "input", input, dtype=False)
            if table.requires_grad and torch.is_grad_enabled():
                raise UnsupportedError(
                    f"{name} requires grad and its gradient is not implemented; accepted are detached tables"
                )
        if positions is not None or offset != 0:
            raise ValueError("cos and sin are given, and positions or offset too; accepted is one of them")
    elif positions is not None:
        require_tensor("positions", positions, plan.POSITIONS, "int32 and int64")
        require_match("positions", positions, "input", input, dtype=False)
        if offset != 0:
            raise ValueError(f"offset is {offset} and positions are given; accepted is one of them")
    columns = input.shape[-1]
    if rotary_dim is None:
        rotary_dim = columns if cos is None or cos.dim() == 0 else 2 * cos.shape[-1]
    _require_rotary_dim(rotary_dim, columns)
    return function.rope(input, positions, cos, sin, _base(base), offset, rotary_dim, bool(interleaved), False)


def rope_tables(
    length: int,
    rotary_dim: int,
    *,
    base: float = 10000.0,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles of `rope`, computed in float64.

    Args:
        length: L, the number of positions.
        rotary_dim: R, even.
        base, offset: as in `rope`.
        dtype: of the tables.
        device: of the tables; PyTorch's default if None.

    Returns:
        Two tensors ``[L, R / 2]``.

    Raises:
        TypeError, ValueError: as `rope`.
    """
    for name, value in (("length", length), ("offset", offset)):
        _require_int(name, value)
    if length < 0:
        raise ValueError(f"length is {length}; accepted are 0 and more")
    _require_rotary_dim(rotary_dim, None)
    positions = torch.arange(offset, offset + length, dtype=torch.float64, device="cpu")
    angles = reference.angles(positions, rotary_dim, _base(base))
    target = torch.get_default_device() if device is None else device
    return angles.cos().to(target, dtype), angles.sin().to(target, dtype)


def _require_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} is a {type(value).__name__}; accepted is an int")


def _require_rotary_dim(rotary_dim: int, columns: int | None) -> None:
    _require_int("rotary_dim", rotary_dim)
    if rotary_dim < 0 or rotary_dim % 2 or (columns is not None and rotary_dim > columns):
        most = "" if columns is None else f" to D, {columns}"
        raise ValueError(f"rotary_dim is {rotary_dim}; accepted are even numbers from 0{most}")


def _base(base: float) -> float:
    base = require_number("base", base)
    if base <= 0:
        raise ValueError(f"base is {base}; accepted are numbers greater than 0")
    return base
