"""Embedding: against float64 and PyTorch, the same bits always, how it lives with PyTorch's compiler, bad arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from mps_flash_attn import UnsupportedError
from mps_flash_attn.errors import KernelCheckError
from mps_flash_attn.functional import embedding
from mps_flash_attn.ops.embedding import function, plan, reference
from mps_flash_attn.ops.embedding.cases import Case
from mps_flash_attn.ops.embedding.function import NO_PADDING, embedding_backward, embedding_forward
from mps_flash_attn.runtime import simulator
from tests.ops.barriers import barriers, without_barrier
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check(case: Case, dtype: torch.dtype, padding_row: int = NO_PADDING) -> None:
    inputs = case.inputs(dtype)
    indices, weight, grad_output = inputs.input, inputs.weight.detach().requires_grad_(), inputs.grad_output
    padding = None if padding_row == NO_PADDING else padding_row
    pytorch = F.embedding(indices, weight, padding)
    output = embedding(indices, weight, padding)
    assert torch.equal(output, pytorch), case
    assert_accurate(
        "output", output.detach(), pytorch.detach(), reference.embedding_forward(indices, weight.detach().double())
    )
    exact = reference.embedding_backward(grad_output.double(), indices, case.rows, padding_row)
    (ours,) = torch.autograd.grad(output, weight, grad_output)
    (theirs,) = torch.autograd.grad(pytorch, weight, grad_output)
    assert_accurate(f"gradient of {case}", ours, theirs, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case((300,), 1100, 64, "skewed"),
        Case((33, 31), 700, 17),
        Case((600,), 513, 64, "distinct"),
        Case((257,), 511, 64, "same"),
        Case((), 512, 64),
        Case((1,), 1, 1),
        Case((2, 3), 5, 768),
        Case((3, 4), 600, 17, layout="transposed", index_dtype=torch.int32),
    ],
    ids=str,
)
def test_rows_and_their_gradients(case: Case, dtype: torch.dtype, seed: int) -> None:
    check(case, dtype)


@given(
    st.builds(
        Case,
        shape=st.lists(st.integers(0, 7), max_size=3).map(tuple),
        rows=st.integers(1, 40),
        columns=st.sampled_from((0, 1, 17, 64)),
        repetition=st.sampled_from(("random", "distinct", "same", "skewed")),
        layout=st.sampled_from(("contiguous", "transposed", "sliced", "expanded")),
        index_dtype=st.just(torch.int32),
    ),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, padding: bool, seed: int) -> None:
    torch.manual_seed(seed)
    check(case, torch.bfloat16, seed % case.rows if padding else NO_PADDING)


def test_dimensions_that_cannot_be_merged(seed: int) -> None:
    """More than the kernels tell apart are copied; the result is the same."""
    indices = torch.randint(9, (4,) * 6)[(slice(None, None, 2),) * 6]
    weight = torch.randn(9, 17, requires_grad=True)
    gradient = torch.randn(*(4,) * 6, 17)[(slice(None, None, 2),) * 6]
    assert len(plan.Tokens(indices.shape, indices.stride()).sizes) > plan.MAX_RANK
    for function_ in (embedding, F.embedding):
        output = function_(indices, weight)
        weight.grad = None
        output.backward(gradient)
        assert weight.grad is not None
        if function_ is embedding:
            ours = output.detach(), weight.grad
    assert torch.equal(ours[0], output)
    assert (ours[1] - weight.grad).abs().max() <= 1e-5


def test_gradients_are_the_same_bits_whatever_lies_around(seed: int) -> None:
    """Sums are in the order of the tokens, so strides and other rows of the weight change nothing."""
    case = Case((40, 50), 600, 64, "skewed")
    inputs = case.inputs(torch.float32)
    first = embedding_backward(inputs.grad_output, inputs.input, 600, NO_PADDING)
    again = embedding_backward(inputs.grad_output, inputs.input.int(), 2000, NO_PADDING)
    spread = torch.empty(50, 40, 65).transpose(0, 1)[..., :64].copy_(inputs.grad_output)
    strided = embedding_backward(spread, inputs.input.T.contiguous().T, 600, NO_PADDING)
    assert torch.equal(first, again[:600])
    assert not again[600:].any()
    assert torch.equal(first, strided)
    expected = torch.zeros(600, 64)
    for row, gradient in zip(inputs.input.flatten(), inputs.grad_output.flatten(0, 1), strict=True):
        expected[row] += gradient
    assert torch.equal(first, expected)


@pytest.mark.parametrize("padding_idx", [0, 3, -1])
def test_the_padding_row_gets_no_gradient(seed: int, padding_idx: int) -> None:
    weight = torch.randn(4, 8, requires_grad=True)
    indices = torch.arange(4).repeat(3)
    embedding(indices, weight, padding_idx).sum().backward()
    expected = torch.full((4, 8), 3.0)
    expected[padding_idx] = 0
    assert weight.grad is not None
    assert torch.equal(weight.grad, expected)


@pytest.mark.parametrize(("shape", "rows", "columns"), [((0,), 5, 8), ((3, 0), 0, 8), ((4,), 5, 0)])
def test_nothing_to_do(shape: tuple[int, ...], rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, requires_grad=True)
    output = embedding(torch.zeros(shape, dtype=torch.int64), weight, max_norm=1.0, norm_type=math.inf)
    assert output.shape == (*shape, columns)
    output.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros(rows, columns))


@given(
    st.builds(
        Case,
        shape=st.lists(st.integers(0, 7), max_size=3).map(tuple),
        rows=st.integers(1, 40),
        columns=st.sampled_from((1, 17, 64, 600)),
        repetition=st.sampled_from(("random", "distinct", "same", "skewed")),
        layout=st.sampled_from(("contiguous", "transposed", "sliced")),
        index_dtype=st.just(torch.int32),
    ),
    st.sampled_from((1.0, 2.0, 3.5, math.inf)),
    st.sampled_from((0.0, 1.0, 8.0, 1e3)),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_rows_that_are_too_long_are_divided_once(
    case: Case, norm_type: float, max_norm: float, padding: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    inputs, padding_idx = case.inputs(torch.bfloat16), 0 if padding else None
    ours, theirs = inputs.weight, inputs.weight.clone()
    exact = reference.renormalise(inputs.input, ours.double(), max_norm, norm_type)
    output = embedding(inputs.input, ours, padding_idx, max_norm, norm_type)
    F.embedding(inputs.input, theirs, padding_idx, max_norm, norm_type)
    assert_accurate(f"weight of {case}", ours, theirs, exact)
    assert torch.equal(output, ours[inputs.input])
    left_alone = torch.ones(case.rows, dtype=torch.bool)
    left_alone[inputs.input.flatten()] = False
    assert torch.equal(ours[left_alone], theirs[left_alone])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_renormalisation_in_each_dtype(dtype: torch.dtype, seed: int) -> None:
    inputs = Case((300,), 100, 64, "skewed").inputs(dtype)
    inputs.weight[3] *= 100
    inputs.weight[5, 2] = torch.nan  # no norm, so nothing to divide by
    inputs.input[:4] = torch.tensor([3, 5, 3, 3])
    ours, theirs = inputs.weight.clone(), inputs.weight.clone()
    exact = reference.renormalise(inputs.input, ours.double(), 5.0, 2.0)
    with simulator.check():
        embedding(inputs.input, ours, max_norm=5.0)
    F.embedding(inputs.input, theirs, max_norm=5.0)
    assert torch.equal(ours[5].nan_to_num(7), inputs.weight[5].nan_to_num(7))
    for each in (ours, theirs, exact):
        each[5] = 0
    assert_accurate("weight", ours, theirs, exact)


def test_renormalisation_is_not_part_of_the_gradient(seed: int) -> None:
    indices, weight = torch.randint(6, (3, 5)), torch.randn(6, 4, requires_grad=True)
    before, version = weight.detach().clone(), weight._version
    output = embedding(indices, weight, max_norm=0.5)
    assert weight._version > version  # whoever saved the weight for a gradient is told
    assert not torch.equal(weight, before)
    (gradient,) = torch.autograd.grad(output.sum(), weight)
    assert torch.equal(gradient, indices.flatten().bincount(minlength=6).unsqueeze(-1).expand(6, 4).float())


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_gradients_divided_by_frequency(padding_idx: int | None, seed: int) -> None:
    for case in (Case((300,), 70, 64, "skewed"), Case((3, 4), 600, 17, layout="transposed", index_dtype=torch.int32)):
        inputs = case.inputs(torch.float32)
        row = NO_PADDING if padding_idx is None else padding_idx
        exact = reference.embedding_backward(inputs.grad_output.double(), inputs.input, case.rows, row, True)
        gradients = []
        for function_ in (embedding, F.embedding):
            weight = inputs.weight.detach().requires_grad_()
            output = function_(inputs.input, weight, padding_idx, scale_grad_by_freq=True)
            gradients += torch.autograd.grad(output, weight, inputs.grad_output)
        assert_accurate(f"gradient of {case}", *gradients, exact)


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_sparse_gradients_are_pytorchs(padding_idx: int | None, seed: int) -> None:
    for shape in ((40,), (3, 4), (0,), (1,)):
        inputs = Case(shape, 9, 17, layout="transposed", index_dtype=torch.int32).inputs(torch.float32)
        found = []
        for function_ in (embedding, F.embedding):
            weight = inputs.weight.detach().requires_grad_()
            output = function_(inputs.input, weight, padding_idx, sparse=True)
            output.backward(inputs.grad_output)
            found.append(weight.grad)
        ours, theirs = found
        assert ours.is_sparse
        assert torch.equal(ours._indices(), theirs._indices())
        assert torch.equal(ours._values(), theirs._values())
        assert ours.shape == theirs.shape


def test_a_sparse_optimiser_takes_its_gradients(seed: int) -> None:
    indices, weights = torch.randint(6, (20,)), []
    for function_ in (embedding, F.embedding):
        weight = torch.ones(6, 4, requires_grad=True)
        optimiser = torch.optim.SparseAdam([weight], lr=0.1)
        function_(indices, weight, sparse=True).sum().backward()
        optimiser.step()
        weights.append(weight.detach())
    assert torch.equal(*weights)


def test_gradcheck(seed: int) -> None:
    indices = torch.randint(6, (3, 5))
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: embedding(indices, x), (weight,))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_keep_pytorchs_rules(seed: int, dtype: torch.dtype, layout: Any) -> None:
    inputs = Case((3, 4), 600, 17, layout=layout, index_dtype=torch.int32).inputs(dtype)
    weight = inputs.weight.detach().requires_grad_()
    torch.library.opcheck(torch.ops.mps_flash_attn.embedding_forward.default, (inputs.input, weight, 2))
    torch.library.opcheck(
        torch.ops.mps_flash_attn.embedding_backward.default, (inputs.grad_output, inputs.input, 600, 2)
    )
    if layout != "expanded":
        operands = (inputs.weight, inputs.input, 1.0, 2.0)
        torch.library.opcheck(torch.ops.mps_flash_attn.embedding_renormalise.default, operands)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(seed: int, dynamic: bool) -> None:
    def model(indices: Tensor, weight: Tensor) -> Tensor:
        return embedding(indices, weight, -1, max_norm=4.0, scale_grad_by_freq=True).square().sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (7, 9):
        indices = torch.randint(600, (3, length))
        plain, other = (torch.ones(600, 64, requires_grad=True) for _ in range(2))
        assert embedding(indices, plain.clone(), max_norm=4.0)[0, 0].norm() <= 4.0
        model(indices, plain).backward()
        compiled(indices, other).backward()
        assert plain.grad is not None
        assert other.grad is not None
        assert torch.equal(plain.grad, other.grad)
        assert torch.equal(plain, other)
    with pytest.raises(IndexError, match="input holds the index 600"):
        compiled(torch.full((3, 7), 600), torch.ones(600, 64))


def test_autocast_leaves_the_dtype_as_pytorch_does() -> None:
    weight, indices = torch.randn(5, 17), torch.tensor([1, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert embedding(indices, weight).dtype == F.embedding(indices, weight).dtype == torch.float32


def test_other_differentiation_is_refused(seed: int) -> None:
    indices, weight = torch.tensor([1, 4]), torch.randn(5, 17, requires_grad=True)
    (first,) = torch.autograd.grad(embedding(indices, weight).square().sum(), weight, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivatives of embedding are not supported"):
        first.sum().backward()
    with pytest.raises(UnsupportedError, match="forward-mode"), forward_ad.dual_level():
        embedding(indices, weight)


X, W = torch.zeros(3, dtype=torch.int64), torch.zeros(5, 4)
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "input type": (lambda: embedding([0], W), TypeError, "input is a list; accepted is a Tensor"),  # type: ignore[arg-type]
    "input dtype": (
        lambda: embedding(X.float(), W),
        TypeError,
        "input has dtype torch.float32; accepted are int32 and",
    ),
    "input device": (lambda: embedding(X.to("meta"), W), ValueError, "input is on meta and weight on cpu"),
    "weight type": (lambda: embedding(X, None), TypeError, "weight is a NoneType"),  # type: ignore[arg-type]
    "weight dtype": (lambda: embedding(X, W.int()), TypeError, "weight has dtype torch.int32; accepted are float32"),
    "weight rank": (
        lambda: embedding(X, W[0]),
        ValueError,
        "weight has shape (4,); accepted are two dimensions [V, D]",
    ),
    "sparse": (lambda: embedding(X, W.to_sparse()), ValueError, "weight is of layout torch.sparse_coo"),
    "too large": (lambda: embedding(X + 5, W), IndexError, "input holds the index 5; accepted are 0 to 4"),
    "negative": (lambda: embedding(X - 1, W), IndexError, "input holds the index -1; accepted are 0 to 4"),
    "wraps in 32 bits": (lambda: embedding(X + 2**32, W), IndexError, f"input holds the index {2**32}"),
    "no rows": (lambda: embedding(X, W[:0]), IndexError, "input holds the index 0"),
    "padding type": (lambda: embedding(X, W, 1.0), TypeError, "padding_idx is a float; accepted is an int or None"),  # type: ignore[arg-type]
    "padding bool": (lambda: embedding(X, W, True), TypeError, "padding_idx is a bool"),
    "padding high": (lambda: embedding(X, W, 5), ValueError, "padding_idx is 5; accepted are -5 to 4"),
    "padding low": (lambda: embedding(X, W, -6), ValueError, "padding_idx is -6; accepted are -5 to 4"),
    "max_norm type": (lambda: embedding(X, W, max_norm="1"), TypeError, "max_norm is a str; accepted is a number"),  # type: ignore[arg-type]
    "max_norm negative": (lambda: embedding(X, W, max_norm=-1), ValueError, "max_norm is -1; accepted are finite"),
    "norm_type": (lambda: embedding(X, W, max_norm=1, norm_type=0), ValueError, "norm_type is 0; accepted are numbers"),
    "norm of one that does not exist": (
        lambda: embedding(X + 5, W, max_norm=1),
        IndexError,
        "input holds the index 5; accepted are 0 to 4",
    ),
    "norm of an expanded weight": (
        lambda: embedding(X, W[:1].expand(5, 4), max_norm=1),
        ValueError,
        "weight has strides (0, 1); with max_norm, one that is not expanded is accepted",
    ),
    "flag": (lambda: embedding(X, W, sparse=1), TypeError, "sparse is a int; accepted is a bool"),  # type: ignore[arg-type]
    "both flags": (
        lambda: embedding(X, W, scale_grad_by_freq=True, sparse=True),
        ValueError,
        "sparse and scale_grad_by_freq are True; accepted is one of them",
    ),
    "gradient shape": (
        lambda: embedding_backward(torch.zeros(2, 4), X, 5, -1),
        ValueError,
        "grad_output has shape (2, 4); accepted is input's (3,) and D",
    ),
    "gradient dtype": (
        lambda: embedding_backward(torch.zeros(3, 4).int(), X, 5, -1),
        TypeError,
        "grad_output has dtype torch.int32",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(assert_refused: Callable[..., None], name: str) -> None:
    assert_refused(*BAD[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case((300,), 1100, 64, "skewed"),
        Case((3, 4), 600, 17, layout="sliced", index_dtype=torch.int32),
    ],
    ids=str,
)
def test_no_finding(case: Case, dtype: torch.dtype, seed: int) -> None:
    with simulator.check():
        check(case, dtype, 1)


@pytest.mark.parametrize("index", [-1, 600, 2**40])
@pytest.mark.parametrize("columns", [17, 64])
def test_kernels_read_nothing_at_indices_outside_the_rows(
    monkeypatch: pytest.MonkeyPatch, seed: int, columns: int, index: int
) -> None:
    """Were the operators' checks not there: rows of NaN forward, left out backward."""
    monkeypatch.setattr(function, "_require_range", lambda indices, rows: None)
    inputs = Case((7,), 600, columns).inputs(torch.float16)
    good = inputs.input.clone()
    inputs.input[3] = index
    with simulator.check():
        output = embedding_forward(inputs.input, inputs.weight, NO_PADDING)
        gradient = embedding_backward(inputs.grad_output, inputs.input, 600, NO_PADDING)
    assert output[3].isnan().all()
    assert torch.equal(output[4:], inputs.weight[good[4:]])
    inputs.grad_output[3] = 0
    assert torch.equal(gradient, embedding_backward(inputs.grad_output, good, 600, NO_PADDING))


