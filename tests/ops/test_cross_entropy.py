"""`cross_entropy` against float64: options, layouts, extreme logits, gradients, checks and bad arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import UnsupportedError
from mps_flash_attn.errors import KernelCheckError
from mps_flash_attn.functional import cross_entropy
from mps_flash_attn.launch import Capabilities
from mps_flash_attn.ops.cross_entropy import function, plan
from mps_flash_attn.ops.cross_entropy.cases import Case, Inputs
from mps_flash_attn.ops.cross_entropy.expected import exact, exact_target_gradient, pytorch
from mps_flash_attn.ops.rows import Operand
from mps_flash_attn.runtime import simulator
from tests.ops.barriers import barriers, without_barrier
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

forward = torch.ops.mps_flash_attn.cross_entropy_forward.default
backward = torch.ops.mps_flash_attn.cross_entropy_backward.default


def ours(inputs: Inputs, reduction: Any = "none") -> Tensor:
    return cross_entropy(inputs.x, inputs.target, inputs.weight, inputs.ignore_index, reduction, inputs.label_smoothing)


def check(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    x, target = (each.detach() for each in (inputs.x, inputs.target))
    leaves = [each.requires_grad_() for each in (x, target) if each.is_floating_point()]
    loss = cross_entropy(x, target, inputs.weight, inputs.ignore_index, "none", inputs.label_smoothing)
    grad, *of_target = torch.autograd.grad(loss, leaves, inputs.grad_loss.to(loss.dtype))
    theirs, their_grad, *theirs_of_target = pytorch(inputs)
    exact_loss, _, exact_grad = exact(inputs)
    assert_accurate(f"loss of {case} in {dtype}", loss.detach(), theirs, exact_loss)
    terms = inputs.grad_loss.flatten()  # of the gradient, which may cancel: its errors are relative to them
    if of_target:
        terms = terms * target.detach().sum(function.class_dim(x)).flatten()
        assert_accurate(f"grad of the target of {case}", *of_target, *theirs_of_target, exact_target_gradient(inputs))
    grads = (torch.cat([x.flatten(), terms.to(x.dtype)]) for x in (grad, their_grad, exact_grad))
    assert_accurate(f"grad of {case} in {dtype}", *grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, seed: int) -> None:
    for values in ("normal", "offset", "one-hot", "infinite"):
        check(Case((9, 24), values=values), dtype)  # type: ignore[arg-type]
    for values in ("normal", "offset", "one-hot"):
        check(Case((9, 24), weighted=True, label_smoothing=0.1, ignored=True, values=values), dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_team_in_float32(smoothing: float, seed: int) -> None:
    """Rows of a part of a simdgroup, of one, of a threadgroup, longer, and side by side."""
    for shape in ((5,), (3, 1), (3, 33), (3, 129), (2, 70_001), (2, 5, 600)):
        for values in ("normal", "offset"):
            check(Case(shape, label_smoothing=smoothing, values=values), torch.float32)  # type: ignore[arg-type]


def test_same_result_in_float64(seed: int) -> None:
    check(Case((9, 24), weighted=True, label_smoothing=0.1, ignored=True), torch.float64)


@given(
    st.builds(
        Case,
        shape=st.tuples(st.integers(0, 6), st.integers(1, 8))
        | st.tuples(st.integers(0, 4), st.integers(1, 8), st.integers(0, 3), st.integers(1, 3)),
        weighted=st.just(True),
        label_smoothing=st.sampled_from((0.0, 0.2, 1.0)),
        ignored=st.booleans(),
        layout=st.sampled_from(("contiguous", "transposed", "sliced", "expanded")),
        ignore_index=st.sampled_from((-100, 0)),
    ),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    if 0 in case.shape:
        inputs = case.inputs(torch.float32)
        assert ours(inputs).shape == inputs.target.shape
        return
    check(case, torch.float32)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("case", [Case((9, 24), ignored=True), Case((4, 5, 3), weighted=True, label_smoothing=0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_reductions_are_pytorchs(dtype: torch.dtype, case: Case, reduction: str, seed: int) -> None:
    inputs = case.inputs(dtype)
    loss, row_weight, _ = exact(inputs)
    expected = {"none": loss, "sum": loss.sum(), "mean": loss.sum() / row_weight.sum()}[reduction]
    options = (inputs.x, inputs.target, inputs.weight)
    theirs = F.cross_entropy(*options, ignore_index=-100, reduction=reduction, label_smoothing=inputs.label_smoothing)
    assert_accurate(reduction, ours(inputs, reduction), theirs, expected)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_probabilities(dtype: torch.dtype, seed: int) -> None:
    for values in ("normal", "offset", "one-hot"):
        check(Case((9, 24), values=values, probabilities=dtype), dtype)  # type: ignore[arg-type]
    check(Case((9, 24), weighted=True, label_smoothing=0.1, probabilities=dtype), dtype)
    check(Case((9, 24), probabilities=torch.float32), dtype)


def test_probabilities_in_every_team(seed: int) -> None:
    for shape in ((5,), (3, 1), (3, 33), (3, 129), (2, 70_001), (2, 5, 600)):
        check(Case(shape, probabilities=torch.float32), torch.float32)


@given(
    st.builds(
        Case,
        shape=st.tuples(st.integers(1, 6), st.integers(1, 8))
        | st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3)),
        weighted=st.just(True),
        label_smoothing=st.sampled_from((0.0, 0.2, 1.0)),
        layout=st.sampled_from(("contiguous", "transposed", "sliced", "expanded")),
        probabilities=st.just(torch.float32),
    ),
    st.integers(0, 2**31),
)
def test_combinations_of_probabilities(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    check(case, torch.float32)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    ("dtype", "target"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float16,) * 2]
)
def test_reductions_of_probabilities_are_pytorchs(
    dtype: torch.dtype, target: torch.dtype, reduction: str, seed: int
) -> None:
    inputs = Case((4, 5, 3), weighted=True, label_smoothing=0.3, probabilities=target).inputs(dtype)
    loss, row_weight, _ = exact(inputs)
    expected = {"none": loss, "sum": loss.sum(), "mean": loss.sum() / row_weight.sum()}[reduction]
    options = (inputs.x, inputs.target, inputs.weight)
    theirs = F.cross_entropy(*options, reduction=reduction, label_smoothing=inputs.label_smoothing)
    assert_accurate(reduction, ours(inputs, reduction), theirs, expected)


def test_no_rows_of_probabilities() -> None:
    x = torch.randn(0, 4, requires_grad=True)
    assert cross_entropy(x, torch.zeros(0, 4)).isnan()
    assert cross_entropy(x, torch.zeros(0, 4), reduction="none").shape == (0,)
    cross_entropy(x, torch.zeros(0, 4), reduction="sum").backward()
    assert x.grad is not None


def test_one_hot_probabilities_are_classes(seed: int) -> None:
    inputs = Case((9, 24), weighted=True, label_smoothing=0.1).inputs(torch.float32)
    one_hot = F.one_hot(inputs.target, 24).float()
    options = (inputs.weight, -100, "none", 0.1)
    found, wanted = (cross_entropy(inputs.x, target, *options) for target in (one_hot, inputs.target))  # type: ignore[arg-type]
    assert (found - wanted).abs().max() <= 4 * torch.finfo(torch.float32).eps * wanted.abs().max()


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=str)
def test_gradients_of_one_of_logits_and_probabilities(wanted: tuple[bool, bool], seed: int) -> None:
    inputs = Case((9, 24), probabilities=torch.float32).inputs(torch.float32)
    gradients = []
    for chosen in (wanted, (True, True)):
        x, target = (
            each.detach().requires_grad_(want) for each, want in zip((inputs.x, inputs.target), chosen, strict=True)
        )
        cross_entropy(x, target).backward()
        gradients.append((x.grad, target.grad))
    for want, some, every in zip(wanted, *gradients, strict=True):
        assert torch.equal(some, every) if want else some is None  # type: ignore[arg-type]


def test_gradient_of_the_mean(seed: int) -> None:
    """The gradient of each row's loss has stride 0; the default is the mean."""
    inputs = Case((9, 24), weighted=True, ignored=True).inputs(torch.float32)
    mine, theirs = (inputs.x.clone().requires_grad_() for _ in range(2))
    cross_entropy(mine, inputs.target, inputs.weight).backward()
    F.cross_entropy(theirs, inputs.target, inputs.weight).backward()
    assert mine.grad is not None
    assert theirs.grad is not None
    assert (mine.grad - theirs.grad).abs().max() <= 1e-6
    assert not mine.grad[inputs.target == -100].any()


