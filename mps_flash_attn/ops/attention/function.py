"""The attention operators ``torch.ops.mps_flash_attn.attention_{forward,backward}``: launches, fakes and autograd.

Both take ``query [B, Hq, Lq, D]``, ``key [B, Hkv, Lk, D]`` and ``value [B, Hkv, Lk, Dv]`` with any strides but 1 in the
last dimension, and an ``attn_mask`` that broadcasts to ``[B, Hq, Lq, Lk]``. A call that was made before with the same
shapes and strides costs a dictionary look-up beyond its launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ... import launch, tune
from ...errors import UnsupportedError
from ...launch import Launch, Runtime
from ...runtime.base import for_device
from ..calls import PreparedCalls, geometry, shortcut
from ..dtypes import accumulator_dtype
from ..merge import function as merging
from ..merge import plan as merging_plan
from ..rope.function import turn_back
from . import plan
from .problem import NO_CACHE, TENSORS, Modifiers, Options, describe, empty_output, read_modifiers, value_columns
from .sequences import Table

__all__ = ["attention_backward", "attention_forward", "backward", "save_for_backward"]

#: A mask, tables of cosines and sines, slopes, sinks, a seed and a table of sequences: what a call may lack.
_Extras = tuple["Tensor | None", ...]
#: With whether every query belongs to a sequence.
_ForwardCall = Callable[[Tensor, Tensor, Tensor, _Extras, bool], "tuple[Tensor, Tensor]"]
_BackwardCalls = tuple[launch.BoundLaunch, launch.BoundLaunch, launch.BoundLaunch, "launch.BoundLaunch | None"]

_Plan = TypeVar("_Plan")


_forward_calls = PreparedCalls[_ForwardCall]()
_backward_calls = PreparedCalls[_BackwardCalls]()
_merges = PreparedCalls[launch.BoundLaunch]()


def _planned(
    kernel: plan.Kernel, problem: plan.Problem, device: torch.device, make: Callable[[plan.Tiling | None], _Plan]
) -> _Plan:
    """The kernel's plan with the tiling that was tuned for such problems, if any."""
    return tune.planned(f"attention_{kernel.name}", plan.shape_class(problem), problem.dtype, device, plan.Tiling, make)


def _planned_walk(kernel: plan.Kernel, problem: plan.Problem, runtime: Runtime, device: torch.device) -> Launch:
    return _planned(kernel, problem, device, lambda tiling: plan.walk(problem, runtime.CAPABILITIES, kernel, tiling))


def _rows(table: Table | None) -> Tensor | None:
    return None if table is None else table.rows


_MODIFIERS = (
    "Tensor? cos=None, Tensor? sin=None, bool interleaved=False, SymInt query_position=0, "
    "Tensor? alibi_slopes=None, Tensor? sinks=None, Tensor? seed=None, float dropout_p=0.0, float softcap=0.0, "
    "SymInt window_left=-1, SymInt window_right=-1, bool bottom_right=False, Tensor? cu_seqlens_q=None, "
    "Tensor? cu_seqlens_k=None, Tensor? seqused_k=None, Tensor? cache_batch_idx=None, Tensor? cache_leftpad=None, "
    "SymInt appended=0, Tensor? block_table=None, Tensor? k_scale=None, Tensor? v_scale=None, int stored=0, "
    "int group_size=0"
)
_FORWARD = (
    "(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, float scale, SymInt causal, "
    f"{_MODIFIERS}) -> (Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor out, "
    f"Tensor lse, bool mask_gradient, float scale, SymInt causal, {_MODIFIERS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _prepare_forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, options: Options
) -> _ForwardCall:
    runtime = for_device(query.device.type)
    problem = describe(
        query, key, value, attn_mask, options, out=empty_output(query, value_columns(value, options.cache.stored))
    )
    columns = problem.value_head_size
    lse_shape, dtype, device = tuple(query.shape[:3]), accumulator_dtype(query.dtype), query.device
    nothing_to_do, no_keys = query.numel() == 0, key.numel() == 0 and options.sequences is None
    planned = _planned(
        plan.FORWARD,
        problem,
        device,
        lambda tiling: plan.forward_in_parts(problem, runtime.CAPABILITIES, tiling),
    )
    bound = launch.bind(planned.launch, runtime)
    merge = None
    if planned.splits > 1:  # the same for any number of keys
        of = (planned.splits, geometry(query), columns)
        merge = _merges.prepared(of, _prepare_merge, planned.splits, query, columns, runtime)

    def call(query: Tensor, key: Tensor, value: Tensor, extras: _Extras, whole: bool) -> tuple[Tensor, Tensor]:
        out = launch.poisoned(empty_output(query, columns), runtime)
        lse = launch.empty(lse_shape, dtype, device, runtime)
        if no_keys:
            sinks = extras[4]
            return out.zero_(), lse.fill_(-torch.inf) if sinks is None else lse.copy_(sinks[:, :, None])
        if nothing_to_do:
            return out, lse
        read = (query, key, value, *(query if x is None else x for x in extras))
        if not whole:
            out.zero_(), lse.fill_(-torch.inf)
        if merge is None:
            bound(*read, out, lse)
            return out, lse
        outs, lses = _parts(planned.splits, query, columns, runtime)
        if not whole:
            outs.zero_(), lses.fill_(-torch.inf)
        bound(*read, outs, lses)
        merge(outs, outs[1:], lses, lses[1:], out, lse)
        return out, lse

    return call


