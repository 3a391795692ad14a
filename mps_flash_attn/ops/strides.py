"""Shapes and strides as kernels take them: few dimensions, none of size 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["coalesce", "dense_rows"]


def coalesce(shape: Sequence[int], *strides: Sequence[int]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Merges neighbouring dimensions that every operand steps through evenly, and drops those of size 1.

    Args:
        shape: sizes that all operands share.
        strides: of each operand, in elements, 0 where it is broadcast.

    Returns:
        The fewest sizes, and each operand's strides over them: a contiguous tensor becomes one dimension. Elements keep
        their order.
    """
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for dim, size in enumerate(shape):
        if size == 1:
            continue
        own = [stride[dim] for stride in strides]
        if sizes and all(outer[-1] == size * inner for outer, inner in zip(merged, own, strict=True)):
            sizes[-1] *= size
            for outer, inner in zip(merged, own, strict=True):
                outer[-1] = inner
        else:
            sizes.append(size)
            for outer, inner in zip(merged, own, strict=True):
                outer.append(inner)
    return tuple(sizes), tuple(map(tuple, merged))


def dense_rows(tensor: Tensor) -> Tensor:
    """The tensor, or a contiguous copy where the elements of a row are not neighbours."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()
