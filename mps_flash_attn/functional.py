"""`flash_attention`: arguments as PyTorch users write them, checked and laid out for the attention operators.

`attempt` is the one way to the operators, for `flash_attention` and for `mps_flash_attn.patch`, so that both accept the
same problems: it computes, or returns a `Refusal`. The common call passes one cheap test (`_is_direct`) and its tensors
go to the operator as they are; only the others are diagnosed, cast, broadcast and folded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .errors import UnsupportedError
from .ops.attention.function import Causal

__all__ = ["flash_attention"]

MAX_HEAD_SIZE = 256

_DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_DTYPE_NAMES = "float32, float16, bfloat16, or float64 on the simulator"
_AUTOCAST_DEVICES = frozenset(("cpu", "cuda", "mps"))
_ALIGNMENTS = {"top-left": Causal.TOP_LEFT, "bottom-right": Causal.BOTTOM_RIGHT}

_VMAP = torch._C._functorch.TransformType.Vmap

_forward = torch.ops.mps_flash_attn.attention_forward.default
_backward = torch.ops.mps_flash_attn.attention_backward.default


@dataclass(frozen=True)
class Refusal:
    """Why a call is not computed.

    Attributes:
        reason: a short text without shapes, the same for every call that fails the same way, so it can be counted.
        error: what `flash_attention` raises: argument, what came, what is accepted.
    """

    reason: str
    error: Exception


@overload
def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = ...,
    *,
    is_causal: bool = ...,
    causal_alignment: Literal["top-left", "bottom-right"] = ...,
    scale: float | None = ...,
    enable_gqa: bool = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = ...,
    *,
    is_causal: bool = ...,
    causal_alignment: Literal["top-left", "bottom-right"] = ...,
    scale: float | None = ...,
    enable_gqa: bool = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    causal_alignment: Literal["top-left", "bottom-right"] = "top-left",
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Attention ``softmax(scale * Q K^T + mask) V`` in memory that grows with the length, not with its square.

    Arguments and meaning follow :func:`torch.nn.functional.scaled_dot_product_attention`; gradients flow to `query`,
    `key` and `value`. The scores are computed tile by tile with an online softmax (Milakov and Gimelshein 2018,
    arXiv:1805.02867) and recomputed in the backward pass from the log-sum-exp of each row, as in FlashAttention-2
    (Dao 2023, arXiv:2307.08691). Nothing of size ``Lq x Lk`` is allocated, forward or backward.

    Sizes: ``Hq`` query heads, ``Hkv`` key and value heads, lengths ``Lq`` and ``Lk``, head size ``D``; ``...`` is any
    number of batch dimensions, none included. Batch dimensions broadcast.

    Args:
        query: ``[..., Hq, Lq, D]``, or ``[..., Lq, D]`` with fewer than four dimensions. float32, float16, bfloat16,
            or float64 on the simulator; ``1 <= D <= 256``. Any strides: only a tensor whose last dimension is strided
            is copied.
        key: ``[..., Hkv, Lk, D]`` with the dtype and device of `query`.
        value: ``[..., Hkv, Lk, D]`` with the dtype and device of `query`.
        attn_mask: broadcasts to ``[..., Hq, Lq, Lk]``, any strides. Boolean (true: the key takes part) or floating
            point of any dtype (added to the scaled scores). It is read in place. A
            :class:`torch.nn.attention.bias.CausalBias` stands for `is_causal` with its alignment.
        is_causal: hides later keys from each query, in addition to `attn_mask` where both are given.
        causal_alignment: which keys are later where ``Lq != Lk``: ``"top-left"``, as in PyTorch, lets query ``i`` see
            the keys ``j <= i``; ``"bottom-right"`` those with ``j <= i + Lk - Lq``.
        scale: factor of the scores, finite and not zero; ``1 / sqrt(D)`` if None.
        enable_gqa: lets ``Hq`` be a multiple of ``Hkv``: query head ``h`` uses key head ``h // (Hq / Hkv)``. Keys and
            values are not repeated in memory. Without it, heads must be equal or broadcast from 1.
        return_lse: also returns the log-sum-exp of every row of scores.

    Returns:
        ``[..., Hq, Lq, D]`` in the dtype of `query` and, with `return_lse`, the natural logarithm of each row's sum of
        exponentials, ``[..., Hq, Lq]``, float32 (float64 for float64). Both are differentiable, once.

    Raises:
        TypeError: an argument has the wrong type, or a tensor a dtype that attention has no meaning for.
        ValueError: shapes, devices or values that contradict each other.
        UnsupportedError: a well-formed problem outside what is implemented: ``D > 256``, a value head size other than
            ``D``, a mask that requires grad, sparse or nested tensors, forward-mode differentiation, ``torch.func``
            gradients. It is a ``ValueError``.

    Numerics:
        Sums are accumulated in float32 (float64 for float64). Compared with a float64 reference, the error is at most
        twice that of PyTorch's own attention in the same dtype, plus a small floor. A row whose keys are all masked
        gives output 0, log-sum-exp ``-inf`` and gradients 0. A NaN in the input reaches the output. The gradients are
        deterministic: they use no atomics.

    Autocast:
        Inside :class:`torch.autocast`, `query`, `key` and `value` are cast to its dtype, as PyTorch's attention does
        (float64 stays); the mask keeps its own.

    Example:
        >>> import torch
        >>> from mps_flash_attn import flash_attention
        >>> query = torch.randn(2, 8, 16, 64, requires_grad=True)
        >>> key, value = torch.randn(2, 2, 16, 64), torch.randn(2, 2, 16, 64)
        >>> out, lse = flash_attention(query, key, value, is_causal=True, enable_gqa=True, return_lse=True)
        >>> out.shape, lse.shape
        (torch.Size([2, 8, 16, 64]), torch.Size([2, 8, 16]))
        >>> out.sum().backward()
        >>> query.grad.shape
        torch.Size([2, 8, 16, 64])
    """
    causal = _ALIGNMENTS.get(causal_alignment)
    if causal is None:
        raise ValueError(f"causal_alignment is {causal_alignment!r}; accepted are 'top-left' and 'bottom-right'")
    if not is_causal:
        causal = Causal.NONE
    if attn_mask is not None and type(attn_mask) is not Tensor:
        attn_mask, causal = _unwrap_causal_bias(query, key, attn_mask, causal)
    result = attempt(query, key, value, attn_mask, scale, causal, enable_gqa)
    if isinstance(result, Refusal):
        raise result.error
    return result if return_lse else result[0]