def _parts(splits: int, query: Tensor, columns: int, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Room for the results of parts of the keys, ``[S, B, Hq, Lq, Dv]`` and ``[S, B, Hq, Lq]``."""
    dtype, shape = accumulator_dtype(query.dtype), (splits, *query.shape[:3], columns)
    outs = launch.empty(shape, dtype, query.device, runtime)
    return outs, launch.empty(shape[:-1], dtype, query.device, runtime)


def _prepare_merge(splits: int, query: Tensor, columns: int, runtime: Runtime) -> launch.BoundLaunch:
    """Merges parts into results that lie as those of a call; takes parts, those from the second on, and results."""
    outs, lses = _parts(splits, query, columns, runtime)
    problem = merging.describe(outs[0], lses[0], outs[1:], lses[1:], empty_output(query, columns), lses[0])
    return launch.bind(merging_plan.forward(problem, runtime.CAPABILITIES), runtime)


@torch.library.custom_op("mps_flash_attn::attention_forward", mutates_args=(), schema=_FORWARD)
def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float, causal: int, *modifiers: Any
) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scores.

    Args:
        query: ``[B, Hq, Lq, D]``.
        key, value: ``[B, Hkv, Lk, D]`` and ``[B, Hkv, Lk, Dv]``; query head ``h`` uses head ``h // (Hq / Hkv)``.
        attn_mask: boolean (true takes part) or additive, broadcast to ``[B, Hq, Lq, Lk]``.
        scale: factor of the scores.
        causal: a `Causal`.
        modifiers: those of `Modifiers`.

    Returns:
        ``out [B, Hq, Lq, Dv]``, which lies as ``query`` does, and ``lse [B, Hq, Lq]``, natural logarithm, float32
        (float64 for float64).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not go together.
        UnsupportedError: a problem that no plan serves.
    """
    named, options, table = read_modifiers(modifiers, query, key, value, scale, causal)
    mask = None if attn_mask is None else geometry(attn_mask)
    problem = (geometry(query), geometry(key), geometry(value), mask, options)
    call = _forward_calls.prepared(problem, _prepare_forward, query, key, value, attn_mask, options)
    scores = (attn_mask, named.cos, named.sin, named.alibi_slopes, named.sinks, named.seed)
    extras = (*scores, _rows(table), named.block_table, named.k_scale, named.v_scale)
    return call(query, key, value, extras, table is None or table.all_queries)


def _prepare_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    options: Options,
    others: dict[str, Tensor],
    lse_gradient: bool,
    mask_gradient: bool,
) -> _BackwardCalls:
    runtime, device = for_device(query.device.type), query.device
    described = describe(query, key, value, attn_mask, options, **others)
    return (
        launch.bind(plan.delta(described, runtime.CAPABILITIES, lse_gradient), runtime),
        launch.bind(_planned_walk(plan.BACKWARD_DQ, described, runtime, device), runtime),
        launch.bind(_planned_walk(plan.BACKWARD_DKV, described, runtime, device), runtime),
        launch.bind(plan.on_mask(described, runtime.CAPABILITIES), runtime) if mask_gradient else None,
    )