def test_no_rows_and_ignored_rows() -> None:
    target = torch.full((3,), -100)
    x = torch.randn(3, 4, requires_grad=True)
    assert cross_entropy(x, target).isnan()
    assert cross_entropy(x, target, reduction="sum") == 0
    cross_entropy(x, target, reduction="sum").backward()
    assert not x.grad.any()  # type: ignore[union-attr]
    assert cross_entropy(x[:0], target[:0]).isnan()
    assert cross_entropy(x[:0], target[:0], reduction="sum") == 0


def test_rows_with_infinities_are_pytorchs(seed: int) -> None:
    x, target = torch.randn(6, 24), torch.randint(1, 24, (6,))
    x[1], x[2, 3], x[3, 0] = -torch.inf, torch.inf, torch.nan
    x[4, target[4]] = -torch.inf
    for smoothing in (0.0, 0.1):
        loss = cross_entropy(x, target, reduction="none", label_smoothing=smoothing)
        expected = F.cross_entropy(x, target, reduction="none", label_smoothing=smoothing)
        assert torch.allclose(loss, expected, equal_nan=True)
    assert loss.isnan().tolist() == [False, True, True, True, False, False]


def test_bytes_as_classes(seed: int) -> None:
    x, target = torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 2])
    assert torch.equal(cross_entropy(x, target.byte()), cross_entropy(x, target))


