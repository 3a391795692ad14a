"""Few queries against many keys: the keys are cut into parts, heads that share keys are packed, keys are read once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mps_flash_attn.functional import Rotary, flash_attention, rope, rope_tables
from mps_flash_attn.launch import Capabilities
from mps_flash_attn.ops import calls
from mps_flash_attn.ops.attention import function, plan
from mps_flash_attn.ops.attention.cases import Case, Inputs
from mps_flash_attn.ops.attention.expected import NAMES, exact, pytorch
from mps_flash_attn.ops.attention.operands import problem
from mps_flash_attn.ops.attention.problem import Causal
from mps_flash_attn.runtime import base, simulator
from tests.on_gpu import rounding
from tests.ops.attention import assert_as_expected, ours
from tests.ops.test_attention import check
from tests.ops.test_attention_plan import problem as some_problem
from tests.tolerance import assert_accurate


def parts(case: Case, dtype: torch.dtype = torch.float32, capabilities: Capabilities = simulator.CAPABILITIES) -> int:
    return plan.forward_in_parts(problem(case.inputs(dtype, "meta")), capabilities).splits


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case(1, 1000, 64, batch=1, query_heads=8, key_heads=2, causal=Causal.BOTTOM_RIGHT), torch.float16),
        (
            Case(4, 700, 40, batch=2, query_heads=2, key_heads=1, causal=Causal.BOTTOM_RIGHT, layout="transposed"),
            torch.float32,
        ),
        (Case(1, 400, 40, batch=1, query_heads=4, key_heads=1, mask="additive-head", layout="sliced"), torch.bfloat16),
    ],
    ids=str,
)
def test_results_and_gradients(case: Case, dtype: torch.dtype, seed: int) -> None:
    assert parts(case, dtype) > 1
    check(case, dtype)


def test_float64(seed: int) -> None:
    check(Case(2, 300, 40, batch=1, query_heads=2, key_heads=1), torch.float64)


@settings(max_examples=50)
@given(
    st.builds(
        Case,
        queries=st.sampled_from((1, 2, 8)),
        keys=st.integers(256, 700),
        head_size=st.just(40),
        batch=st.integers(1, 2),
        query_heads=st.just(4),
        key_heads=st.sampled_from((1, 2)),
        causal=st.sampled_from(tuple(Causal)),
        layout=st.sampled_from(("contiguous", "transposed", "sliced", "expanded")),
        mask=st.sampled_from(("none", "boolean-keys", "additive", "additive-head", "additive-column")),
    ),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, seed: int) -> None:
    """The forward pass; the backward one does not know of parts."""
    assume(parts(case) > 1)
    torch.manual_seed(seed)
    inputs = case.inputs(torch.float32)
    for name, actual, baseline, expected in zip(NAMES, forward(inputs), pytorch(inputs), exact(inputs), strict=False):
        assert_accurate(f"{name} of {case}", actual, baseline, expected)


@pytest.mark.parametrize("hidden", ["a part", "all"])
def test_parts_in_which_no_key_is_seen(hidden: str, seed: int) -> None:
    inputs = Case(3, 600, 40, batch=1).inputs(torch.float32)
    mask = torch.ones(1, 1, 3, 600, dtype=torch.bool)
    mask[:, :, 1, (slice(200, None) if hidden == "a part" else slice(None))] = False
    inputs = dataclasses.replace(inputs, attn_mask=mask)
    results = ours(inputs)
    assert_as_expected(inputs, results, f" of {hidden}")
    if hidden == "all":
        assert (results[1][:, :, 1] == -torch.inf).all()
        assert not results[0][:, :, 1].any()
        assert not results[2][:, :, 1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_no_finding(dtype: torch.dtype, seed: int) -> None:
    for case in (
        Case(1, 500, 40, batch=1, query_heads=4, key_heads=2, causal=Causal.BOTTOM_RIGHT),
        Case(5, 290, 40, batch=1, layout="sliced", mask="boolean", causal=Causal.TOP_LEFT),
    ):
        assert parts(case, dtype) > 1
        with simulator.check():
            assert not any(x is not None and x.isnan().any() for x in ours(case.inputs(dtype))), (
                "an element was never written"
            )


@pytest.mark.parametrize(
    ("case", "packs"),
    [
        (Case(1, 2048, 64, batch=1, query_heads=8, key_heads=2), True),
        (Case(1, 2048, 64, batch=1, query_heads=8, key_heads=2, causal=Causal.BOTTOM_RIGHT), True),
        (Case(4, 2048, 64, batch=1, query_heads=8, key_heads=2), True),
        (Case(4, 2048, 64, batch=1, query_heads=4, key_heads=2, causal=Causal.BOTTOM_RIGHT), False),
    ],
    ids=str,
)
def test_keys_and_values_are_read_once(case: Case, packs: bool, seed: int) -> None:
    """By all query heads that share them, however many parts there are; else once for each query head."""
    inputs = case.inputs(torch.float16)
    with simulator.profile() as counts:
        out, lse = forward(inputs)
    assert [x.kernel for x in counts.launches] == ["attention_forward", "merge_forward"]
    counted = counts.launches[0].counters
    described = problem(inputs)
    planned = plan.forward_in_parts(described, simulator.CAPABILITIES)
    read_by = 1 if packs else case.query_heads // case.key_heads
    keys_and_values = read_by * (inputs.key.nbytes + inputs.value.nbytes)
    assert counted.device_bytes_read == keys_and_values + planned.splits * inputs.query.nbytes
    assert counted.device_bytes_written == planned.splits * (2 * out.nbytes + lse.nbytes)
    predicted = plan.predicted_traffic(planned.launch, described)
    assert (predicted.read, predicted.written) == (counted.device_bytes_read, counted.device_bytes_written)


def forward(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = function.attention_forward(
        inputs.query, inputs.key, inputs.value, inputs.attn_mask, inputs.scale, int(inputs.causal)
    )
    return out, lse


@pytest.mark.parametrize("cores", [8, 10, 40, 132])
def test_parts_fill_the_device_and_no_more(cores: int) -> None:
    capabilities = Capabilities(cores=cores)
    few = Case(1, 65_536, 64, batch=1, query_heads=8, key_heads=2)
    assert cores <= 2 * parts(few, torch.float16, capabilities) <= 2 * cores
    many = dataclasses.replace(few, batch=cores)
    assert parts(many, torch.float16, capabilities) == 1
    assert parts(dataclasses.replace(few, keys=255), torch.float16, capabilities) == 1
    assert parts(dataclasses.replace(few, queries=4096, keys=4096), torch.float16, capabilities) == 1
    for keys in (256, 300, 1000, 4095):
        planned = plan.forward_in_parts(some_problem(queries=1, keys=keys, batch=1), capabilities)
        assert planned.splits == -(-keys // planned.split_keys)
        assert planned.split_keys % plan.default_tiling(some_problem(), capabilities).block == 0


def test_result_depends_on_the_device_by_rounding_alone(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    inputs = Case(2, 1000, 40, batch=1).inputs(torch.float32)
    results = []
    for cores in (1, 8, 64):
        monkeypatch.setattr(base.load("simulator"), "CAPABILITIES", Capabilities(float64=True, cores=cores))
        calls.forget()
        results.append(forward(inputs))
        assert torch.equal(results[-1][0], forward(inputs)[0])
    calls.forget()
    for out, lse in results[1:]:
        assert (out - results[0][0]).abs().max() <= 1e-6
        assert (lse - results[0][1]).abs().max() <= 1e-5
    assert not torch.equal(results[0][0], results[2][0]), "else the keys were never cut"


def test_new_lengths_compile_nothing() -> None:
    def text(queries: int, keys: int) -> str:
        case = Case(queries, keys, 64, batch=1, query_heads=8, key_heads=2, causal=Causal.BOTTOM_RIGHT)
        return plan.forward_in_parts(problem(case.inputs(torch.float16, "meta")), Capabilities()).launch.text

    assert text(1, 400) == text(1, 1000) == text(1, 100_000)
    assert text(2, 400) == text(3, 1000) == text(8, 100_000)


def test_heads_are_packed_only_where_rows_are_evenly_apart() -> None:
    def heads(case: Case) -> tuple[int, int]:
        which = plan.packed(problem(case.inputs(torch.float32, "meta")))
        return which.query_heads, which.queries

    grouped = Case(1, 30, 16, query_heads=6, key_heads=2)
    assert heads(grouped) == (2, 3)
    assert heads(dataclasses.replace(grouped, layout="transposed")) == (2, 3)
    assert heads(dataclasses.replace(grouped, mask="boolean")) == (2, 3)
    assert heads(dataclasses.replace(grouped, queries=4)) == (2, 12)
    assert heads(dataclasses.replace(grouped, queries=4, mask="additive-head")) == (2, 12)
    assert heads(dataclasses.replace(grouped, queries=4, layout="transposed")) == (6, 4)
    assert heads(dataclasses.replace(grouped, queries=4, causal=Causal.BOTTOM_RIGHT)) == (6, 4)
    assert heads(dataclasses.replace(grouped, causal=Causal.TOP_LEFT)) == (6, 1)
    rotation = plan.Rotation(4, interleaved=False, query_position=29)
    assert plan.packed(some_problem(queries=1, rotation=rotation)).query_heads == 4


@pytest.mark.parametrize("key_heads", [4, 2])
def test_rotary_turns_the_keys_of_every_part(key_heads: int, seed: int) -> None:
    query, key = torch.randn(1, 4, 1, 40), torch.randn(1, key_heads, 500, 40)
    cos, sin = rope_tables(500, 32)
    rotary = Rotary(cos, sin, query_offset=499)
    fused = flash_attention(query, key, key, enable_gqa=True, rotary=rotary)
    query, turned = rope(query, cos=cos[499:], sin=sin[499:]), rope(key, cos=cos, sin=sin)
    apart = flash_attention(query, turned, key, enable_gqa=True)
    assert (fused - apart).abs().max() <= (rounding() if key_heads == 4 else 1e-6)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_step_of_decoding_compiles_and_keeps_pytorchs_rules(seed: int) -> None:
    query, key, value = torch.randn(1, 4, 1, 40), torch.randn(1, 2, 300, 40), torch.randn(1, 2, 300, 40)

    def step(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return flash_attention(query, key, value, is_causal=True, causal_alignment="bottom-right", enable_gqa=True)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for keys in (300, 299):
        assert torch.equal(
            compiled(query, key[:, :, :keys], value[:, :, :keys]), step(query, key[:, :, :keys], value[:, :, :keys])
        )
    operator = torch.ops.mps_flash_attn.attention_forward.default
    torch.library.opcheck(operator, (query.requires_grad_(), key.requires_grad_(), value, None, 0.3, 0))


def test_gradcheck(seed: int) -> None:
    shapes = ((1, 2, 2, 8), (1, 1, 260, 8), (1, 1, 260, 8))
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def attention(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return flash_attention(*tensors, enable_gqa=True, return_lse=True)  # type: ignore[call-overload,no-any-return]

    assert torch.autograd.gradcheck(attention, tensors, fast_mode=True)
