"""Softmax and log_softmax against float64: layouts, lengths, extreme values, gradients, checks and bad arguments."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import UnsupportedError
from mps_flash_attn.errors import KernelCheckError
from mps_flash_attn.functional import log_softmax, softmax
from mps_flash_attn.launch import Capabilities
from mps_flash_attn.ops.rows import Operand
from mps_flash_attn.ops.softmax import api, plan, reference
from mps_flash_attn.ops.softmax.cases import Case
from mps_flash_attn.runtime import simulator
from tests.ops.barriers import barriers, without_barrier
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

forward = torch.ops.mps_flash_attn.softmax_forward.default
backward = torch.ops.mps_flash_attn.softmax_backward.default


def pytorch(case: Case, x: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's result and gradient."""
    leaf = x.detach().clone().requires_grad_()
    out = leaf.log_softmax(case.dim) if case.log else leaf.softmax(case.dim)
    return out.detach(), torch.autograd.grad(out, leaf, grad_out)[0]


def check(case: Case, dtype: torch.dtype) -> None:
    x, grad_out = case.inputs(dtype)
    leaf = x.detach().requires_grad_()
    out = (log_softmax if case.log else softmax)(leaf, case.dim)
    (grad,) = torch.autograd.grad(out, leaf, grad_out)
    exact = reference.softmax_forward(x.double(), case.dim, case.log)
    exact_grad = reference.softmax_backward(grad_out.double(), exact, case.dim, case.log)
    theirs, their_grad = pytorch(case, x, grad_out)
    assert_accurate(f"out of {case} in {dtype}", out.detach(), theirs, exact)
    terms = (
        grad_out if case.log else grad_out * theirs
    )  # of the gradient, which may cancel: its errors are relative to them
    grads = (torch.cat([x.flatten(), terms.to(x.dtype).flatten()]) for x in (grad, their_grad, exact_grad))
    assert_accurate(f"grad of {case} in {dtype}", *grads)