@pytest.mark.parametrize("bad", [-1, 4, 2**40, -(2**62)])
def test_classes_that_do_not_exist_are_raised(bad: int) -> None:
    target = torch.tensor([0, 3, bad])
    words = f"target holds {bad}; accepted are classes 0 to 3 and ignore_index, -100"
    with pytest.raises(ValueError, match=re.escape(words)):
        cross_entropy(torch.randn(3, 4), target)
    assert cross_entropy(torch.randn(3, 4), target, ignore_index=bad).isfinite()


@pytest.mark.parametrize("weighted", [False, True])
def test_kernels_read_nothing_for_classes_that_do_not_exist(
    weighted: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function, "_require_classes", lambda *_: None)
    inputs = Case((5, 24), weighted=weighted, label_smoothing=0.1).inputs(torch.float32)
    inputs.target[1:4] = torch.tensor([24, -1, 2**40])
    with simulator.check():
        loss, row_weight, statistics = forward(inputs.x, inputs.target, inputs.weight, -100, 0.1)
        grad, _ = backward(torch.ones(5), inputs.x, inputs.target, inputs.weight, statistics, -100, 0.1)
    for result in (loss, row_weight, grad):
        assert not result[1:4].any()
        assert result[0].any()
        assert result[4].any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weighted": True, "label_smoothing": 0.2, "ignored": True},
        {"weighted": True, "label_smoothing": 0.2, "probabilities": torch.float64},
    ],
    ids=str,
)
def test_gradients_are_exact(options: dict[str, Any], seed: int) -> None:
    inputs = Case((4, 5, 2), **options).inputs(torch.float64)
    for reduction in ("none", "sum"):
        assert torch.autograd.gradcheck(
            lambda x, target, reduction=reduction: cross_entropy(
                x, target, inputs.weight, -100, reduction, inputs.label_smoothing
            ),
            (inputs.x.requires_grad_(), inputs.target.requires_grad_(inputs.target.is_floating_point())),
        )


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
def test_operators_keep_pytorchs_rules(layout: str, seed: int) -> None:
    inputs = Case((4, 5, 3), weighted=True, layout=layout).inputs(torch.float32)  # type: ignore[arg-type]
    operands = (inputs.target, inputs.weight)
    torch.library.opcheck(forward, (inputs.x.detach().requires_grad_(), *operands, -100, 0.1))
    loss, _, statistics = forward(inputs.x, *operands, -100, 0.1)
    torch.library.opcheck(backward, (torch.randn_like(loss), inputs.x, *operands, statistics, -100, 0.1))
    target = torch.rand(4, 5, 3).half()
    torch.library.opcheck(forward, (inputs.x, target.clone().requires_grad_(), inputs.weight, -100, 0.1))
    operands = (torch.randn_like(loss), inputs.x, target, inputs.weight, statistics, -100, 0.1, False, True)
    torch.library.opcheck(backward, operands)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool, seed: int) -> None:
    def loss(x: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(x.sin(), target, label_smoothing=0.1)

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (5, 6):
        plain, target = torch.randn(rows, 4, requires_grad=True), torch.randint(4, (rows,))
        copy = plain.detach().clone().requires_grad_()
        loss(plain, target).backward()
        compiled(copy, target).backward()
        assert torch.equal(copy.grad, plain.grad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target holds 4"):
        compiled(plain, target + 4 - target)


def test_second_derivatives_and_forward_mode_are_refused() -> None:
    x, target = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 2])
    (grad,) = torch.autograd.grad(cross_entropy(x, target), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivatives of cross_entropy are not supported"):
        grad.square().sum().backward()
    with pytest.raises(UnsupportedError, match=r"torch\.func gradients of cross_entropy"):
        torch.func.jvp(lambda x: cross_entropy(x, target), (x.detach(),), (x.detach(),))


def test_autocast_follows_pytorch(seed: int) -> None:
    x, target = torch.randn(3, 4).bfloat16(), torch.tensor([0, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cross_entropy(x, target).dtype == F.cross_entropy(x, target).dtype == torch.float32
    assert cross_entropy(x, target).dtype == torch.bfloat16


def run(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    weight = None if inputs.weight is None else inputs.weight.float()
    options = (weight, inputs.ignore_index, inputs.label_smoothing)
    results = forward(inputs.x, inputs.target, *options)
    grad_loss = inputs.grad_loss.float()
    wanted = (True, inputs.target.is_floating_point())
    grads = backward(grad_loss, inputs.x, inputs.target, options[0], results[2], *options[1:], *wanted)
    assert not any(x.isnan().any() for x in (*results, *grads)), "an element was never written"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_finding(dtype: torch.dtype, seed: int) -> None:
    with simulator.check():
        run(Case((35, 24), weighted=True, label_smoothing=0.1, ignored=True), dtype)
        run(Case((35, 24), weighted=True, label_smoothing=0.1, probabilities=dtype), dtype)


def test_no_finding_in_other_teams(seed: int) -> None:
    with simulator.check():
        run(Case((2, 601), label_smoothing=0.1), torch.float32)
        run(Case((2, 5, 600), ignored=True), torch.float32)
        run(Case((2, 5, 600), probabilities=torch.float32), torch.float32)


# The backward kernel includes the header of `reduce` and does not call it.
@pytest.mark.parametrize(("path", "number"), barriers("ops/cross_entropy/forward"))
def test_each_barrier_is_missed(path: str, number: int, seed: int) -> None:
    with pytest.raises(KernelCheckError), without_barrier(path, number), simulator.check():
        run(Case((2, 601), label_smoothing=0.1), torch.float32)


@pytest.mark.parametrize("shape", [(9, 24), (2, 70_001)], ids=str)
def test_logits_are_read_once(shape: tuple[int, int], seed: int) -> None:
    inputs = Case(shape).inputs(torch.float32)
    with simulator.profile() as counts:
        _, _, statistics = forward(inputs.x, inputs.target, None, -100, 0.0)
        backward(inputs.grad_loss, inputs.x, inputs.target, None, statistics, -100, 0.0)
    first, second = (record.counters for record in counts.launches)
    assert first.device_bytes_read == inputs.x.nbytes + shape[0] * (8 + 4)  # target, and its logit once more
    assert first.device_bytes_written == shape[0] * 5 * 4
    assert second.device_bytes_written == inputs.x.nbytes


def test_probabilities_are_read_once(seed: int) -> None:
    inputs = Case((9, 24), probabilities=torch.float16).inputs(torch.float32)
    with simulator.profile() as counts:
        forward(inputs.x, inputs.target, None, -100, 0.0)
    (first,) = (record.counters for record in counts.launches)
    assert first.device_bytes_read == inputs.x.nbytes + inputs.target.nbytes
    assert first.device_bytes_written == 9 * 5 * 4


def test_new_sizes_compile_nothing() -> None:
    def text(rows: int, classes: int, smoothing: float) -> str:
        x, row = Operand(torch.float32, (classes, 1)), Operand(torch.float32, (1, 0))
        per_row = (("target", row), ("loss", row))
        problem = plan.Problem((rows, classes), 1, (("x", x),), per_row, False, rows, smoothing)
        return plan.forward(problem, Capabilities()).text

    assert text(1, 50_000, 0.1) == text(7, 128_000, 0.2)
    assert text(1, 8, 0.0) == text(1000, 12, 0.0) != text(1, 8, 0.1)


X, TARGET = torch.zeros(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cross_entropy([1.0], TARGET), TypeError, "input is a list; accepted is a Tensor"),  # type: ignore[arg-type]
        (lambda: cross_entropy(X.int(), TARGET), TypeError, "input has dtype torch.int32"),
        (lambda: cross_entropy(X[0, 0], TARGET), ValueError, "input has no dimensions; accepted are [C], [N, C]"),
        (lambda: cross_entropy(X[:, :0], TARGET), ValueError, "input has shape (2, 0), with no classes"),
        (lambda: cross_entropy(X, [0, 1]), TypeError, "target is a list; accepted is a Tensor"),  # type: ignore[arg-type]
        (
            lambda: cross_entropy(X, TARGET.int()),
            TypeError,
            "target has dtype torch.int32; accepted are int64 and uint8",
        ),
        (lambda: cross_entropy(X, X[0]), ValueError, "target has shape (3,); accepted is input's shape, of prob"),
        (lambda: cross_entropy(X, X, ignore_index=0), ValueError, "ignore_index is 0; accepted with probabilities"),
        (lambda: cross_entropy(X, TARGET[:1]), ValueError, "target has shape (1,); accepted is input's shape without"),
        (lambda: cross_entropy(X, TARGET.to("meta")), ValueError, "target is on meta and input on cpu"),
        (lambda: cross_entropy(X, TARGET, X[0].int()), TypeError, "weight has dtype torch.int32"),
        (
            lambda: cross_entropy(X, TARGET, X[0, :2]),
            ValueError,
            "weight has shape (2,); accepted is one number a class",
        ),
        (lambda: cross_entropy(X, TARGET, X[0].requires_grad_()), UnsupportedError, "weight requires grad"),
        (lambda: cross_entropy(X, TARGET, ignore_index=1.0), TypeError, "ignore_index is a float; accepted is an int"),  # type: ignore[arg-type]
        (lambda: cross_entropy(X, TARGET, reduction="avg"), ValueError, "reduction is 'avg'; accepted are 'none',"),  # type: ignore[arg-type]
        (lambda: cross_entropy(X, TARGET, label_smoothing=1.5), ValueError, "label_smoothing is 1.5; accepted are"),
        (lambda: cross_entropy(X, TARGET, label_smoothing=-0.1), ValueError, "label_smoothing is -0.1; accepted are"),
        (lambda: forward(X, TARGET.int(), None, 0, 0.0), ValueError, "target is torch.int32 of shape (2,)"),
        (lambda: forward(X, TARGET, X[0].half(), 0, 0.0), ValueError, "weight is torch.float16 of shape (3,)"),
        (
            lambda: backward(X, X, TARGET, None, torch.zeros(3, 2), 0, 0.0),
            ValueError,
            "grad_loss is torch.float32 of shape (2, 3)",
        ),
        (
            lambda: backward(X[:, 0], X, TARGET, None, torch.zeros(3, 2), 0, 0.0, True, True),
            ValueError,
            "target_wanted is True; accepted is False",
        ),
    ],
)
def test_bad_arguments_are_named(
    assert_refused: Callable[..., None], call: Callable[[], object], error: type[Exception], words: str
) -> None:
    assert_refused(call, error, words)