def attempt(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    scale: float | None,
    causal: Causal,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor] | Refusal:
    """Computes attention, or says why not; nothing is launched before every argument is known to be good.

    Returns:
        out ``[..., Hq, Lq, D]`` and lse ``[..., Hq, Lq]``, or the refusal.
    """
    direct = _is_direct(query, key, value, enable_gqa)
    refusal = None
    if not direct:
        refusal = _refuse_kinds(query, key, value)
        if refusal is None:
            query, key, value = _autocast(query, key, value)
            refusal = _refuse_operands(query, key, value, enable_gqa)
    if refusal is None and attn_mask is not None:
        refusal = _refuse_mask(attn_mask, query, key, value, enable_gqa)
    if refusal is None and scale is not None:
        refusal = _refuse_scale(scale)
    if refusal is not None:
        return refusal
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1])
    if not direct:
        return _forward_folded(query, key, value, attn_mask, scale, causal, enable_gqa)
    if attn_mask is not None and attn_mask.dim() != 4:
        attn_mask = _with_rank(attn_mask, 4)
    return cast("tuple[Tensor, Tensor]", _forward(query, key, value, attn_mask, scale, causal))


def _is_direct(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> bool:
    """Whether the operator takes these three as they are: nothing to refuse, cast, copy, broadcast or fold."""
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        return False
    dtype = query.dtype
    if dtype not in _DTYPES or key.dtype is not dtype or value.dtype is not dtype:
        return False
    if query.is_nested or key.is_nested or value.is_nested or query.dim() != 4 or key.dim() != 4:
        return False
    batch, heads, _, head_size = query.shape
    kv_shape = key.shape
    kv_heads = kv_shape[1]
    device = query.device
    return (
        batch == kv_shape[0]
        and (heads == kv_heads or (enable_gqa and kv_heads > 0 and heads % kv_heads == 0))
        and head_size == kv_shape[3]
        and 0 < head_size <= MAX_HEAD_SIZE
        and kv_shape == value.shape
        and device == key.device
        and device == value.device
        and query.layout is key.layout is value.layout is torch.strided
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and _derivatives_supported()
        and _autocast_dtype(device.type) is None
    )


def _derivatives_supported() -> bool:
    """False inside forward-mode differentiation and the transforms of ``torch.func`` other than ``vmap``."""
    if forward_ad._current_level >= 0:
        return False
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return True
    return all(layer.key() == _VMAP for layer in torch._C._functorch.get_interpreter_stack())


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    if device_type in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def _autocast(*operands: Tensor) -> tuple[Tensor, ...]:
    """The operands in autocast's dtype where it is on; PyTorch's rule: float64 stays as it is."""
    dtype = _autocast_dtype(operands[0].device.type)
    if dtype is None:
        return operands
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in operands)


