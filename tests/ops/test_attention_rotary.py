"""Attention that turns queries and keys as it loads them: to the bit what `rope` before it gives, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import UnsupportedError, flash_attention, source
from mps_flash_attn.functional import Rotary, rope, rope_tables
from mps_flash_attn.ops.attention import function, plan
from mps_flash_attn.ops.attention.cases import Case
from mps_flash_attn.ops.attention.expected import exact, pytorch
from mps_flash_attn.ops.attention.problem import Causal, Options, describe
from mps_flash_attn.ops.attention.self_checks import self_checks
from mps_flash_attn.ops.rope import reference
from mps_flash_attn.runtime import simulator
from tests.on_gpu import rounding
from tests.tolerance import assert_accurate

#: Each dtype with one pairing, and one with both: few texts to compile.
PAIRINGS = ((torch.float32, False), (torch.float16, False), (torch.float16, True), (torch.bfloat16, True))


def tables(case: Case, pairs: int, interleaved: bool, offset: int) -> Rotary:
    return Rotary(*rope_tables(max(offset + case.queries, case.keys), 2 * pairs), interleaved, offset)


def both(case: Case, dtype: torch.dtype, rotary: Rotary) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """``out lse dq dk dv`` of attention with `rotary`, and of attention after `rope`."""
    inputs = case.inputs(dtype)
    query, key, value = (x.detach().requires_grad_() for x in (inputs.query, inputs.key, inputs.value))
    others: dict[str, Any] = {
        "is_causal": inputs.causal != Causal.NONE,
        "causal_alignment": "bottom-right" if inputs.causal == Causal.BOTTOM_RIGHT else "top-left",
        "scale": inputs.scale,
        "enable_gqa": True,
        "return_lse": True,
    }

    def turned(x: Tensor, first: int) -> Tensor:
        cos, sin = (table[first : first + x.shape[-2]] for table in rotary[:2])
        return rope(x, cos=cos, sin=sin, interleaved=rotary.interleaved)

    def everything(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(outputs, (query, key, value), (inputs.grad_out, inputs.grad_lse))
        return *(x.detach() for x in outputs), *gradients

    fused = everything(flash_attention(query, key, value, inputs.attn_mask, rotary=rotary, **others))
    query_turned, key_turned = turned(query, rotary.query_offset), turned(key, 0)
    return fused, everything(flash_attention(query_turned, key_turned, value, inputs.attn_mask, **others))


def check(case: Case, dtype: torch.dtype, pairs: int, interleaved: bool, offset: int) -> None:
    fused, apart = both(case, dtype, tables(case, pairs, interleaved, offset))
    for name, ours, expected in zip(("out", "lse", "dq", "dk", "dv"), fused, apart, strict=True):
        rounded = rounding() if dtype == torch.float32 else 0.0
        same = torch.allclose(ours, expected, rtol=0, atol=rounded * 8) if rounded else torch.equal(ours, expected)
        assert same, f"{name} of {case}"


@pytest.mark.parametrize(("dtype", "interleaved"), PAIRINGS, ids=str)
def test_same_bits_as_rope_before_attention(dtype: torch.dtype, interleaved: bool, seed: int) -> None:
    check(Case(70, 90, 40, 1, 4, 2, Causal.BOTTOM_RIGHT), dtype, 16, interleaved, 20)
    check(Case(33, 17, 40, causal=Causal.TOP_LEFT, layout="transposed"), dtype, 20, interleaved, 0)


def test_rows_that_registers_do_not_hold(seed: int) -> None:
    check(Case(20, 36, 256, 1, 1, 1), torch.float32, 128, False, 3)


@settings(max_examples=25)
@given(
    st.builds(
        Case,
        queries=st.integers(0, 80),
        keys=st.integers(0, 80),
        head_size=st.just(40),
        batch=st.integers(1, 2),
        query_heads=st.just(2),
        key_heads=st.sampled_from((1, 2)),
        causal=st.just(Causal.TOP_LEFT),
        layout=st.sampled_from(("contiguous", "transposed", "expanded")),
    ),
    st.sampled_from((0, 1, 16, 20)),
    st.sampled_from((0, 50)),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, pairs: int, offset: int, seed: int) -> None:
    torch.manual_seed(seed)
    check(case, torch.float16, pairs, True, offset)


def test_against_float64(seed: int) -> None:
    """Not by way of `rope`: the reference turns, attends and turns the gradients back in float64."""
    inputs = Case(50, 60, 40, 1, causal=Causal.TOP_LEFT).inputs(torch.float32)
    rotary = Rotary(*rope_tables(60, 40, dtype=torch.float64), query_offset=10)

    def turned(x: Tensor, first: int, sign: int = 1) -> Tensor:
        cos, sin = (table[first : first + x.shape[-2]].to(x.dtype) for table in rotary[:2])
        return reference.rope(x, cos, sign * sin, rotary.interleaved)

    results = []
    for compute, dtype in ((exact, torch.float64), (pytorch, torch.float32)):
        changed = type(inputs)(
            **{**vars(inputs), "query": turned(inputs.query.to(dtype), 10), "key": turned(inputs.key.to(dtype), 0)}
        )
        out, lse, dq, dk, dv, *_ = compute(changed)
        results.append((out, lse, turned(dq, 10, -1), turned(dk, 0, -1), dv))
    query, key, value = (x.detach().requires_grad_() for x in (inputs.query, inputs.key, inputs.value))
    outputs = flash_attention(query, key, value, is_causal=True, rotary=rotary, scale=inputs.scale, return_lse=True)
    gradients = torch.autograd.grad(outputs, (query, key, value), (inputs.grad_out, inputs.grad_lse))
    for name, ours, expected, baseline in zip(
        ("out", "lse", "dq", "dk", "dv"), (*(x.detach() for x in outputs), *gradients), *results, strict=True
    ):
        assert_accurate(name, ours, baseline, expected)


def test_gradcheck(seed: int) -> None:
    query, key, value = (torch.randn(1, 2, n, 8, dtype=torch.float64, requires_grad=True) for n in (5, 6, 6))
    rotary = Rotary(*rope_tables(8, 6, dtype=torch.float64), True, 2)
    assert torch.autograd.gradcheck(lambda *x: flash_attention(*x, rotary=rotary), (query, key, value))


def test_one_query_at_a_time_with_a_cache_of_keys(seed: int) -> None:
    query, key, value = torch.randn(3, 1, 2, 12, 40)
    rotary = Rotary(*rope_tables(12, 40))
    whole = flash_attention(query, key, value, is_causal=True, rotary=rotary)
    for length in (1, 7, 12):
        last = rotary._replace(query_offset=length - 1)
        first = query[:, :, length - 1 : length], key[:, :, :length], value[:, :, :length]
        out = flash_attention(*first, is_causal=True, causal_alignment="bottom-right", rotary=last)
        assert (out - whole[:, :, length - 1 : length]).abs().max() <= 1e-6


@pytest.mark.parametrize(("dtype", "interleaved"), PAIRINGS[::3] + PAIRINGS[1:2], ids=str)
def test_no_finding(dtype: torch.dtype, interleaved: bool, seed: int) -> None:
    query, key, value = (torch.randn(1, heads, n, 40).to(dtype) for heads, n in ((2, 70), (1, 50), (1, 50)))
    rest = (0.3, int(Causal.TOP_LEFT), *rope_tables(75, 32), interleaved, 5)
    with simulator.check():
        out, lse = function.attention_forward(query, key, value, None, *rest)
        gradients = function.attention_backward(
            torch.randn_like(out), lse, query, key, value, None, out, lse, False, *rest
        )
    assert not any(x.isnan().any() for x in (out, lse, *gradients)), "an element was never written"


def test_device_bytes_are_those_the_plan_predicts(seed: int) -> None:
    case = Case(100, 130, 40, 2, causal=Causal.TOP_LEFT)
    inputs, (cos, sin) = case.inputs(torch.float32), rope_tables(130, 32)
    arguments = (inputs.query, inputs.key, inputs.value, None)
    rest = (inputs.scale, int(inputs.causal), cos, sin, False, 0)
    with simulator.profile() as counts:
        out, lse = function.attention_forward(*arguments, *rest)
        dq, dk, dv, *_ = function.attention_backward(
            inputs.grad_out, inputs.grad_lse, *arguments, out, lse, False, *rest
        )
    outputs = {"out": out, "grad_out": inputs.grad_out, "dq": dq, "dk": dk, "dv": dv}
    rotation = plan.Rotation(16, interleaved=False, query_position=0)
    problem = describe(*arguments, Options(inputs.scale, int(inputs.causal), rotation), **outputs)
    launches = (
        plan.forward(problem, simulator.CAPABILITIES),
        *plan.backward(problem, simulator.CAPABILITIES, True),
    )
    kernels = [record.kernel for record in counts.launches]
    assert kernels == [*(launch.kernel for launch in launches), "rope_forward", "rope_forward"]
    for record, launch in zip(counts.launches, launches, strict=False):
        predicted = plan.predicted_traffic(launch, problem)
        for counted, expected in (
            (record.counters.device_bytes_read, predicted.read),
            (record.counters.device_bytes_written, predicted.written),
        ):
            assert abs(counted - expected) <= 0.1 * expected, f"{launch.kernel}: {counted} bytes, predicted {expected}"


def test_the_doctor_notices_a_wrong_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    specialise = source.specialise
    monkeypatch.setattr(
        source, "specialise", lambda *args: specialise(*args).replace("u * turn.cosine - v", "u * turn.cosine + v")
    )
    checks = [x for x in self_checks(simulator.CAPABILITIES) if "rotary" in x.problem and x.dtype == torch.float32]
    passed = {x.launch.kernel: x.measure(simulator, "cpu").passed for x in checks}
    turning = ("attention_forward", "attention_backward_dq", "attention_backward_dkv")
    assert passed == {**dict.fromkeys(turning, False), "attention_backward_delta": True}


def test_operators_keep_pytorchs_rules(seed: int) -> None:
    query, key, value = (torch.randn(2, 2, n, 40, requires_grad=True) for n in (5, 6, 6))
    rest = (0.3, int(Causal.TOP_LEFT), *rope_tables(8, 32), False, 3)
    torch.library.opcheck(torch.ops.mps_flash_attn.attention_forward.default, (query, key, value, None, *rest))
    query, key, value = (x.detach() for x in (query, key, value))
    out, lse = function.attention_forward(query, key, value, None, *rest)
    torch.library.opcheck(
        torch.ops.mps_flash_attn.attention_backward.default,
        (torch.randn_like(out), None, query, key, value, None, out, lse, False, *rest),
    )


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(seed: int, dynamic: bool) -> None:
    rotary = Rotary(*rope_tables(20, 32))

    def model(query: Tensor) -> Tensor:
        return flash_attention(query, query, query, is_causal=True, rotary=rotary).square().sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (7, 9):
        plain = torch.randn(1, 2, length, 40, requires_grad=True)
        other = plain.detach().clone().requires_grad_()
        model(plain).backward()
        compiled(other).backward()
        assert plain.grad is not None
        assert other.grad is not None
        assert torch.equal(plain.grad, other.grad)


def test_vmap_shares_tables(seed: int) -> None:
    query, (cos, sin) = torch.randn(3, 1, 2, 7, 40), rope_tables(7, 40)
    mapped = torch.vmap(lambda x: flash_attention(x, x, x, is_causal=True, rotary=Rotary(cos, sin)))(query)
    assert torch.equal(
        mapped[1], flash_attention(query[1], query[1], query[1], is_causal=True, rotary=Rotary(cos, sin))
    )
    with pytest.raises(UnsupportedError, match="rotary or dropout differs between the calls of a vmap"):
        torch.vmap(lambda x, c: flash_attention(x, x, x, rotary=Rotary(c, sin)))(query, cos.expand(3, 7, 20))


def test_autocast_and_other_dtypes_of_tables(seed: int) -> None:
    query, rotary = torch.randn(1, 2, 7, 40), Rotary(*rope_tables(7, 40), True)
    half = Rotary(rotary.cos.bfloat16(), rotary.sin.bfloat16(), True)
    widened = Rotary(half.cos.float(), half.sin.float(), True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = flash_attention(query, query, query, is_causal=True, rotary=half)
    low = query.bfloat16()
    assert torch.equal(out, flash_attention(low, low, low, is_causal=True, rotary=widened))


X = torch.zeros(1, 2, 7, 40)
T = torch.zeros(9, 20)
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "type": (lambda: (T, T), TypeError, "rotary is a tuple; accepted are a Rotary or None"),
    "table type": (lambda: Rotary(T, None), TypeError, "rotary.sin is a NoneType; accepted is a Tensor"),  # type: ignore[arg-type]
    "table dtype": (lambda: Rotary(T.int(), T), TypeError, "rotary.cos has dtype torch.int32"),
    "table device": (lambda: Rotary(T, T.to("meta")), ValueError, "rotary.sin is on meta and query on cpu"),
    "too few rows": (lambda: Rotary(T[:6], T[:6]), ValueError, "rotary.cos has shape [6, 20]; accepted is [P, R / 2]"),
    "too few rows for the offset": (lambda: Rotary(T, T, query_offset=3), ValueError, "with P at least 10 and R"),
    "too wide": (lambda: Rotary(*torch.zeros(2, 9, 21)), ValueError, "rotary.cos has shape [9, 21]; accepted"),
    "they differ": (lambda: Rotary(T, T[:, 1:]), ValueError, "rotary.sin has shape [9, 19]; accepted"),
    "rank": (lambda: Rotary(T[None], T[None]), ValueError, "rotary.cos has shape [1, 9, 20]"),
    "offset": (lambda: Rotary(T, T, query_offset=-1), ValueError, "rotary.query_offset is -1; accepted are 0 and more"),
    "offset type": (lambda: Rotary(T, T, query_offset=1.0), TypeError, "rotary.query_offset is a float"),  # type: ignore[arg-type]
    "requires grad": (
        lambda: Rotary(T, T.clone().requires_grad_()),
        UnsupportedError,
        "rotary.sin requires grad and its gradient is not implemented",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_named(name: str, assert_refused: Callable[..., None]) -> None:
    make, error, words = BAD[name]
    assert_refused(lambda: flash_attention(X, X, X, rotary=make()), error, words)


def test_operators_refuse_tables_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"cos has shape \(6, 20\); accepted: \[P, R / 2\] with P >= 7"):
        function.attention_forward(X, X, X, None, 1.0, 0, T[:6], T[:6])
    with pytest.raises(TypeError, match=r"sin is torch.float64 on cpu; accepted: contiguous torch.float32"):
        function.attention_forward(X, X, X, None, 1.0, 0, T, T.double())