@torch.library.custom_op("mps_flash_attn::attention_backward", mutates_args=(), schema=_BACKWARD)
def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    mask_gradient: bool,
    scale: float,
    causal: int,
    *modifiers: Any,
) -> tuple[Tensor, ...]:
    """Gradients of `attention_forward` from its inputs, its outputs and their gradients.

    Args:
        grad_out: like ``out``; made contiguous where its last dimension is strided.
        grad_lse: ``[B, Hq, Lq]`` or ``None`` for zeros.
        mask_gradient: whether that of an additive ``attn_mask`` is wanted.

    Returns:
        ``dq``, ``dk``, ``dv`` like ``query``, ``key``, ``value``; ``dmask`` of the mask's shape, contiguous, or empty;
        ``dsinks`` like ``sinks``, or empty.
    """
    shape = (*query.shape[:3], value.shape[3])
    for name, tensor in (("grad_out", grad_out), ("out", out)):
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted: [B, Hq, Lq, Dv], {shape}")
    if lse.shape != query.shape[:3] or lse.dtype != accumulator_dtype(query.dtype):
        raise ValueError(f"lse is {lse.dtype} of shape {tuple(lse.shape)}; accepted: that of attention_forward")
    if grad_lse is not None and (grad_lse.shape != lse.shape or grad_lse.dtype != lse.dtype):
        raise ValueError(f"grad_lse is {grad_lse.dtype} of shape {tuple(grad_lse.shape)}; accepted: that of lse")
    if mask_gradient and (attn_mask is None or attn_mask.dtype == torch.bool):
        raise ValueError("mask_gradient is True; accepted: False, or an additive attn_mask")
    named, options, table = read_modifiers(modifiers, query, key, value, scale, causal)
    if named.cache_batch_idx is not None or named.cache_leftpad is not None or options.cache != NO_CACHE:
        raise UnsupportedError("attention with a cache has no gradient")
    if grad_out.stride(3) != 1:
        grad_out = grad_out.contiguous()
    lse, grad_lse = lse.contiguous(), None if grad_lse is None else grad_lse.contiguous()
    runtime = for_device(query.device.type)
    dq, dk, dv = (launch.empty_like(x, runtime) for x in (query, key, value))
    delta = launch.empty_like(lse, runtime)
    dmask = query.new_empty(0)
    if mask_gradient and attn_mask is not None:
        dmask = launch.empty(tuple(attn_mask.shape), attn_mask.dtype, query.device, runtime)
    if query.numel() == 0 or key.numel() == 0:
        dsinks = _sink_gradient(named.sinks, lse, lse.new_zeros(()) if grad_lse is None else -grad_lse, table)
        return dq.zero_(), dk.zero_(), dv.zero_(), dmask.zero_(), dsinks

    if table is not None and not table.all_queries:
        dq.zero_()
    if table is not None and not table.all_keys:
        dk.zero_(), dv.zero_()
    tensors = {"out": out, "grad_out": grad_out, "dq": dq, "dk": dk, "dv": dv}
    inputs = (query, key, value, *tensors.values())
    masks = () if attn_mask is None else (attn_mask,)
    problem = (tuple(map(geometry, (*inputs, *masks))), options, grad_lse is None, mask_gradient)
    run_delta, run_dq, run_dkv, run_dmask = _backward_calls.prepared(
        problem, _prepare_backward, query, key, value, attn_mask, options, tensors, grad_lse is not None, mask_gradient
    )
    run_delta(out, grad_out, lse if grad_lse is None else grad_lse, lse, delta)
    extras = (attn_mask, named.cos, named.sin, named.alibi_slopes, named.seed, _rows(table))
    read = (query, key, value, *(query if x is None else x for x in extras), grad_out, lse, delta)
    run_dq(*read, dq)
    run_dkv(*read, dk, dv)
    if run_dmask is not None:
        run_dmask(*read, dmask)
    if named.cos is not None and named.sin is not None and named.cos.numel():  # dq and dk are of what was turned
        for gradient, first in ((dq, named.query_position), (dk, 0)):
            rows = slice(first, first + gradient.shape[2])
            turn_back(gradient, named.cos[rows], named.sin[rows], named.interleaved)
    return dq, dk, dv, dmask, _sink_gradient(named.sinks, lse, delta, table)


