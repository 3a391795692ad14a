"""Sums, products, activations and gates against float64 and PyTorch; their gradients; bad arguments."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import UnsupportedError, source
from mps_flash_attn.functional import add, geglu, gelu, mul, relu, relu_squared, relu_squared_glu, silu, swiglu
from mps_flash_attn.launch import Capabilities
from mps_flash_attn.ops.elementwise import plan
from mps_flash_attn.ops.elementwise.cases import Case, Inputs
from mps_flash_attn.ops.elementwise.expected import PYTORCH, exact, pytorch
from mps_flash_attn.ops.rows import Operand
from mps_flash_attn.runtime import simulator
from tests.ops.barriers import barriers
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "transposed", "sliced", "strided", "expanded")

operators = torch.ops.mps_flash_attn

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "relu_squared": relu_squared,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
    "silu": silu,
}
GATES: dict[str, Callable[..., Tensor]] = {
    "relu_squared": relu_squared_glu,
    "gelu": geglu,
    "gelu_tanh": lambda *halves: geglu(*halves, approximate="tanh"),
    "silu": swiglu,
}


def ours(inputs: Inputs) -> dict[str, Tensor]:
    """``out``, ``dx`` and for a tensor ``y`` also ``dy``, through the public functions."""
    x = inputs.x.detach().requires_grad_()
    y = inputs.y.detach().requires_grad_() if isinstance(inputs.y, Tensor) else inputs.y
    if y is None:
        out = UNARY[inputs.activation](x)
    elif inputs.activation == "identity":
        out = (add if inputs.combine == "add" else mul)(x, y)
    else:
        out = GATES[inputs.activation](x, y)
    gradients = torch.autograd.grad(out, (x, y) if isinstance(y, Tensor) else (x,), inputs.grad)
    return {"out": out.detach(), **dict(zip(("dx", "dy"), gradients, strict=False))}


def check(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    actual, baseline, wanted = ours(inputs), pytorch(inputs), exact(inputs)
    assert actual.keys() == wanted.keys()
    for name in wanted:
        assert_accurate(f"{name} of {case} in {dtype}", actual[name], baseline[name], wanted[name])


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((Case((1003,), activation=name), torch.float32) for name in UNARY),
        *((Case((9, 24), (9, 24), name, "mul"), torch.float32) for name in GATES),
        *((Case((1003,), activation="gelu"), dtype) for dtype in DTYPES[1:]),
        *((Case((9, 24), (24,), combine="add"), dtype) for dtype in DTYPES),
        *((Case((9, 24), (24,), combine="mul"), dtype) for dtype in DTYPES),
        (Case((9, 24), -1.7, combine="add"), torch.float32),
        (Case((9, 24), 0.1, combine="mul"), torch.float32),
        (Case((9, 24), 0.1, combine="mul"), torch.float16),
    ],
    ids=str,
)
def test_operations(case: Case, dtype: torch.dtype, seed: int) -> None:
    check(case, dtype)


@pytest.mark.parametrize("name", UNARY)
def test_activations_in_float64_are_right_to_the_last_digits(name: str, seed: int) -> None:
    inputs = Case((400,), activation=name, scale=4.0).inputs(torch.float64)
    found, wanted = ours(inputs), exact(inputs)
    for result in wanted:
        error = (found[result] - wanted[result]).abs() / (wanted[result].abs() + 1e-3)
        assert error.max() <= 1e-13


@given(
    st.sampled_from(
        (
            ((5, 8), (5, 8)),
            ((3, 4, 8), (8,)),
            ((3, 4, 8), (3, 1, 8)),
            ((3, 4, 8), (4, 1)),
            ((4, 1), (1, 7)),
            ((2, 1, 3), (5, 1, 2, 1)),
            ((), (3,)),
            ((1,), ()),
            ((0, 4), (4,)),
            ((3, 1), (1, 0)),
            ((2, 2, 2, 2, 3), (2, 1, 2, 1, 3)),
        )
    ),
    st.sampled_from(LAYOUTS),
    st.sampled_from(LAYOUTS),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_broadcasting_and_layouts(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], layout: str, y_layout: str, swap: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x, y = shapes[::-1] if swap else shapes
    check(Case(x, y, combine="mul", layout=layout, y_layout=y_layout), torch.float32)  # type: ignore[arg-type]


@pytest.mark.parametrize("combine", ["add", "mul"])
@pytest.mark.parametrize(("x", "y"), list(itertools.permutations(DTYPES, 2))[::2], ids=str)
def test_dtypes_are_promoted(x: torch.dtype, y: torch.dtype, combine: str, seed: int) -> None:
    for case in (
        Case((9, 24), (9, 24), combine=combine, y_dtype=y),
        Case((9, 24), (24,), combine=combine, y_dtype=y),  # the smaller one's gradient is summed before it is rounded
        Case((9, 24), (), combine=combine, y_dtype=y),  # a number of any dtype leaves that of the tensor
        Case((), (24,), combine=combine, y_dtype=y),
        Case((3, 5), (3, 5), combine=combine, layout="sliced", y_layout="transposed", y_dtype=y),
    ):
        check(case, x)


@pytest.mark.parametrize(("x", "y"), [(torch.float16, torch.float32), (torch.bfloat16, torch.float16)], ids=str)
def test_gates_promote_dtypes(x: torch.dtype, y: torch.dtype, seed: int) -> None:
    check(Case((9, 24), (9, 24), "silu", "mul", y_dtype=y), x)


def test_float64_beside_smaller_dtypes(seed: int) -> None:
    check(Case((9, 24), (24,), combine="mul", y_dtype=torch.float64), torch.float16)
    check(Case((9, 24), (), combine="mul", y_dtype=torch.float64), torch.float16)


def test_a_residual_under_autocast_keeps_its_dtype(seed: int) -> None:
    residual, weight = torch.randn(5, 8, requires_grad=True), torch.randn(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        branch = residual @ weight
        assert branch.dtype == torch.bfloat16
        out = add(residual, branch)
    assert torch.equal(out, residual + branch)
    assert out.dtype == torch.float32


def test_more_dimensions_than_kernels_count_over(seed: int) -> None:
    shape = (2,) * 10
    x, y = torch.randn(shape), torch.randn(shape).permute(1, 0, 3, 2, 5, 4, 7, 6, 9, 8)
    x = x.permute(9, 7, 5, 3, 1, 0, 2, 4, 6, 8)
    operands = {"out": Operand.of(x), "y": Operand.of(y)}
    assert plan.describe(plan.Operation("identity", "mul"), shape, operands) is None
    assert torch.equal(mul(x, y), x * y)
    assert torch.equal(mul(x, y.half()), x * y.half())
    leaves = [t.detach().requires_grad_() for t in (x, y)]
    gradients = torch.autograd.grad(mul(*leaves), leaves, grad := torch.randn(shape))
    assert all(map(torch.equal, gradients, (grad * y, grad * x)))
    wide = torch.randn(*shape[:-1], 4).transpose(0, 8).requires_grad_()
    gate, up = wide.chunk(2, -1)
    (expected,) = torch.autograd.grad(swiglu(gate.contiguous(), up.contiguous()), wide, grad)
    assert torch.equal(torch.autograd.grad(swiglu(wide), wide, grad)[0], expected)


@pytest.mark.parametrize("name", ["relu_squared", "silu"])
def test_halves_of_one_tensor_are_gate_and_up(name: str, seed: int) -> None:
    for shape in ((5, 16), (2, 3, 6), (0, 4), (4,), (3, 0)):
        whole = torch.randn(shape).requires_grad_()
        gate, up = (half.detach().requires_grad_() for half in whole.chunk(2, -1))
        grad = torch.randn(gate.shape)
        split, joined = GATES[name](gate, up), GATES[name](whole)
        assert torch.equal(split, joined)
        expected = torch.cat(torch.autograd.grad(split, (gate, up), grad), -1)
        assert torch.equal(torch.autograd.grad(joined, whole, grad)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_values(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = [0.0, -0.0, 1e-30, -1e-30, 30.0, -30.0, 1e4, -1e4, largest, -largest, torch.inf, -torch.inf, torch.nan]
    x = torch.tensor(values, dtype=dtype)
    for name in ("relu", "gelu", "gelu_tanh", "silu"):
        leaf, baseline = (x.clone().requires_grad_() for _ in range(2))
        out, pytorch = UNARY[name](leaf), PYTORCH[name](baseline)
        expected = torch.where(x >= 1e4, x, pytorch)  # exactly; some versions of PyTorch overflow there
        assert torch.equal(out.isnan(), expected.isnan()), name
        torch.testing.assert_close(out, expected, equal_nan=True)
        (gradient,) = torch.autograd.grad(out.sum(), leaf)
        (wanted,) = torch.autograd.grad(pytorch.sum(), baseline)
        finite = x.isfinite() & ~wanted.isnan()  # PyTorch's tanh form has 0 * infinity for large numbers
        torch.testing.assert_close(gradient[finite], wanted[finite])
        assert gradient[x.isfinite()].isfinite().all()


def test_gelu_keeps_its_digits_where_it_is_small() -> None:
    x = torch.linspace(-12, -3, 500)
    relative = gelu(x).double() / (x.double() * torch.special.erfc(-x.double() * 0.5**0.5) / 2) - 1
    # The rounding of x / sqrt(2) alone changes erfc by up to x^2 / 2 of its epsilons.
    assert (relative.abs() <= torch.finfo(torch.float32).eps * (16 + x.square())).all()


@pytest.mark.parametrize(("accum", "dtype"), [("float", torch.float32), ("double", torch.float64)])
def test_error_function(accum: str, dtype: torch.dtype) -> None:
    text = f"#define ELEMENT {accum}\n#define ACCUMULATOR {accum}\n{source.flatten('msl/erf.h')}"
    text += """
