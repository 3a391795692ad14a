"""Brings tensors of any rank to the ``[B, H, L, D]`` of the attention operators, as views wherever strides allow it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor

from ...errors import UnsupportedError
from .. import vmap
from ..strides import dense_rows

__all__ = ["batch_operator", "fold", "with_rank"]


def with_rank(tensor: Tensor, rank: int) -> Tensor:
    """A view with dimensions of size 1 put in front."""
    return tensor[(None,) * (rank - tensor.dim())]


def fold(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, lead: Sequence[int], kv_lead: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Broadcasts to these leading sizes, then makes them two: batches and heads.

    With more than two leading dimensions, the first few become batches and the rest heads, split where least has to be
    copied. Grouping survives when batches join heads: ``(b * Hq + h) // group`` is ``b * Hkv + h // group``.

    Args:
        query: ``[..., Lq, D]``; the leading dimensions broadcast to `lead`.
        key, value: ``[..., Lk, D]``; the leading dimensions broadcast to `kv_lead`.
        attn_mask: broadcasts to ``[*lead, Lq, Lk]``.
        lead: batch sizes, then ``Hq``.
        kv_lead: the same batch sizes, then ``Hkv``.

    Returns:
        ``[B, Hq, Lq, D]``, twice ``[B, Hkv, Lk, D]`` with unit last strides, and the mask as
        ``[B|1, Hq|1, Lq|1, Lk|1]``.
    """
    rank = max(len(lead), 2) + 2
    operands = [
        with_rank(x.expand(*sizes, *x.shape[-2:]), rank)
        for x, sizes in ((query, lead), (key, kv_lead), (value, kv_lead))
    ]
    if attn_mask is not None:
        operands.append(with_rank(attn_mask, rank))
    if rank > 4:
        folds = [_Fold(operands, split) for split in range(rank - 3, 0, -1)]
        copies = [candidate.copied_elements() for candidate in folds]
        operands = folds[copies.index(min(copies))].apply()
    q, k, v = map(dense_rows, operands[:3])
    return q, k, v, operands[3] if attn_mask is not None else None


class _Fold:
    """One way to make two leading dimensions of many: those before `split` become batches, the others heads."""

    def __init__(self, operands: Sequence[Tensor], split: int) -> None:
        """Takes query, key, value and perhaps a mask, all of one rank, the first three broadcast already."""
        self._split = split
        lead = operands[0].shape[:-2]
        self._operands = [*operands[:3], *(self._widen(mask, lead) for mask in operands[3:])]

    def _widen(self, mask: Tensor, lead: Sequence[int]) -> Tensor:
        """Expands the mask over a group of dimensions unless all of the group is 1 and can stay so."""
        sizes: list[int] = []
        for group in (slice(0, self._split), slice(self._split, len(lead))):
            own = mask.shape[:-2][group]
            sizes += own if all(n == 1 for n in own) else lead[group]
        return mask.expand(*sizes, *mask.shape[-2:])

    def _is_view(self, x: Tensor) -> bool:
        """Whether each group's strides are those of one dimension."""
        for group in (range(self._split), range(self._split, x.dim() - 2)):
            dims = [d for d in group if x.shape[d] != 1]
            if any(x.stride(a) != x.stride(b) * x.shape[b] for a, b in itertools.pairwise(dims)):
                return False
        return True

    def copied_elements(self) -> int:
        return sum(x.numel() for x in self._operands if not self._is_view(x))

    def apply(self) -> list[Tensor]:
        split = self._split
        return [
            x.reshape(math.prod(x.shape[:split]), math.prod(x.shape[split:-2]), *x.shape[-2:]) for x in self._operands
        ]


def batch_operator(
    operator: Callable[..., tuple[Tensor, ...]],
    size: int,
    args: Sequence[Any],
    in_dims: Sequence[int | None],
    batched: Collection[int],
) -> tuple[Tensor, ...]:
    """Folds the mapped dimension of the arguments at `batched` into their batch dimension and calls the operator.

    Returns:
        The results with the mapped dimension in front; what the operator left empty stays so.
    """
    if any(dim is not None for n, dim in enumerate(in_dims) if n not in batched):
        raise UnsupportedError("rotary or dropout differs between the calls of a vmap; accepted is what they share")
    mapped = {n: vmap.lead(args[n], in_dims[n], size) for n in batched if n < len(args) and args[n] is not None}
    batch = mapped[0].shape[1]
    folded = list(args)
    for n, x in mapped.items():
        folded[n] = x.expand(size, batch, *x.shape[2:]).flatten(0, 1)
    return tuple(x if x.dim() == 1 else x.unflatten(0, (size, batch)) for x in operator(*folded))
