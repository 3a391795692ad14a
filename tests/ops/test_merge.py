"""Merging partial attentions: against float64 and against attention over all keys, rows without keys, bad arguments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import UnsupportedError
from mps_flash_attn.functional import flash_attention, merge_attention
from mps_flash_attn.launch import Capabilities
from mps_flash_attn.ops.layouts import LayoutName
from mps_flash_attn.ops.merge import plan
from mps_flash_attn.ops.merge.cases import Case, Inputs
from mps_flash_attn.ops.merge.expected import NAMES, exact, pytorch
from mps_flash_attn.ops.merge.function import describe, merge_backward, merge_forward
from mps_flash_attn.runtime import simulator
from tests.tolerance import assert_accurate

forward = torch.ops.mps_flash_attn.merge_forward.default
backward = torch.ops.mps_flash_attn.merge_backward.default


def ours(inputs: Inputs) -> tuple[Tensor, ...]:
    """The results and gradients from the kernels, in the order of `NAMES`."""
    tensors = inputs.first, inputs.first_lse, inputs.others, inputs.others_lse
    results = merge_forward(*tensors, inputs.grad_out.dtype)
    return *results, *merge_backward(inputs.grad_out, inputs.grad_lse, *tensors)


def check(case: Case, dtype: torch.dtype, result: torch.dtype | None = None) -> None:
    inputs = case.inputs(dtype, result)
    for name, actual, baseline, expected in zip(NAMES, ours(inputs), pytorch(inputs), exact(inputs), strict=True):
        assert_accurate(f"{name} of {case} in {dtype}", actual, baseline, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_results_and_gradients(dtype: torch.dtype, seed: int) -> None:
    check(Case((2, 3, 20, 64), layout="transposed"), dtype)
    check(Case((2, 33, 64), parts=5, unseen=0.3, spread=20), dtype)


def test_float64(seed: int) -> None:
    inputs = Case((2, 33, 64), parts=5, unseen=0.3, spread=20).inputs(torch.float64)
    for name, actual, expected in zip(NAMES, ours(inputs), exact(inputs), strict=True):
        assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("result", [torch.float16, torch.bfloat16], ids=str)
def test_parts_in_float32_and_a_result_in_half(result: torch.dtype, seed: int) -> None:
    check(Case((9, 64), parts=9, unseen=0.2), torch.float32, result)


@given(
    st.builds(
        Case,
        shape=st.lists(st.sampled_from((0, 1, 2, 5)), max_size=5).flatmap(
            lambda lead: st.sampled_from((1, 17, 64)).map(lambda size: (*lead, size))
        ),
        parts=st.integers(1, 4),
        layout=st.sampled_from(("contiguous", "transposed", "sliced", "expanded")),
        spread=st.sampled_from((1.0, 50.0)),
        unseen=st.sampled_from((0.0, 0.5)),
    ),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    check(case, torch.float32)


@pytest.mark.parametrize(("step", "pack"), [(8, 4), (9, 1), (12, 4)])
def test_parts_are_read_in_packs_where_all_of_them_are_aligned(step: int, pack: int, seed: int) -> None:
    inputs = Case((1, 8), parts=3).inputs(torch.float32)
    others = torch.randn(2 * step).as_strided((2, 1, 8), (step, 8, 1)).copy_(inputs.others)
    tensors = inputs.first, inputs.first_lse, others, inputs.others_lse
    for actual, expected in zip(merge_forward(*tensors, torch.float32), ours(inputs)[:2], strict=True):
        assert torch.equal(actual, expected)
    launch = plan.forward(describe(*tensors, inputs.grad_out, inputs.grad_lse), Capabilities())
    assert dict(launch.defines)["PACK"] == pack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_chunks_of_keys_give_the_attention_over_all(dtype: torch.dtype, seed: int) -> None:
    """Out, lse and gradients; the chunks of a causal mask from the top left leave rows without keys."""
    tensors = [torch.randn(1, 2, 30, 40, dtype=dtype).requires_grad_() for _ in range(3)]
    grad_out, grad_lse = torch.randn(1, 2, 30, 40, dtype=dtype), torch.randn(1, 2, 30)
    mask = torch.ones(30, 30, dtype=torch.bool).tril()

    def whole(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return flash_attention(query, key, value, is_causal=True, return_lse=True)

    def merged(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        chunks = [
            flash_attention(query, key[:, :, keys], value[:, :, keys], mask[:, keys], return_lse=True)
            for keys in (slice(20, 30), slice(7), slice(7, 20))
        ]
        return merge_attention(*merge_attention(*chunks[0], *chunks[1]), *chunks[2])

    def everything(attention: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        out, lse = attention(*tensors)
        return out, lse, *torch.autograd.grad((out, lse), tensors, (grad_out, grad_lse))

    for name, actual, expected in zip(
        ("out", "lse", "dq", "dk", "dv"), everything(merged), everything(whole), strict=True
    ):
        tolerance = 8 * torch.finfo(actual.dtype).eps * float(expected.detach().abs().max())
        assert (actual - expected).abs().max() <= tolerance, name


def test_a_part_without_keys_is_not_looked_at(seed: int) -> None:
    out, lse = torch.randn(3, 24, requires_grad=True), torch.randn(3, requires_grad=True)
    nothing = torch.full((3, 24), torch.nan, requires_grad=True)
    unseen = torch.full((3,), -torch.inf, requires_grad=True)
    for pairs in ((out, lse, nothing, unseen), (nothing, unseen, out, lse)):
        merged = merge_attention(*pairs)
        assert torch.equal(merged[0], out)
        assert (merged[1] - lse).abs().max() <= 1e-6
        grads = torch.autograd.grad(merged, (out, lse, nothing, unseen), (torch.ones(3, 24), torch.ones(3)))
        assert torch.equal(grads[0], torch.ones(3, 24))
        assert (grads[1] - 1).abs().max() <= 1e-5
        assert not grads[2].any()
        assert not grads[3].any()


def test_no_part_with_keys_gives_zero(seed: int) -> None:
    nothing = torch.full((3, 24), torch.nan, requires_grad=True)
    unseen = torch.full((3,), -torch.inf, requires_grad=True)
    out, lse = merge_attention(nothing, unseen, nothing, unseen)
    assert torch.equal(out, torch.zeros(3, 24))
    assert torch.equal(lse, torch.full((3,), -torch.inf))
    garbage = torch.full((3,), torch.nan)
    for grad in torch.autograd.grad((out, lse), (nothing, unseen), (torch.ones(3, 24), garbage)):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_not_a_number_stays_in_its_row(seed: int) -> None:
    inputs = Case((4, 24)).inputs(torch.float32)
    inputs.first_lse[1], inputs.others[0, 2, 5] = torch.nan, torch.nan
    out, lse = ours(inputs)[:2]
    assert out.isnan().sum(1).tolist() == [0, 24, 1, 0]
    assert lse.isnan().tolist() == [False, True, False, False]


def test_gradcheck(seed: int) -> None:
    inputs = Case((2, 3, 5), parts=2).inputs(torch.float64)
    pairs = inputs.first, inputs.first_lse, inputs.others[0].clone(), inputs.others_lse[0].clone()
    assert torch.autograd.gradcheck(merge_attention, [x.requires_grad_() for x in pairs])
    many = Case((3, 5), parts=4).inputs(torch.float64)
    tensors = [x.requires_grad_() for x in (many.first, many.first_lse, many.others, many.others_lse)]
    assert torch.autograd.gradcheck(lambda *x: forward(*x, torch.float64), tensors)


@pytest.mark.parametrize("used", ["out", "lse"])
def test_gradient_of_one_result(used: str, seed: int) -> None:
    inputs = Case((4, 24)).inputs(torch.float32)
    tensors = [x.requires_grad_() for x in (inputs.first, inputs.first_lse, inputs.others, inputs.others_lse)]
    out, lse = forward(*tensors, torch.float32)
    zero = "grad_lse" if used == "out" else "grad_out"
    gradient = inputs.grad_out if used == "out" else inputs.grad_lse
    grads = torch.autograd.grad(out if used == "out" else lse, tensors, gradient)
    setting = Inputs(**{**{k: x.detach() for k, x in vars(inputs).items()}, zero: torch.zeros_like(vars(inputs)[zero])})
    for name, actual, baseline, expected in zip(
        NAMES[2:], grads, pytorch(setting)[2:], exact(setting)[2:], strict=True
    ):
        assert_accurate(name, actual, baseline, expected)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
def test_operators_keep_pytorchs_rules(layout: LayoutName, seed: int) -> None:
    inputs = Case((3, 5, 24), 3, layout=layout).inputs(torch.float32, torch.float16)
    tensors = inputs.first, inputs.first_lse, inputs.others, inputs.others_lse
    torch.library.opcheck(forward, (*(x.detach().requires_grad_() for x in tensors), torch.float16))
    for grad_lse in (None, inputs.grad_lse):
        torch.library.opcheck(backward, (inputs.grad_out, grad_lse, *tensors))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool, seed: int) -> None:
    def loss(*pairs: Tensor) -> Tensor:
        out, lse = merge_attention(*pairs)
        return out.square().sum() + lse.sin().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (5, 6):
        inputs = Case((rows, 24)).inputs(torch.float32)
        plain = [x.requires_grad_() for x in (inputs.first, inputs.first_lse)]
        copies = [x.detach().clone().requires_grad_() for x in plain]
        loss(*plain, inputs.others[0], inputs.others_lse[0]).backward()
        compiled(*copies, inputs.others[0], inputs.others_lse[0]).backward()
        for copy, other in zip(copies, plain, strict=True):
            assert torch.equal(copy.grad, other.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("in_dims", [(0, 0, 0, 0), (1, None, 2, 1), (None, 0, None, None)], ids=str)
def test_vmap(in_dims: tuple[int | None, ...], seed: int) -> None:
    """Results and gradients are those of one call after the other, to the bit."""
    whole = Case((3, 3, 3), unseen=0.2).inputs(torch.float32)
    tensors = whole.first, whole.first_lse, whole.others[0], whole.others_lse[0]
    rows = [x if dim is not None else x[0] for x, dim in zip(tensors, in_dims, strict=True)]

    def call(*pairs: Tensor) -> tuple[Tensor, ...]:
        out, lse = forward(pairs[0], pairs[1], pairs[2][None], pairs[3][None], torch.float32)
        return out, lse, *backward(out, lse, pairs[0], pairs[1], pairs[2][None], pairs[3][None])

    mapped = torch.vmap(call, in_dims)(*rows)
    for i in range(3):
        one = call(*(x if dim is None else x.select(dim, i) for x, dim in zip(rows, in_dims, strict=True)))
        for name, actual, expected in zip(NAMES, mapped, one, strict=True):
            assert torch.equal(actual[i].nan_to_num(), expected.nan_to_num()), name


def test_second_derivatives_and_forward_mode_are_refused() -> None:
    out, lse = torch.randn(3, 24, requires_grad=True), torch.randn(3)
    (grad,) = torch.autograd.grad(merge_attention(out, lse, out, lse)[0].square().sum(), out, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivatives of merge_attention are not supported"):
        grad.sum().backward()
    with pytest.raises(UnsupportedError, match=r"torch\.func gradients of merge_attention"):
        torch.func.grad(lambda x: merge_attention(x, lse, x, lse)[0].sum())(out.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_no_finding(dtype: torch.dtype, seed: int) -> None:
    with simulator.check():
        for case in (Case((2, 33, 64), parts=5), Case((3, 7, 17), layout="sliced"), Case((40, 24), layout="expanded")):
            assert not any(x.isnan().any() for x in ours(case.inputs(dtype))), "an element was never written"


def test_parts_are_read_once(seed: int) -> None:
    """And their log-sum-exps by every thread, three times: for the largest, the sum and the weight."""
    inputs = Case((100, 64), parts=6).inputs(torch.float32)
    with simulator.profile() as counts:
        out, lse = ours(inputs)[:2]
    counted = counts.launches[0].counters
    assert counted.device_bytes_read == inputs.outs.nbytes + 3 * 16 * inputs.lses.nbytes
    assert counted.device_bytes_written == out.nbytes + lse.nbytes


def test_new_shapes_compile_nothing() -> None:
    def text(rows: int, parts: int) -> str:
        inputs = Case((rows, 64), parts).inputs(torch.float32, torch.float16, "meta")
        tensors = inputs.first, inputs.first_lse, inputs.others, inputs.others_lse
        return plan.forward(describe(*tensors, inputs.grad_out, inputs.grad_lse), Capabilities()).text

    assert text(1, 1) == text(7, 2) == text(1000, 64)


OUT, LSE = torch.zeros(2, 3), torch.zeros(2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: merge_attention([1.0], LSE, OUT, LSE), TypeError, "out1 is a list; accepted is a Tensor"),  # type: ignore[arg-type]
        (lambda: merge_attention(OUT.int(), LSE, OUT, LSE), TypeError, "out1 has dtype torch.int32"),
        (lambda: merge_attention(OUT[0, 0], LSE, OUT, LSE), ValueError, "out1 has shape (); accepted are [..., D]"),
        (lambda: merge_attention(OUT[:, :0], LSE, OUT, LSE), ValueError, "out1 has shape (2, 0); accepted are"),
        (lambda: merge_attention(OUT, LSE, OUT.half(), LSE), TypeError, "out2 has dtype torch.float16 and out1"),
        (lambda: merge_attention(OUT, LSE, OUT.to("meta"), LSE), ValueError, "out2 is on meta and out1 on cpu"),
        (lambda: merge_attention(OUT, LSE, OUT[:1], LSE), ValueError, "out2 has shape (1, 3); accepted is the shape"),
        (lambda: merge_attention(OUT, LSE.half(), OUT, LSE), TypeError, "lse1 has dtype torch.float16; accepted are"),
        (lambda: merge_attention(OUT, LSE, OUT, LSE[:1]), ValueError, "lse2 has shape (1,); accepted is that of out1"),
        (
            lambda: merge_attention(OUT, LSE, OUT, LSE, dtype=torch.float64),
            TypeError,
            "dtype is torch.float64; accepted for torch.float32 are None, torch.float32, torch.float16",
        ),
        (
            lambda: forward(OUT, LSE, OUT[None, :1], LSE[None], torch.float32),
            ValueError,
            "others is torch.float32 of shape (1, 1, 3); accepted: those of first",
        ),
        (
            lambda: forward(OUT, LSE, OUT[None], LSE, torch.float32),
            ValueError,
            "others_lse is torch.float32 of shape (2,); accepted: torch.float32 of (1, 2)",
        ),
        (
            lambda: backward(OUT[:1], None, OUT, LSE, OUT[None], LSE[None]),
            ValueError,
            "grad_out has shape (1, 3); accepted: that of first, (2, 3)",
        ),
    ],
)
def test_bad_arguments_are_named(
    assert_refused: Callable[..., None], call: Callable[[], object], error: type[Exception], words: str
) -> None:
    assert_refused(call, error, words)