kernel void values(const device accum* x [[buffer(0)]], device accum* erf [[buffer(1)]],
                   device accum* erfc [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    erf[i] = error_function(x[i]);
    erfc[i] = error_function_complement(x[i]);
}
"""
    x = torch.cat((torch.linspace(-30, 30, 20_001, dtype=dtype), torch.logspace(-30, 0, 500, dtype=dtype)))
    x = torch.cat((x, torch.tensor([0.46875, -0.46875, 4.0, -4.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)))
    erf, erfc = torch.empty_like(x), torch.empty_like(x)
    simulator.compile_shader(text).values(x, erf, erfc, threads=len(x))
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(erf, torch.erf(x.double()).to(dtype), rtol=4 * epsilon, atol=0, equal_nan=True)
    normal = ~(torch.special.erfc(x.double()) < torch.finfo(dtype).tiny)
    wanted = torch.special.erfc(x.double()).to(dtype)
    torch.testing.assert_close(erfc[normal], wanted[normal], rtol=16 * epsilon, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "name", [*UNARY, "swiglu", "swiglu of halves", "add", "mul", "mul by a number", "add a number"]
)
def test_gradients_are_exact(name: str, seed: int) -> None:
    x, y = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (4,)))
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        **{key: lambda x, y, function=function: function(x) for key, function in UNARY.items()},  # type: ignore[misc]
        "swiglu": lambda x, y: swiglu(x, y.expand(3, 4)),
        "swiglu of halves": lambda x, y: swiglu(x),
        "add": add,
        "mul": mul,
        "mul by a number": lambda x, y: mul(x, -3),
        "add a number": lambda x, y: add(x, 0.5),
    }
    assert torch.autograd.gradcheck(functions[name], (x, y))


@pytest.mark.parametrize("wanted", [(0,), (1,)], ids=str)
@pytest.mark.parametrize("function", [add, mul, swiglu])
def test_gradients_of_some_arguments(function: Callable[..., Tensor], wanted: tuple[int, ...], seed: int) -> None:
    every = [torch.randn(5, 8).requires_grad_() for _ in range(2)]
    some = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(every)]
    for x, y in (every, some):
        function(x, y).square().sum().backward()
    for i, (full, part) in enumerate(zip(every, some, strict=True)):
        assert (part.grad is not None) == (i in wanted)
        if i in wanted:
            assert torch.equal(part.grad, full.grad)  # type: ignore[arg-type]


def test_one_tensor_as_both_operands(seed: int) -> None:
    x = torch.randn(5, 8, requires_grad=True)
    mul(x, x).sum().backward()
    assert torch.equal(x.grad, 2 * x)  # type: ignore[arg-type]


def test_contiguous_tensors_are_moved_in_packs(seed: int) -> None:
    x = torch.randn(8, 1024).t()  # elements are counted in the order of memory
    with simulator.profile() as counts:
        silu(x)
    (record,) = counts.launches
    assert record.counters.device_bytes_read == record.counters.device_bytes_written == 4 * x.numel()
    half = torch.randn(8, 1024).half().t()
    with simulator.profile() as counts:
        add(x, half)
    (record,) = counts.launches
    assert record.counters.device_bytes_read == 6 * x.numel()
    assert record.counters.device_bytes_written == 4 * x.numel()
    for tensor, packed in ((x, True), (x[1:], False), (x[4:], True), (torch.randn(9, 9)[:, 1:], False)):
        operands = {"x": Operand.of(tensor), "out": Operand(tensor.dtype, tensor.stride())}
        problem = plan.describe(plan.Operation("silu", "none"), tensor.shape, operands)
        assert problem is not None
        assert problem.packed == packed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_lie_as_pytorchs_do(layout: str, seed: int) -> None:
    x = Case((3, 4, 8), activation="relu", layout=layout).inputs(torch.float32).x  # type: ignore[arg-type]
    if layout != "expanded":
        assert relu(x).stride() == torch.relu(x).stride()
    assert torch.equal(relu(x), torch.relu(x))


def test_plans_refuse_what_no_device_can_do() -> None:
    operation, half = plan.Operation("identity", "add"), Operand(torch.float16, (1,))
    for dtype, count in ((torch.float64, 8), (torch.float32, 2**32)):
        operands = (("x", half), ("y", Operand(dtype, (1,))), ("out", half))
        with pytest.raises(UnsupportedError):
            plan.forward(plan.Problem(operation, (count,), operands, packed=False), Capabilities())


def test_second_derivatives_are_refused(seed: int) -> None:
    x, y = (torch.randn(5, 8, requires_grad=True) for _ in range(2))
    for out, wanted in ((silu(x), x), (swiglu(x), x), (mul(x, y), y)):
        (first,) = torch.autograd.grad(out.square().sum(), wanted, create_graph=True)
        with pytest.raises(UnsupportedError, match="second derivatives of elementwise operations"):
            first.sum().backward()


def test_other_differentiation_is_refused(seed: int) -> None:
    with pytest.raises(UnsupportedError, match=re.escape("torch.func gradients of elementwise operations")):
        torch.func.grad(lambda x: silu(x).sum())(torch.randn(8))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_keep_pytorchs_rules(layout: str, seed: int) -> None:
    inputs = Case((3, 4), (4,), combine="mul", layout=layout).inputs(torch.float32)  # type: ignore[arg-type]
    x, y = inputs.x.detach().requires_grad_(), inputs.y.requires_grad_()  # type: ignore[union-attr]
    torch.library.opcheck(operators.elementwise.default, (x, y, None, "identity", "mul"))
    torch.library.opcheck(operators.elementwise.default, (x, None, 2.0, "identity", "mul"))
    torch.library.opcheck(operators.elementwise.default, (x, y.half(), None, "identity", "add"))
    arguments = (inputs.grad, x.detach(), y.detach(), None, "identity", "mul")
    torch.library.opcheck(operators.elementwise_backward.default, (*arguments, True, True))
    torch.library.opcheck(operators.elementwise_backward.default, (*arguments, False, True))
    mixed = (inputs.grad, x.detach(), y.detach().half(), None, "identity", "mul", True, True)
    torch.library.opcheck(operators.elementwise_backward.default, mixed)
    torch.library.opcheck(operators.gate_halves.default, (x, "silu"))
    torch.library.opcheck(operators.gate_halves_backward.default, (inputs.grad[:, 2:], x.detach(), "silu"))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_as_one_graph(seed: int) -> None:
    bias = torch.randn(8, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        return mul(add(swiglu(x), bias), 0.5) + gelu(relu_squared_glu(x, silu(x)))[..., :8]

    results = []
    data = torch.randn(5, 16)
    for function in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        x = data.clone().requires_grad_()
        out = function(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, bias))))
    assert all(torch.equal(eager, compiled) for eager, compiled in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_finding(dtype: torch.dtype, seed: int) -> None:
    cases = [Case((9, 24), (24,), combine="add"), Case((5, 37), (5, 37), "gelu", "mul", layout="sliced")]
    if dtype != torch.float32:
        cases += [Case((9, 24), (24,), combine="mul", y_dtype=torch.float32)]
    if dtype == torch.float32:
        cases += [Case((1003,), activation="gelu"), Case((3, 4, 8), (4, 1), combine="mul", layout="transposed")]
    with simulator.check():
        for case in cases:
            assert not any(x.isnan().any() for x in ours(case.inputs(dtype)).values()), "an element was never written"


def test_there_is_no_barrier() -> None:
    assert not barriers("ops/elementwise/")


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: add([1.0], X), TypeError, "input is a list; accepted is a Tensor"),
        (lambda: relu(X.int()), TypeError, "input has dtype torch.int32; accepted are float32"),
        (lambda: silu(X.to_sparse()), ValueError, "input is of layout torch.sparse_coo"),
        (lambda: add(X, "1"), TypeError, "other is a str; accepted are a Tensor and a number"),
        (lambda: mul(X, True), TypeError, "other is a bool; accepted are a Tensor and a number"),
        (lambda: mul(X, torch.inf), ValueError, "other is inf; accepted are finite numbers"),
        (lambda: add(X, X.int()), TypeError, "other has dtype torch.int32; accepted are float32"),
        (lambda: add(X, X.to("meta")), ValueError, "other is on meta and input on cpu"),
        (
            lambda: add(X, torch.zeros(2)),
            ValueError,
            "other has shape (2,); accepted is what broadcasts with input, (2,",
        ),
        (lambda: gelu(X, "erf"), ValueError, "approximate is 'erf'; accepted are 'none' and 'tanh'"),
        (lambda: geglu(X, X, None), ValueError, "approximate is None; accepted"),
        (lambda: gelu(1.0), TypeError, "input is a float; accepted is a Tensor"),
        (lambda: swiglu(X), ValueError, "gate has shape (2, 3); accepted without up is an even last size"),
        (lambda: swiglu(torch.tensor(1.0)), ValueError, "gate has shape (); accepted without up"),
        (lambda: swiglu(X, 2.0), TypeError, "up is a float; accepted is a Tensor"),
        (lambda: relu_squared_glu(X, X[0]), ValueError, "up has shape (3,); accepted is that of gate, (2, 3)"),
        (lambda: geglu(X, X.to("meta")), ValueError, "up is on meta and gate on cpu"),
        (lambda: operators.elementwise(X, X, 1.0, "relu", "mul"), ValueError, "accepted is one of y and number"),
        (lambda: operators.elementwise(X, None, None, "tan", "none"), ValueError, "activation is 'tan'; accepted"),
        (lambda: operators.elementwise(X, X, None, "relu", "pow"), ValueError, "combine is 'pow'; accepted"),
        (lambda: operators.gate_halves(X, "silu"), ValueError, "x has shape (2, 3); accepted is an even last size"),
        (
            lambda: operators.elementwise_backward(X[0], X, None, None, "relu", "none", True, False),
            ValueError,
            "grad is torch.float32 of shape (3,); accepted",
        ),
        (
            lambda: operators.elementwise_backward(X.half(), X.half(), X, None, "relu", "mul", True, False),
            ValueError,
            "grad is torch.float16 of shape (2, 3); accepted is torch.float32 of (2, 3)",
        ),
        (
            lambda: operators.elementwise_backward(X, X, None, None, "relu", "none", True, True),
            ValueError,
            "y_wanted is True; accepted is False",
        ),
        (
            lambda: operators.gate_halves_backward(X, X[:, :2], "silu"),
            ValueError,
            "grad is torch.float32 of (2, 3); accepted",
        ),
    ],
)
def test_bad_arguments_are_named(
    assert_refused: Callable[..., None], call: Callable[[], object], error: type[Exception], words: str
) -> None:
    assert_refused(call, error, words)
