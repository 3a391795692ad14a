"""`sum` and `amax` against float64: dimensions, layouts, lengths, ties, gradients, checks and bad arguments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import UnsupportedError, functional
from mps_flash_attn.errors import KernelCheckError
from mps_flash_attn.functional import amax
from mps_flash_attn.launch import Capabilities
from mps_flash_attn.ops.reduction import plan, reference
from mps_flash_attn.ops.reduction.cases import Case
from mps_flash_attn.ops.rows import Operand
from mps_flash_attn.runtime import simulator
from tests.ops.barriers import barriers, without_barrier
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

operators = torch.ops.mps_flash_attn


def check(case: Case, dtype: torch.dtype, *, keepdim: bool = True) -> None:
    x, dims = case.input(dtype), case.dims
    ours, theirs = (x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2))
    if case.layout != "contiguous":
        ours = x.detach().requires_grad_()
    total, pytorch = functional.sum(ours, dims, keepdim), x.sum(dims, keepdim)
    exact = reference.sum_forward(x.double(), dims)
    # A sum may cancel: its errors are relative to the terms.
    terms = reference.sum_forward(x.double().abs(), dims)
    assert total.shape == pytorch.shape
    assert_accurate(
        f"sum of {case} in {dtype}",
        torch.stack([total.detach(), terms.reshape(total.shape).to(dtype)]),
        torch.stack([pytorch, terms.reshape(total.shape).to(dtype)]),
        torch.stack([exact, terms.to(dtype).double()]).reshape(2, *total.shape),
    )
    if x.numel() == 0:
        return
    largest = amax(ours, dims, keepdim)
    assert torch.equal(largest, x.amax(dims, keepdim)), f"amax of {case} in {dtype}"
    grad_out = torch.randn(largest.shape).to(dtype)
    (grad,) = torch.autograd.grad(largest, ours, grad_out)
    (their_grad,) = torch.autograd.grad(theirs.amax(dims, keepdim), theirs, grad_out)
    exact_grad = reference.amax_backward(grad_out.double().reshape(exact.shape), x.double(), dims)
    assert_accurate(f"grad of {case} in {dtype}", grad, their_grad, exact_grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, seed: int) -> None:
    check(Case((40, 24), (1,), values="offset"), dtype)
    check(Case((40, 23), (1,), values="whole"), dtype)
    check(Case((2, 70_001), (1,)), dtype)


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((3, 1), (1,)),
        ((3, 32), (1,)),
        ((3, 200), (1,)),
        ((2, 3, 600), (0, 2)),
        ((70_000, 3), (0,)),
        ((2_000, 40), (0,)),
        ((200_000,), (0,)),
        ((4, 300, 50), (1,)),
        ((5,), ()),
    ],
    ids=str,
)
def test_shapes(shape: tuple[int, ...], dims: tuple[int, ...], seed: int) -> None:
    check(Case(shape, dims or (0,), values="whole"), torch.float32, keepdim=False)


def test_few_long_rows_are_split() -> None:
    for shape, dims, split in (((200_000,), (0,), True), ((70_000, 40), (0,), True), ((40, 600), (1,), False)):
        x = Operand(torch.float32, torch.empty(shape, device="meta").stride())
        result = Operand(torch.float32, (0, 1)[-len(shape) :])
        problem = plan.Problem(shape, dims, x, result, plan.Operation.SUM)
        found = plan.reduction(problem, Capabilities())
        assert (found.partial is not None) == split
        assert len(found.launches) == (2 if split else 1)


def test_same_result_in_float64(seed: int) -> None:
    check(Case((3, 24), (1,)), torch.float64)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = tuple(draw(st.lists(st.sampled_from((0, 1, 2, 3, 5, 8)), min_size=1, max_size=5)))
    if 0 in shape:  # amax needs elements
        shape = tuple(draw(st.sampled_from((shape, tuple(max(n, 1) for n in shape)))))
    return Case(
        shape,
        tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))),
        draw(st.sampled_from(("contiguous", "transposed", "sliced", "expanded"))),
        draw(st.sampled_from(("normal", "whole"))),
    )


@given(cases(), st.booleans(), st.integers(0, 2**31))
def test_combinations(case: Case, keepdim: bool, seed: int) -> None:
    torch.manual_seed(seed)
    check(case, torch.float32, keepdim=keepdim)


@pytest.mark.parametrize("dim", [None, (), 1, -1, (0, -1), [2, 0, 1]], ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
def test_dim_means_what_it_means_in_pytorch(dim: int | tuple[int, ...] | None, keepdim: bool, seed: int) -> None:
    x = torch.randn(2, 3, 4).round()
    assert torch.equal(functional.sum(x, dim, keepdim), torch.sum(x, dim, keepdim))
    if dim is not None:
        assert torch.equal(amax(x, dim, keepdim), torch.amax(x, dim, keepdim))
    assert functional.sum(torch.tensor(3.0), dim if dim in (None, ()) else 0) == 3


def test_empty_rows_and_no_rows() -> None:
    x = torch.empty(3, 0)
    assert torch.equal(functional.sum(x, 1), torch.zeros(3))
    assert functional.sum(x) == 0
    assert functional.sum(x, 0).shape == amax(x, 0).shape == (0,)
    with pytest.raises(
        ValueError, match=r"input has shape \(3, 0\) and dim is 1; accepted are dimensions with elements"
    ):
        amax(x, 1)
    with pytest.raises(ValueError, match=r"x has shape \(3, 0\)"):
        operators.reduction_amax(x, [1], False)


def test_not_a_number_and_infinities(seed: int) -> None:
    x = torch.randn(4, 600)
    x[0, 400], x[1] = torch.nan, -torch.inf
    x[2, :2] = torch.tensor([torch.inf, -torch.inf])
    assert amax(x, 1).isnan().tolist() == [True, False, False, False]
    assert torch.equal(amax(x, 1)[1:], x.amax(1)[1:])
    assert functional.sum(x, 1).isnan().tolist() == x.sum(1).isnan().tolist() == [True, False, True, False]
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    amax(ours, 1).sum().backward()
    theirs.amax(1).sum().backward()
    assert ours.grad is not None
    assert ours.grad[0].isnan().all()
    assert torch.allclose(ours.grad, theirs.grad, equal_nan=True)  # type: ignore[arg-type]


def test_sum_of_another_dtype(seed: int) -> None:
    x = torch.randn(4, 600).half().requires_grad_()
    total = functional.sum(x, 1, dtype=torch.float32)
    exact = x.detach().double().sum(1)
    assert_accurate("sum", total.detach(), x.detach().float().sum(1), exact)
    total.square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float16
    digits = torch.tensor([1.0, 2.0**-30])
    assert functional.sum(digits, dtype=torch.float64) == 1 + 2.0**-30


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [0, (0, 2)], ids=str)
def test_gradients_are_exact(dim: int | tuple[int, ...], keepdim: bool, seed: int) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: functional.sum(x, dim, keepdim), (x,))
    assert torch.autograd.gradgradcheck(lambda x: functional.sum(x, dim, keepdim), (x,))
    assert torch.autograd.gradcheck(lambda x: amax(x, dim, keepdim), (x,))


def test_gradient_of_a_number() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    (functional.sum(x) + 2 * amax(x, 0)).backward()
    assert x.grad == 3


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
def test_operators_keep_pytorchs_rules(layout: str, seed: int) -> None:
    x = Case((3, 5, 24), (0, 2), layout, values="whole").input(torch.float32)  # type: ignore[arg-type]
    leaf = x.detach().requires_grad_()
    for keepdim in (False, True):
        torch.library.opcheck(operators.reduction_sum.default, (leaf, [0, 2], keepdim, torch.float32))
        torch.library.opcheck(operators.reduction_amax.default, (leaf, [0, 2], keepdim))
        out = operators.reduction_amax(x, [0, 2], keepdim)
        torch.library.opcheck(operators.reduction_amax_backward.default, (out.sin(), x, out, [0, 2], keepdim))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool, seed: int) -> None:
    def loss(x: Tensor) -> Tensor:
        return functional.sum(amax(x, (0, -1)) * functional.sum(x, (0, 2)))

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (5, 6):
        plain = torch.randn(3, 4, size, requires_grad=True)
        copy = plain.detach().clone().requires_grad_()
        loss(plain).backward()
        compiled(copy).backward()
        assert torch.equal(copy.grad, plain.grad)  # type: ignore[arg-type]


def test_second_derivatives_and_forward_mode_are_refused() -> None:
    x = torch.randn(3, 24, requires_grad=True)
    (grad,) = torch.autograd.grad(amax(x, 1).square().sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivatives of amax are not supported"):
        grad.sum().backward()
    for function in (functional.sum, amax):
        with pytest.raises(UnsupportedError, match=rf"torch\.func gradients of {function.__name__}"):
            torch.func.jvp(function, (x.detach(),), (x.detach(),))


def run(case: Case, dtype: torch.dtype) -> None:
    x, dims = case.input(dtype), list(case.dims)
    out = operators.reduction_amax(x, dims, True)
    results = (
        out,
        operators.reduction_sum(x, dims, True, dtype),
        operators.reduction_amax_backward(out, x, out, dims, True),
    )
    assert not any(x.isnan().any() for x in results), "an element was never written"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_finding(dtype: torch.dtype, seed: int) -> None:
    with simulator.check():
        run(Case((35, 24), (1,)), dtype)


def test_no_finding_in_other_teams(seed: int) -> None:
    with simulator.check():
        run(Case((2, 3, 900), (0, 2)), torch.float32)
        run(Case((1100, 33), (0,), layout="sliced"), torch.float32)


# `amax_backward` includes the header of `reduce` and does not call it.
@pytest.mark.parametrize(("path", "number"), barriers("ops/reduction/reduction"))
def test_each_barrier_is_missed(path: str, number: int, seed: int) -> None:
    with pytest.raises(KernelCheckError), without_barrier(path, number), simulator.check():
        operators.reduction_sum(torch.randn(2, 3, 900), [0, 2], False, torch.float32)


@pytest.mark.parametrize(("shape", "dim"), [((200_000,), 0), ((2000, 64), 0)], ids=str)
def test_everything_is_read_once_and_together(shape: tuple[int, ...], dim: int, seed: int) -> None:
    """Two launches, of which the second reads what the first has written; accesses are to whole segments."""
    x = torch.randn(shape)
    with simulator.profile(transactions=True) as counts:
        operators.reduction_sum(x, [dim], False, x.dtype)
    first, second = (record.counters for record in counts.launches)
    assert first.device_bytes_read == x.nbytes
    assert second.device_bytes_read == first.device_bytes_written
    written = -(-first.device_bytes_written // 4)  # at most a segment each
    assert counts.launches[0].transactions.device_segments <= x.nbytes // 128 + written


def test_new_lengths_compile_nothing() -> None:
    def text(*shape: int) -> str:
        x = Operand(torch.float16, (shape[1], 1))
        problem = plan.Problem(shape, (1,), x, Operand(torch.float16, (1, 0)), plan.Operation.SUM)
        return plan.reduction(problem, Capabilities()).launches[0].text

    assert text(1, 65_536) == text(7, 131_072) == text(3, 1_000_008)
    assert text(1, 8) == text(9, 24) == text(1000, 128)


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: functional.sum([1.0]), TypeError, "input is a list; accepted is a Tensor"),  # type: ignore[arg-type]
        (lambda: functional.sum(X.int()), TypeError, "input has dtype torch.int32"),
        (lambda: functional.sum(X, 2), ValueError, "dim is 2; accepted are -2 to 1"),
        (lambda: functional.sum(X, (0, -2)), ValueError, "dim is (0, -2), with a dimension twice"),
        (lambda: functional.sum(X, "0"), TypeError, "dim is a str; accepted is an int"),  # type: ignore[arg-type]
        (lambda: functional.sum(X, dtype=torch.int64), TypeError, "dtype is torch.int64; accepted are None,"),
        (lambda: amax(X.to_sparse(), 0), ValueError, "input is of layout torch.sparse_coo"),
        (lambda: amax(X, (0, 3)), ValueError, "dim is 3; accepted are -2 to 1"),
        (
            lambda: operators.reduction_amax_backward(X, X, X[:, 0], [1], False),
            ValueError,
            "grad_out is torch.float32 of shape (2, 3)",
        ),
    ],
)
def test_bad_arguments_are_named(
    assert_refused: Callable[..., None], call: Callable[[], object], error: type[Exception], words: str
) -> None:
    assert_refused(call, error, words)