def _sink_gradient(sinks: Tensor | None, lse: Tensor, delta: Tensor, table: Table | None) -> Tensor:
    """That of sinks ``[B, Hq]``: a sink has no value, so its ``dS = P (0 - delta)``, summed over the queries."""
    if sinks is None:
        return lse.new_empty(0)
    if table is not None and table.shape.of_queries:
        delta = delta.expand_as(lse)
        rows = [
            _sink_gradient(sinks[n : n + 1], lse[:, :, first:end], delta[:, :, first:end], None)
            for n, (first, end) in enumerate(table.query_bounds)
        ]
        return torch.cat(rows) if rows else torch.zeros_like(sinks)
    weights = torch.exp(sinks[:, :, None] - lse).masked_fill(lse == -torch.inf, 0)
    return -(weights * delta).sum(2)


#: ``torch.ops.mps_flash_attn.attention_backward``.
backward_operator = shortcut(torch.ops.mps_flash_attn.attention_backward.default, attention_backward._init_fn)


@attention_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float, causal: int, *modifiers: Any
) -> tuple[Tensor, Tensor]:
    columns = value_columns(value, Modifiers(*modifiers).stored)
    return empty_output(query, columns), query.new_empty(query.shape[:3], dtype=accumulator_dtype(query.dtype))


@attention_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    mask_gradient: bool,
    scale: float,
    causal: int,
    *modifiers: Any,
) -> tuple[Tensor, ...]:
    sinks = Modifiers(*modifiers).sinks
    dmask = query.new_empty(0) if attn_mask is None or not mask_gradient else attn_mask.new_empty(attn_mask.shape)
    dsinks = lse.new_empty(0) if sinks is None else torch.empty_like(sinks)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), dmask, dsinks


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, attn_mask, ctx.scale, ctx.causal, *modifiers = inputs
    ctx.set_materialize_grads(False)
    ctx.numbers = None
    if not modifiers:
        ctx.save_for_backward(query, key, value, attn_mask, *output)
        return
    named = Modifiers(*modifiers)
    none: dict[str, Any] = dict.fromkeys(TENSORS)
    ctx.numbers = named._replace(**none)
    ctx.save_for_backward(query, key, value, attn_mask, *output, *(getattr(named, name) for name in TENSORS))


def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, attn_mask, out, lse, *tensors = ctx.saved_tensors
    modifiers = ctx.numbers and ctx.numbers._replace(**dict(zip(TENSORS, tensors, strict=True)))
    before_sinks = 6 + Modifiers._fields.index("sinks")
    after_sinks = 5 + len(Modifiers._fields) - before_sinks
    if grad_out is None and grad_lse is None:
        return (None,) * (before_sinks + 1 + after_sinks)
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    wants_mask = ctx.needs_input_grad[3]
    dq, dk, dv, dmask, dsinks = backward_operator(
        grad_out,
        grad_lse,
        query,
        key,
        value,
        attn_mask,
        out,
        lse,
        wants_mask,
        ctx.scale,
        ctx.causal,
        *(modifiers or ()),
    )
    dmask, dsinks = dmask if wants_mask else None, dsinks if modifiers and modifiers.sinks is not None else None
    return dq, dk, dv, dmask, *(None,) * (before_sinks - 4), dsinks, *(None,) * after_sinks


attention_forward.register_autograd(backward, setup_context=save_for_backward)