def _unwrap_causal_bias(query: Tensor, key: Tensor, attn_mask: Tensor, causal: Causal) -> tuple[Tensor | None, Causal]:
    """What a `CausalBias` stands for, once it is known to fit; any other mask as it is."""
    # That module loads PyTorch's compiler, over a second of work: not for every import of this package.
    from torch.nn.attention.bias import CausalBias, CausalVariant

    if not isinstance(attn_mask, CausalBias):
        return attn_mask, causal
    if causal is not Causal.NONE:
        raise ValueError("attn_mask is a CausalBias and is_causal is True; accepted is one of them")
    lengths = (attn_mask.seq_len_q, attn_mask.seq_len_kv)
    if lengths != (query.shape[-2], key.shape[-2]):
        raise ValueError(
            f"attn_mask is a CausalBias of {lengths[0]} queries and {lengths[1]} keys; query and key have "
            f"{query.shape[-2]} and {key.shape[-2]}"
        )
    return None, Causal.TOP_LEFT if attn_mask.variant is CausalVariant.UPPER_LEFT else Causal.BOTTOM_RIGHT


def _refuse_kinds(query: Tensor, key: Tensor, value: Tensor) -> Refusal | None:
    """Checks of each operand by itself: type, layout, dtype, rank; then of the kind of differentiation."""
    for name, operand in (("query", query), ("key", key), ("value", value)):
        if not isinstance(operand, Tensor):
            return Refusal("not a tensor", TypeError(f"{name} is a {type(operand).__name__}; accepted is a Tensor"))
        if operand.is_nested or operand.layout is not torch.strided:
            kind = "nested" if operand.is_nested else f"of layout {operand.layout}"
            return Refusal(
                "sparse or nested tensor", UnsupportedError(f"{name} is {kind}; accepted are dense strided tensors")
            )
        if operand.dtype not in _DTYPES:
            return Refusal(
                "dtype not supported", TypeError(f"{name} has dtype {operand.dtype}; accepted are {_DTYPE_NAMES}")
            )
        if operand.dim() < 2:
            return Refusal(
                "fewer than two dimensions",
                ValueError(f"{name} has shape {list(operand.shape)}; accepted are two dimensions or more: [..., L, D]"),
            )
    if not _derivatives_supported():
        return Refusal(
            "forward-mode or torch.func differentiation",
            UnsupportedError(
                "forward-mode differentiation and torch.func gradients of attention are not supported; accepted are "
                "torch.autograd.grad and backward()"
            ),
        )
    return None