# The kernel of renormalisation includes the header of `reduce`, whose barrier is for more threads than it has.
@pytest.mark.parametrize(("path", "number"), barriers("ops/embedding/backward"))
def test_each_barrier_is_missed(path: str, number: int, seed: int) -> None:
    inputs = Case((700,), 600, 64, "skewed").inputs(torch.float32)
    with pytest.raises(KernelCheckError), without_barrier(path, number), simulator.check():
        embedding_backward(inputs.grad_output, inputs.input, 600, NO_PADDING)


def test_counted_bytes_are_those_that_the_readme_counts(seed: int) -> None:
    rows, columns, tokens = 1100, 64, 700
    inputs = Case((tokens,), rows, columns, "skewed").inputs(torch.float16)
    embedding_backward(inputs.grad_output, inputs.input, rows, NO_PADDING)
    with simulator.profile() as counts:
        embedding_backward(inputs.grad_output, inputs.input, rows, NO_PADDING)
    order, total = (record.counters for record in counts.launches)
    problem = function.describe_backward(inputs.grad_output, inputs.input, rows, NO_PADDING)
    assert plan.blocks(problem) == 3
    assert order.device_bytes_read == 2 * 3 * tokens * 8
    assert order.device_bytes_written == 4 * (tokens + rows + 1)
    assert total.device_bytes_written == 2 * rows * columns
    threads = columns // 8
    places = threads * 4 * (tokens + rows + tokens + rows)  # order, and starts: read again before each token
    assert total.device_bytes_read - 2 * tokens * columns <= places
