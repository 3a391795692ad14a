"""`flash_attention_with_quantized_kv`: attention to keys and values in 8 or 4 bits a number."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..checks import require_match, require_tensor
from ..quantize.api import QuantizedKV
from ..quantize.formats import FORMATS
from ..strides import dense_rows
from .api import aligned, forward_operator, modifiers_of
from .arguments import Scoring, refuse_mask, refuse_scale, refuse_scoring
from .layout import with_rank
from .problem import Causal
from .sequence_api import refuse_gradients

__all__ = ["flash_attention_with_quantized_kv"]


def flash_attention_with_quantized_kv(
    query: Tensor,
    kv: QuantizedKV,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    causal_alignment: Literal["top-left", "bottom-right"] = "bottom-right",
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention to quantized keys and values: as `flash_attention` of ``kv.dequantize()``, to the bit, without a copy.

    The kernel makes numbers of the dtype of `query` as it loads them. No gradients. What quantization itself costs is
    said by `quantize_kv`: errors of values reach the output as they are, weighted; an error ``e`` of each score changes
    weights by a factor of at most ``exp(2 e)``.

    Args:
        query: ``[B, Hq, Lq, D]``, float32, float16, bfloat16, or float64 on the simulator; ``Hq`` is a multiple of
            ``Hkv``.
        kv: keys and values, as `quantize_kv` makes them. Its ``dtype`` need not be that of `query`.
        attn_mask, is_causal, scale, causal_alignment, window, softcap, alibi_slopes, sinks, return_lse: as in
            `flash_attention`, but that the last query stands at the last key by default.

    Returns:
        ``[B, Hq, Lq, Dv]`` and, with `return_lse`, the log-sum-exp ``[B, Hq, Lq]``.

    Raises:
        TypeError, ValueError: as `flash_attention`, and a `kv` whose parts do not go together.
        UnsupportedError: a tensor that requires grad while gradients are recorded. It is a ``ValueError``.

    Example:
        >>> import torch
        >>> from mps_flash_attn.functional import flash_attention_with_quantized_kv, quantize_kv
        >>> query, (key, value) = torch.randn(1, 8, 1, 64), torch.randn(2, 1, 2, 100, 64)
        >>> kv = quantize_kv(key, value, "int8")
        >>> flash_attention_with_quantized_kv(query, kv).shape
        torch.Size([1, 8, 1, 64])
    """
    require_tensor("query", query)
    if not isinstance(kv, QuantizedKV):
        raise TypeError(f"kv is a {type(kv).__name__}; accepted is a QuantizedKV, as quantize_kv makes it")
    kv.check()
    require_match("kv.key", kv.key, "query", query, dtype=False)
    batch, heads, _, head_size = kv.shape
    if (
        query.dim() != 4
        or query.shape[0] != batch
        or query.shape[3] != head_size
        or heads == 0
        or query.shape[1] % heads
    ):
        raise ValueError(
            f"query has shape {list(query.shape)}; accepted is [{batch}, Hq, Lq, {head_size}] as kv has it, Hq a "
            f"multiple of its {heads} heads"
        )
    causal = aligned(causal_alignment)
    refuse_gradients("quantized keys", query=query, attn_mask=attn_mask, alibi_slopes=alibi_slopes, sinks=sinks)
    scoring = Scoring(0.0, softcap, window, alibi_slopes, sinks, causal is Causal.BOTTOM_RIGHT)
    rows = query.shape[:2]
    refusal = refuse_scoring(scoring, query, query, rows) or (None if scale is None else refuse_scale(scale))
    if attn_mask is not None and refusal is None:
        refusal = refuse_mask(attn_mask, query.device, (*rows, query.shape[2], kv.shape[2]))
    if refusal is not None:
        raise refusal.error
    of = FORMATS[kv.format]
    modifiers = modifiers_of(scoring, query, rows, rows)._replace(
        k_scale=kv.key_scale,
        v_scale=kv.value_scale,
        stored=int(of.stored),
        group_size=kv.group_size if of.in_groups else 0,
    )
    out, lse = forward_operator(
        dense_rows(query),
        kv.key.view(torch.uint8),
        kv.value.view(torch.uint8),
        None if attn_mask is None else with_rank(attn_mask, 4),
        1.0 / math.sqrt(head_size) if scale is None else scale,
        causal if is_causal else Causal.NONE,
        *modifiers,
    )
    out = out[..., : kv.value_head_size]
    return (out, lse) if return_lse else out
