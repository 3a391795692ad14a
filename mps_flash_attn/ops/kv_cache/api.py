"""`append_kv` and `rotate_queries`: a cache of keys and values that grows in place."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ..calls import shortcut
from ..checks import require_reverse_mode, require_tensor
from ..host_values import filled
from .function import append_kv_undispatched
from .function import rotate_queries as _rotate_queries

__all__ = ["append_kv", "lengths_of", "rotate_queries"]

_append = shortcut(torch.ops.mps_flash_attn.append_kv.default, append_kv_undispatched)
_rotate = shortcut(torch.ops.mps_flash_attn.rotate_queries.default, _rotate_queries._init_fn)


def append_kv(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cache_seqlens: Tensor | int,
    cache_batch_idx: Tensor | None = None,
    block_table: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    interleaved: bool = False,
) -> None:
    r"""Writes new keys and values into a cache, in place, behind those that each sequence has there.

    Row ``i`` of sequence ``b`` goes to position ``cache_seqlens[b] + i``: of batch ``b`` of the cache, or of batch
    ``cache_batch_idx[b]``, or of the pages ``block_table[b]`` (Kwon et al. 2023, arXiv:2309.06180). Meaning and layouts
    are those of ``flash_attn_with_kvcache`` in the package ``flash_attn``. ``cache_seqlens`` itself is not changed.

    Args:
        k_cache: ``[B_cache, L_cache, Hkv, D]``, or with `block_table` ``[pages, page size, Hkv, D]`` with pages of 8 to
            256 rows. Any strides but a last one other than 1. float32, float16, bfloat16, or float64 on the simulator.
        v_cache: the same of ``Dv`` columns.
        key: ``[B, L, Hkv, D]`` in the dtype of the cache. Any strides: only a tensor whose last dimension is strided is
            copied.
        value: ``[B, L, Hkv, Dv]``.
        cache_seqlens: int32 ``[B]``, or an int for all: how many rows each sequence has in the cache. All new rows have
            to fit behind them.
        cache_batch_idx: int32 ``[B]``, each another batch of the cache; None for ``0, 1, ...``
        block_table: int32 ``[B, max_pages]``: position ``p`` of sequence ``b`` is row ``p % page size`` of page
            ``block_table[b, p // page size]``. Entries that no new row goes to may be anything. Not with
            `cache_batch_idx`.
        cos: cosines ``[positions, R / 2]``, by which the first R columns of keys are turned while they are written,
            each row by those of its position; R is even and at most D. Any floating dtype. None leaves keys as they
            are; `rope_tables` makes tables.
        sin: sines in shape and dtype of `cos`.
        interleaved: pair ``i`` is columns ``(2 i, 2 i + 1)``; otherwise ``(i, i + R / 2)``.

    Raises:
        TypeError: an argument has the wrong type, or a tensor a dtype that is not accepted.
        ValueError: shapes, devices or options that contradict each other; a position that the cache, the tables or the
            table of pages does not have; two sequences that would be written to one place. To find those, values are
            read before anything is written, for which a GPU is waited for unless an earlier call has read the same
            unchanged tensor. Kernels skip such rows, too.
        UnsupportedError: a tensor that requires grad while gradients are recorded, forward-mode differentiation,
            ``torch.func`` gradients, tensors that a CUDA graph under capture would have to read. It is a
            ``ValueError``.

    Numerics:
        Pairs turn in float32 (float64 for float64) and are rounded once. Everything else is copied.

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import append_kv
        >>> k_cache, v_cache = torch.zeros(2, 1, 16, 4, 64).unbind()
        >>> key, value = torch.randn(2, 1, 3, 4, 64).unbind()
        >>> append_kv(k_cache, v_cache, key, value, cache_seqlens=5)
        >>> torch.equal(k_cache[:, 5:8], key), bool((k_cache[:, 8:] == 0).all())
        (True, True)
    """
    named = {"k_cache": k_cache, "v_cache": v_cache, "key": key, "value": value, "cos": cos, "sin": sin}
    _require_plain("append_kv", named, interleaved=interleaved)
    if not isinstance(cache_seqlens, Tensor):
        require_tensor("key", key)
        cache_seqlens = lengths_of(cache_seqlens, key)
    _append(k_cache, v_cache, key, value, cache_seqlens, cache_batch_idx, block_table, cos, sin, interleaved)


def rotate_queries(
    query: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    cache_seqlens: Tensor | int,
    interleaved: bool = False,
    one_position: bool = False,
) -> Tensor:
    """Queries turned by the angles of their positions, to go with keys that `append_kv` has turned.

    Query ``i`` of sequence ``b`` stands at position ``cache_seqlens[b] + i``.

    Args:
        query: ``[B, L, H, D]``, any strides: only a tensor whose last dimension is strided is copied. float32, float16,
            bfloat16, or float64 on the simulator.
        cos, sin: ``[positions, R / 2]``, as in `append_kv`.
        cache_seqlens: int32 ``[B]``, or an int for all: how many rows each sequence had before these ones.
        interleaved: as in `append_kv`.
        one_position: all queries of a sequence stand at ``cache_seqlens[b]``, as ``flash_attn_with_kvcache`` has them
            where attention is neither causal nor local.

    Returns:
        ``[B, L, H, D]`` in the dtype of `query`.

    Raises:
        TypeError, ValueError, UnsupportedError: as `append_kv`.
    """
    _require_plain("rotate_queries", {"query": query, "cos": cos, "sin": sin}, interleaved=interleaved)
    if not isinstance(one_position, bool):
        raise TypeError(f"one_position is a {type(one_position).__name__}; accepted is a bool")
    for name, table in (("cos", cos), ("sin", sin)):
        require_tensor(name, table)
    if not isinstance(cache_seqlens, Tensor):
        require_tensor("query", query)
        cache_seqlens = lengths_of(cache_seqlens, query)
    return _rotate(query, cos, sin, cache_seqlens, interleaved, one_position)


def lengths_of(length: object, rows: Tensor) -> Tensor:
    """One length for all sequences as a tensor."""
    if isinstance(length, bool) or not isinstance(length, (int, torch.SymInt)):
        raise TypeError(f"cache_seqlens is a {type(length).__name__}; accepted are an int32 Tensor and an int")
    if not -(2**31) <= length < 2**31:
        raise ValueError(f"cache_seqlens is {length}; accepted are 32-bit lengths")
    return filled(int(length), rows.shape[0] if rows.dim() else 0, rows.device)


def _require_plain(operation: str, tensors: dict[str, Tensor | None], *, interleaved: object) -> None:
    """Tensors for which nobody wants a gradient.

    Raises:
        TypeError: a flag of another type, or what is no tensor.
        UnsupportedError: one that requires grad.
    """
    if not isinstance(interleaved, bool):
        raise TypeError(f"interleaved is a {type(interleaved).__name__}; accepted is a bool")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; accepted is a Tensor")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError(
                f"{name} requires grad and {operation} has no gradient; accepted are detached tensors, or a call under "
                "torch.no_grad()"
            )
    require_reverse_mode(operation)