@pytest.mark.parametrize("values", ["normal", "offset", "one-hot", "infinite"])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(dtype: torch.dtype, log: bool, values: str, seed: int) -> None:
    for shape in ((5, 24), (5, 7)):
        check(Case(shape, 1, log=log, values=values), dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("log", [False, True])
def test_every_team_in_float32(log: bool, seed: int) -> None:
    """Rows of a part of a simdgroup, of one, of a threadgroup, longer than registers hold, and side by side."""
    for shape, dim in (
        ((3, 1), 1),
        ((3, 32), 1),
        ((3, 33), 1),
        ((3, 129), 1),
        ((2, 1, 1025), 2),
        ((2, 70_001), 1),
        ((4, 5, 300), 1),
    ):
        check(Case(shape, dim, log=log, values="offset"), torch.float32)


def test_long_aligned_rows_in_float16(seed: int) -> None:
    for length in (600, 8192, 80_000):
        check(Case((2, length), 1), torch.float16)


def test_same_result_in_float64(seed: int) -> None:
    for log in (False, True):
        check(Case((3, 24), 1, log=log), torch.float64)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = tuple(draw(st.lists(st.sampled_from((0, 1, 2, 3, 5, 8)), min_size=1, max_size=5)))
    return Case(
        shape,
        dim=draw(st.integers(0, len(shape) - 1)),
        log=draw(st.booleans()),
        layout=draw(st.sampled_from(("contiguous", "transposed", "sliced", "expanded"))),
        values="normal" if 0 in shape else draw(st.sampled_from(("normal", "infinite"))),
    )


@given(cases(), st.integers(0, 2**31))
def test_combinations(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    check(case, torch.float32)


@pytest.mark.parametrize("log", [False, True])
def test_not_a_number_stays_in_its_row(log: bool, seed: int) -> None:
    """A row with NaN or +inf, or of -inf alone, is NaN as in PyTorch; the others are not."""
    x = torch.randn(5, 24)
    x[1, 3], x[2, 23], x[3] = torch.nan, torch.inf, -torch.inf
    out = (log_softmax if log else softmax)(x, 1)
    assert torch.equal(out.isnan(), (x.log_softmax(1) if log else x.softmax(1)).isnan())
    assert out.isnan().all(1).tolist() == [False, True, True, True, False]


def test_late_values_after_minus_infinity(seed: int) -> None:
    """A thread's first steps may all be -inf: they must not turn what follows into NaN."""
    for length in (24, 70_001):
        x = torch.full((1, length), -torch.inf)
        x[0, -2:] = torch.tensor([1.0, 2.0])
        assert_accurate("late values", softmax(x, 1), x.softmax(1), x.double().softmax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("log", [False, True])
def test_result_of_another_dtype(log: bool, dtype: torch.dtype, seed: int) -> None:
    x = torch.randn(4, 24).to(torch.bfloat16)
    grad_out = torch.randn(4, 24).to(dtype)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    out = (log_softmax if log else softmax)(ours, -1, dtype)
    expected = (torch.log_softmax if log else torch.softmax)(theirs, -1, dtype)
    exact = reference.softmax_forward(x.double(), 1, log)
    assert_accurate("out", out.detach(), expected.detach(), exact)
    (grad,), (their_grad,) = (torch.autograd.grad(y, leaf, grad_out) for y, leaf in ((out, ours), (expected, theirs)))
    assert_accurate("grad", grad, their_grad, reference.softmax_backward(grad_out.double(), exact, 1, log))


def test_numbers_are_rows_of_one() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    assert softmax(x, 0) == 1
    assert log_softmax(x, -1) == 0
    log_softmax(x, 0).backward()
    assert x.grad == 0


def test_same_bits_for_every_layout(seed: int) -> None:
    shape = (4, 6, 7)
    for dim in range(3):
        x = Case(shape, dim).inputs(torch.float32)[0]
        for view in (x.mT.contiguous().mT, torch.zeros(5, 6, 9)[1:, :, 1:-1].copy_(x)):
            assert torch.equal(softmax(view, dim), softmax(x, dim))


def test_more_than_32_bits_of_address(seed: int) -> None:
    far = 2**31 + 2**10
    storage = torch.empty(2 * far, dtype=torch.float16)  # never touched but for the views
    for shape, strides in (((2, 24), (far, 1)), ((24, 2), (1, far))):
        view = storage.as_strided(shape, strides)
        view.copy_(torch.randn(shape))
        assert torch.equal(softmax(view, 1), softmax(view.contiguous(), 1))


def test_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(api, "_forward", lambda x, *_: seen.append(x))
    x = torch.randn(4, 6, 10)[:, ::2, 1:-1].transpose(0, 2)
    softmax(x, 1, torch.float64)
    assert seen[0] is x


def test_autocast_follows_pytorch(seed: int) -> None:
    x = torch.randn(4, 24).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert softmax(x, 1).dtype == torch.softmax(x, 1).dtype


@pytest.mark.parametrize("log", [False, True])
def test_gradients_are_exact(log: bool, seed: int) -> None:
    function = log_softmax if log else softmax
    for shape, dim in (((3, 7), 1), ((2, 3, 4), 1)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, dim=dim: function(x, dim), (x,))


def test_expanded_gradient(seed: int) -> None:
    """The gradient of a sum has stride 0 in every dimension."""
    x = torch.randn(3, 24, requires_grad=True)
    log_softmax(x, 1).sum().backward()
    exact = 1 - 24 * x.detach().double().softmax(1)
    assert x.grad is not None
    assert_accurate("grad", x.grad, exact.float(), exact)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
def test_operators_keep_pytorchs_rules(layout: str, seed: int) -> None:
    x, grad_out = Case((3, 5, 24), 1, layout=layout).inputs(torch.float32)  # type: ignore[arg-type]
    torch.library.opcheck(forward, (x.detach().requires_grad_(), 1, True, torch.float32))
    torch.library.opcheck(backward, (grad_out, forward(x, 1, True, torch.float32), 1, True, torch.float32))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool, seed: int) -> None:
    def loss(x: Tensor) -> Tensor:
        return (softmax(x, -1) * log_softmax(x, 0)).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (5, 6):
        plain = torch.randn(3, size, requires_grad=True)
        copy = plain.detach().clone().requires_grad_()
        loss(plain).backward()
        compiled(copy).backward()
        assert torch.equal(copy.grad, plain.grad)  # type: ignore[arg-type]


def test_second_derivatives_and_forward_mode_are_refused() -> None:
    x = torch.randn(3, 24, requires_grad=True)
    (grad,) = torch.autograd.grad(softmax(x, 1).square().sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivatives of softmax and log_softmax are not supported"):
        grad.sum().backward()
    with pytest.raises(UnsupportedError, match=r"torch\.func gradients of log_softmax"):
        torch.func.jvp(lambda x: log_softmax(x, 1), (x.detach(),), (x.detach(),))


def run(case: Case, dtype: torch.dtype) -> None:
    x, grad_out = case.inputs(dtype)
    out = forward(x, case.dim, case.log, dtype)
    grad = backward(grad_out, out, case.dim, case.log, dtype)
    assert not any(x.isnan().any() for x in (out, grad)), "an element was never written"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_finding(dtype: torch.dtype, seed: int) -> None:
    with simulator.check():
        run(Case((35, 24), 1), dtype)
        run(Case((2, 600), 1, log=True), dtype)


def test_no_finding_in_other_teams(seed: int) -> None:
    with simulator.check():
        run(Case((2, 5001), 1), torch.float32)
        run(Case((33, 3, 33), 1, layout="sliced"), torch.float32)
        run(Case((3, 24), 0, layout="expanded"), torch.float32)


@pytest.mark.parametrize(("path", "number"), barriers("ops/softmax/"))
def test_each_barrier_is_missed(path: str, number: int, seed: int) -> None:
    with pytest.raises(KernelCheckError), without_barrier(path, number), simulator.check():
        run(Case((2, 600), 1), torch.float32)


@pytest.mark.parametrize(("length", "readings"), [(24, 1), (4096, 1), (70_001, 2)])
def test_rows_are_read_as_often_as_promised(length: int, readings: int, seed: int) -> None:
    x = torch.randn(2, length)
    with simulator.profile() as counts:
        out = forward(x, 1, False, x.dtype)
        backward(out, out, 1, False, x.dtype)
    first, second = (record.counters for record in counts.launches)
    assert (first.device_bytes_read, second.device_bytes_read) == (readings * x.nbytes, 2 * readings * x.nbytes)
    assert first.device_bytes_written == second.device_bytes_written == x.nbytes


def test_neighbours_are_read_together(seed: int) -> None:
    """A row per thread where rows lie side by side: each access of a simdgroup is to one segment of 128 bytes."""
    x = torch.randn(4, 5, 256)
    with simulator.profile(transactions=True) as counts:
        forward(x, 1, False, x.dtype)
    assert counts.transactions.device_segments == 3 * x.nbytes // 128


def test_new_lengths_compile_nothing() -> None:
    def text(shape: tuple[int, int], dtype: torch.dtype = torch.float16) -> str:
        x = Operand(dtype, (shape[1], 1))
        return plan.forward(plan.Problem(shape, 1, (x, x), False), Capabilities()).text

    assert text((1, 40_000)) == text((7, 100_000)) == text((100, 65_544))
    assert text((1, 20_000)) == text((7, 32_768))  # held in registers
    assert text((1, 8)) == text((9, 24)) == text((1000, 128))


@pytest.mark.parametrize(
    ("shape", "strides", "words"),
    [
        ((2,) * 10, tuple(3**n for n in range(10)), "strides that leave 9 separate dimensions; accepted are up to 8"),
        ((2**31, 1), (1, 1), "rows of 2147483648 elements do not fit in 32 bits"),
        ((1000, 2**30), (1, 1000), "1073741824 rows of 128 threads each are more than a grid has"),
    ],
)
def test_refused_with_a_reason(shape: tuple[int, ...], strides: tuple[int, ...], words: str) -> None:
    x = Operand(torch.float32, strides)
    with pytest.raises(UnsupportedError, match=re.escape(words)):
        plan.forward(plan.Problem(shape, 0, (x, x), False), Capabilities())


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: softmax([1.0], 0), TypeError, "input is a list; accepted is a Tensor"),  # type: ignore[arg-type]
        (lambda: softmax(X.int(), 0), TypeError, "input has dtype torch.int32"),
        (lambda: softmax(X.to_sparse(), 0), ValueError, "input is of layout torch.sparse_coo"),
        (lambda: softmax(X, 2), ValueError, "dim is 2; accepted are -2 to 1"),
        (lambda: softmax(X, 1.0), TypeError, "dim is a float; accepted is an int"),  # type: ignore[arg-type]
        (lambda: softmax(X, 1, torch.int64), TypeError, "dtype is torch.int64; accepted are None, torch.float32"),
        (lambda: backward(X, X[:1], 1, False, X.dtype), ValueError, "grad_out is torch.float32 of shape (2, 3)"),
    ],
)
def test_bad_arguments_are_named(
    assert_refused: Callable[..., None], call: Callable[[], object], error: type[Exception], words: str
) -> None:
    assert_refused(call, error, words)


def test_meta_tensors_need_no_launch(assert_refused: Callable[..., None]) -> None:
    assert softmax(X.to("meta"), 1).shape == X.shape