def _refuse_operands(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> Refusal | None:
    """Checks of query, key and value against each other, after `_refuse_kinds`."""
    for name, operand in (("key", key), ("value", value)):
        if operand.device != query.device:
            return Refusal(
                "devices differ",
                ValueError(f"{name} is on {operand.device} and query on {query.device}; accepted is one device"),
            )
        if operand.dtype != query.dtype:
            return Refusal(
                "dtypes differ",
                TypeError(f"{name} has dtype {operand.dtype} and query {query.dtype}; accepted is one dtype"),
            )
    head_size = query.shape[-1]
    if key.shape[-1] != head_size:
        return Refusal(
            "head sizes of query and key differ",
            ValueError(f"key has head size {key.shape[-1]} and query {head_size}; accepted is one head size"),
        )
    if value.shape[-1] != head_size:
        return Refusal(
            "value head size differs",
            UnsupportedError(f"value has head size {value.shape[-1]} and query {head_size}; accepted is one head size"),
        )
    if not 0 < head_size <= MAX_HEAD_SIZE:
        reason = f"head size over {MAX_HEAD_SIZE}" if head_size > 0 else "head size 0"
        return Refusal(reason, UnsupportedError(f"query has head size {head_size}; accepted are 1 to {MAX_HEAD_SIZE}"))
    if key.shape[-2] != value.shape[-2]:
        return Refusal(
            "lengths of key and value differ",
            ValueError(f"value has length {value.shape[-2]} and key {key.shape[-2]}; accepted is one length"),
        )
    return _refuse_heads(query, key, value, enable_gqa)


def _refuse_heads(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> Refusal | None:
    if enable_gqa:
        if min(query.dim(), key.dim(), value.dim()) < 3:
            return Refusal(
                "grouped heads without a head dimension",
                ValueError(
                    f"enable_gqa is True and query, key, value have {query.dim()}, {key.dim()}, {value.dim()} "
                    "dimensions; accepted are three or more: [..., H, L, D]"
                ),
            )
        heads, kv_heads = query.shape[-3], key.shape[-3]
        if kv_heads != value.shape[-3]:
            return Refusal(
                "heads of key and value differ",
                UnsupportedError(f"value has {value.shape[-3]} heads and key {kv_heads}; accepted is one number"),
            )
        if heads != kv_heads and (kv_heads == 0 or heads % kv_heads != 0):
            return Refusal(
                "heads do not divide",
                ValueError(f"query has {heads} heads and key {kv_heads}; accepted is a multiple of the key's heads"),
            )
    if _leading_sizes(query, key, value, enable_gqa) is None:
        hint = "" if enable_gqa else "; grouped heads need enable_gqa=True"
        return Refusal(
            "batch dimensions or heads do not broadcast",
            ValueError(
                f"query, key, value have shapes {list(query.shape)}, {list(key.shape)}, {list(value.shape)}; accepted "
                f"are equal or broadcastable dimensions before the last two{hint}"
            ),
        )
    return None


def _refuse_mask(mask: Tensor, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> Refusal | None:
    if not isinstance(mask, Tensor):
        return Refusal(
            "mask is not a tensor", TypeError(f"attn_mask is a {type(mask).__name__}; accepted is a Tensor or None")
        )
    if mask.is_nested or mask.layout is not torch.strided:
        return Refusal(
            "sparse or nested mask", UnsupportedError("attn_mask is sparse or nested; accepted is a dense strided one")
        )
    if mask.device != query.device:
        return Refusal(
            "mask on another device",
            ValueError(f"attn_mask is on {mask.device} and query on {query.device}; accepted is one device"),
        )
    if mask.dtype is not torch.bool and mask.dtype not in _DTYPES:
        return Refusal(
            "mask dtype not supported",
            TypeError(f"attn_mask has dtype {mask.dtype}; accepted are bool (true takes part) and floating point"),
        )
    if mask.requires_grad and torch.is_grad_enabled():
        return Refusal(
            "mask requires grad",
            UnsupportedError(
                "attn_mask requires grad and its gradient is not implemented; accepted are a detached mask or no_grad()"
            ),
        )
    sizes = _leading_sizes(query, key, value, enable_gqa)
    assert sizes is not None, "operands were checked before the mask"
    full = (*sizes[0], query.shape[-2], key.shape[-2])
    fits = mask.dim() <= len(full) and all(
        n == 1 or n == m for n, m in zip(reversed(mask.shape), reversed(full), strict=False)
    )
    if not fits:
        return Refusal(
            "mask does not broadcast",
            ValueError(f"attn_mask has shape {list(mask.shape)}; accepted is what broadcasts to {list(full)}"),
        )
    return None


def _refuse_scale(scale: float) -> Refusal | None:
    if isinstance(scale, bool) or not isinstance(scale, (float, int, torch.SymFloat, torch.SymInt)):
        return Refusal(
            "scale is not a number", TypeError(f"scale is a {type(scale).__name__}; accepted are a float or None")
        )
    if scale == 0 or not -math.inf < scale < math.inf:
        return Refusal(
            "scale is zero or not finite",
            ValueError(f"scale is {scale}; accepted are finite numbers other than 0, or None for 1 / sqrt(D)"),
        )
    return None


def _broadcast_sizes(*shapes: Sequence[int]) -> tuple[int, ...] | None:
    """The shape that all broadcast to, or None."""
    rank = max(len(shape) for shape in shapes)
    result = []
    for sizes in zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True):
        size = 1
        for n in sizes:
            if n != 1 and size != 1 and n != size:
                return None
            size = size if n == 1 else n
        result.append(size)
    return tuple(result)


def _leading_sizes(
    query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Sizes of all dimensions before the last two (batches, then heads) after broadcasting, or None.

    Returns:
        Those of the queries and of the keys and values. They differ in the heads alone: grouped heads stay few, and so
        does a single key head that broadcasts.
    """
    q, k, v = query.shape[:-2], key.shape[:-2], value.shape[:-2]
    if enable_gqa:
        batch = _broadcast_sizes(q[:-1], k[:-1], v[:-1])
        return None if batch is None else ((*batch, q[-1]), (*batch, k[-1]))
    kv = _broadcast_sizes(k, v)
    full = None if kv is None else _broadcast_sizes(q, kv)
    if kv is None or full is None or not full:
        return None if full is None else (full, full)
    return full, (*full[:-1], kv[-1] if kv else 1)


def _with_rank(tensor: Tensor, rank: int) -> Tensor:
    """A view with dimensions of size 1 put in front."""
    return tensor[(None,) * (rank - tensor.dim())]


def _forward_folded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    scale: float,
    causal: Causal,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor]:
    """Brings operands of any rank to the operator's ``[B, H, L, D]``, as views wherever strides allow it.

    With more than two leading dimensions, the first few become batches and the rest heads. Where grouped heads are
    among them, ``b * Hq + h`` divided by the group size is ``b * Hkv + h // group``, so grouping survives the fold.
    """
    sizes = _leading_sizes(query, key, value, enable_gqa)
    assert sizes is not None, "operands were checked before"
    q_lead, kv_lead = sizes
    rank = max(len(q_lead), 2) + 2
    operands = [
        _with_rank(x.expand(*lead, *x.shape[-2:]), rank)
        for x, lead in ((query, q_lead), (key, kv_lead), (value, kv_lead))
    ]
    if attn_mask is not None:
        operands.append(_with_rank(attn_mask, rank))
    if rank > 4:
        folds = [_Fold(operands, split) for split in range(rank - 3, 0, -1)]
        copies = [fold.copied_elements() for fold in folds]
        operands = folds[copies.index(min(copies))].apply()
    q, k, v = (x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous() for x in operands[:3])
    out, lse = _forward(q, k, v, operands[3] if attn_mask is not None else None, scale, causal)
    shape = (*q_lead, *out.shape[2:])
    return out.reshape(shape), lse.reshape(shape[:-1])


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


def _batch_forward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """``vmap`` over the forward operator: the mapped dimension joins the batch, one launch for all."""
    return _batch(_forward, info.batch_size, in_dims, args, tensors=4)


def _batch_backward(
    info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """``vmap`` over the backward operator, as for ``is_grads_batched`` and vectorised Jacobians."""
    return _batch(_backward, info.batch_size, in_dims, args, tensors=8)


def _batch(
    operator: Callable[..., tuple[Tensor, ...]],
    size: int,
    in_dims: Sequence[int | None],
    args: Sequence[Any],
    tensors: int,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Folds the mapped dimension of the first `tensors` arguments into their batch dimension and calls the operator."""
    mapped = [
        x if x is None else x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(args[:tensors], in_dims, strict=False)
    ]
    batch = mapped[0].shape[1]
    folded = [x if x is None else x.expand(size, batch, *x.shape[2:]).flatten(0, 1) for x in mapped]
    results = operator(*folded, *args[tensors:])
    return tuple(result.unflatten(0, (size, -1)) for result in results), (0,) * len(results)


def _refuse_second_derivatives(ctx: Any, *grads: Tensor) -> None:
    raise UnsupportedError(
        "second derivatives of attention are not supported; accepted are first derivatives. PyTorch's own attention has "
        "them under torch.nn.attention.sdpa_kernel(SDPBackend.MATH), patched or not"
    )


torch.library.register_vmap("mps_flash_attn::attention_forward", _batch_forward)
torch.library.register_vmap("mps_flash_attn::attention_backward", _batch_backward)
torch.library.register_autograd("mps_flash_attn::attention_backward", _refuse_second_derivatives)
