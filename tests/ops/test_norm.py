"""LayerNorm and RMSNorm, with and without a residual, against float64 and PyTorch; their gradients; bad arguments."""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import UnsupportedError
from mps_flash_attn.errors import KernelCheckError
from mps_flash_attn.functional import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from mps_flash_attn.launch import Capabilities
from mps_flash_attn.ops import calls
from mps_flash_attn.ops.norm import function, plan
from mps_flash_attn.ops.norm.cases import Case, Inputs
from mps_flash_attn.ops.norm.expected import exact, pytorch
from mps_flash_attn.ops.rows import Operand
from mps_flash_attn.runtime import simulator
from mps_flash_attn.runtime.simulator import compiler, library
from tests.ops.barriers import barriers, without_barrier
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ALIGNED = Case((6,), (40,))
ODD = Case((3, 2), (61,), centred=False, residual=True)
#: A row is shared by the four simdgroups of a threadgroup, whose results meet in threadgroup memory.
SHARED = Case((3,), (600,))

operators = torch.ops.mps_flash_attn


def ours(inputs: Inputs) -> dict[str, Tensor]:
    """``y sum dx dweight dbias`` from the kernels, those that there are."""
    names = [name for name in ("input", "weight", "bias") if getattr(inputs, name) is not None]
    leaves = {name: getattr(inputs, name).detach().requires_grad_() for name in names}
    x, weight, bias = leaves["input"], leaves.get("weight"), leaves.get("bias")
    shape = x.shape[x.dim() - inputs.dims :]
    outputs: tuple[Tensor, ...]
    if inputs.residual is None and inputs.centred:
        outputs = (layer_norm(x, shape, weight, bias, inputs.eps),)
    elif inputs.residual is None:
        outputs = (rms_norm(x, shape, weight, inputs.eps),)
    elif inputs.centred:
        outputs = add_layer_norm(x, inputs.residual, shape, weight, bias, inputs.eps)
    else:
        outputs = add_rms_norm(x, inputs.residual, shape, weight, inputs.eps)
    assert all(output.is_contiguous() for output in outputs)
    grads = (inputs.grad,) if inputs.grad_sum is None else (inputs.grad, inputs.grad_sum)
    gradients = torch.autograd.grad(outputs, tuple(leaves.values()), grads)
    results = dict(zip(("dx", *(f"d{name}" for name in names[1:])), gradients, strict=True))
    return {**dict(zip(("y", "sum"), (x.detach() for x in outputs), strict=False)), **results}


def check(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    actual, baseline, wanted = ours(inputs), pytorch(inputs), exact(inputs)
    assert actual.keys() == wanted.keys()
    for name in wanted:
        assert_accurate(f"{name} of {case} in {dtype}", actual[name], baseline[name], wanted[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [ALIGNED, ODD], ids=["aligned", "odd"])
def test_dtypes(case: Case, dtype: torch.dtype, seed: int) -> None:
    check(case, dtype)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case((3,), (512,)), torch.float32),
        (SHARED, torch.float32),
        (Case((2,), (9001,), bias=False), torch.float32),
        (Case((2,), (70_000,)), torch.float32),
        (Case((2,), (70_000,)), torch.float16),
        (Case((300,), (40,)), torch.float32),  # more blocks of rows than one
    ],
    ids=lambda value: "x".join(map(str, (*value.lead, *value.row))) if isinstance(value, Case) else str(value),
)
def test_lengths(case: Case, dtype: torch.dtype, seed: int) -> None:
    check(case, dtype)


def test_more_rows_than_blocks_take_in_one_go(seed: int) -> None:
    check(Case((9000,), (8,)), torch.float32)


@pytest.mark.parametrize(
    "case",
    [
        Case((6,), (40,)),
        Case((6,), (40,), bias=False),
        Case((6,), (40,), weight=False),
        Case((6,), (40,), weight=False, bias=False),
        Case((6,), (40,), residual=True),
        Case((6,), (40,), centred=False),
        Case((6,), (40,), centred=False, weight=False),
    ],
    ids=str,
)
def test_each_of_weight_and_bias_is_optional(case: Case, seed: int) -> None:
    check(case, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float_parameters_beside_short_inputs(dtype: torch.dtype, seed: int) -> None:
    check(Case((6,), (40,), float_parameters=True), dtype)


@given(
    st.builds(
        Case,
        lead=st.sampled_from(((), (1,), (0,), (7,), (2, 3), (33, 1), (2, 5, 3), (0, 2))),
        row=st.sampled_from(((40,), (4, 8), (2, 1, 12), (64,), (0,))),
        layout=st.sampled_from(("contiguous", "transposed", "sliced", "expanded", "strided")),
        scale=st.sampled_from((1.0, 1e-4)),
    ),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    check(case, torch.float32)


@pytest.mark.parametrize(
    ("offset", "scale"), [(1e4, 1.0), (-1e4, 1e-2), (0.0, 1e-20), (0.0, 1e18), (3.0, 0.0), (0.0, 0.0)]
)
@pytest.mark.parametrize("columns", [1, 40, 600])
def test_extreme_values(columns: int, offset: float, scale: float, seed: int) -> None:
    check(Case((6,), (columns,), offset=offset, scale=scale), torch.float32)


def test_a_large_offset_costs_no_more_than_its_rounding(seed: int) -> None:
    x = torch.randn(6, 4000) + 1e4
    found = layer_norm(x, (4000,)).double()
    wanted = F.layer_norm(x.double(), (4000,))
    assert (found - wanted).abs().max() <= torch.finfo(torch.float32).eps * 1e4


def test_squares_that_overflow() -> None:
    x = torch.full((2, 40), 3e30)
    assert torch.equal(layer_norm(x, (40,)), torch.zeros(2, 40))  # its deviations are 0
    assert torch.equal(rms_norm(x, (40,)), F.rms_norm(x, (40,)))


@pytest.mark.parametrize("columns", [20, 300])
def test_all_threads_of_a_row_normalise_alike(columns: int, seed: int) -> None:
    x = torch.randn(40, columns).repeat(1, 2)  # equal elements meet different threads
    first, second = layer_norm(x, (2 * columns,)).chunk(2, 1)
    assert torch.equal(first, second)


def test_nan_reaches_its_row_and_no_other(seed: int) -> None:
    x = torch.randn(40, 40)
    x[17, 3] = torch.nan
    for y in (layer_norm(x, (40,)), rms_norm(x, (40,))):
        assert y.isnan().all(1).nonzero().flatten().tolist() == [17]
        assert y.isnan().any(1).nonzero().flatten().tolist() == [17]


def test_the_default_epsilons_are_pytorchs(seed: int) -> None:
    x = (1e-3 * torch.randn(6, 40)).half()
    wanted = F.layer_norm(x.double(), (40,), eps=1e-5), F.rms_norm(x.double(), (40,), eps=2**-23)
    assert_accurate("layer_norm", layer_norm(x, (40,)), F.layer_norm(x, (40,)), wanted[0])
    assert_accurate("rms_norm", rms_norm(x, (40,)), F.rms_norm(x, (40,)), wanted[1])


def test_rows_far_apart(seed: int) -> None:
    far = 2**31 + 2**10
    storage = torch.empty(far + 100, dtype=torch.float16)  # never touched but for its two rows
    x = storage.as_strided((2, 40), (far, 1))
    x.copy_(torch.randn(2, 40))
    packed = x.contiguous()
    assert torch.equal(layer_norm(x, (40,)), layer_norm(packed, (40,)))
    statistics = operators.norm(packed, None, None, 1, 1e-5, True)[1]
    assert torch.equal(
        operators.norm_backward(x, None, x, None, statistics, 1, True),
        operators.norm_backward(packed, None, packed, None, statistics, 1, True),
    )


def test_a_short_row_is_read_once(seed: int) -> None:
    x, weight = torch.randn(30, 40), torch.randn(40)
    with simulator.profile() as counts:
        layer_norm(x, (40,), weight, weight)
    (record,) = counts.launches
    pivots = 30  # the first thread of each row's team reads the row's first element
    assert record.counters.device_bytes_read == 4 * (3 * x.numel() + pivots)
    assert record.counters.device_bytes_written == 4 * (x.numel() + 3 * 30)


GRADCHECKS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], object]] = {
    "layer_norm": lambda x, r, w, b: layer_norm(x, (6,), w, b),
    "layer_norm without parameters": lambda x, r, w, b: layer_norm(x, (2, 6)),
    "layer_norm over two dimensions": lambda x, r, w, b: layer_norm(x, (2, 6), b.expand(2, 6), w.expand(2, 6)),
    "rms_norm": lambda x, r, w, b: rms_norm(x, (6,), w),
    "add_layer_norm": lambda x, r, w, b: add_layer_norm(x, r, (6,), w, b),
    "add_rms_norm": lambda x, r, w, b: add_rms_norm(x, r, (6,), w),
}


@pytest.mark.parametrize("name", GRADCHECKS)
def test_gradients_are_exact(name: str, seed: int) -> None:
    x, residual = (torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(GRADCHECKS[name], (x, residual, weight, bias))


@pytest.fixture
def contracting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The simulator with products contracted into sums, as compilers of GPUs do."""
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    if on_x86 and " fma " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no fused multiply-add")
    others = tuple(flag for flag in compiler._COMMON_FLAGS if not flag.startswith("-ffp-contract"))
    flags = (*others, "-ffp-contract=fast", *(("-mfma",) if on_x86 else ()))
    monkeypatch.setattr(compiler, "_COMMON_FLAGS", flags)
    for forget in (library._library.cache_clear, calls.forget):
        forget()
    yield
    for forget in (library._library.cache_clear, calls.forget):
        forget()


def test_contraction_leaves_the_gradient_of_single_elements_0(contracting: None, seed: int) -> None:
    x, weight, grad = torch.randn(64, 1), torch.randn(1), torch.randn(64, 1)
    text = "kernel void residue(device float* x, device float* y, uint i [[thread_position_in_grid]])"
    residue = simulator.compile_shader(text + " { const float xy = x[i] * y[i]; y[i + 64] = xy - y[i + 64]; }").residue
    found = torch.stack([grad, weight * grad]).flatten()
    residue(weight.repeat(64), found, threads=(64, 1, 1), group_size=(64, 1, 1))
    assert found[64:].any(), "nothing is contracted"
    statistics = operators.norm(x, None, None, 1, 1e-5, True)[1]
    assert not operators.norm_backward(grad, None, x, weight, statistics, 1, True).any()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 2), (2, 3)], ids=str)
def test_gradients_of_some_arguments(wanted: tuple[int, ...], seed: int) -> None:
    every = [torch.randn(shape).requires_grad_() for shape in ((6, 40), (6, 40), (40,), (40,))]
    some = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(every)]
    for x, residual, weight, bias in (every, some):
        y, total = add_layer_norm(x, residual, (40,), weight, bias)
        (y.square().sum() + total.square().sum()).backward()
    for i, (full, part) in enumerate(zip(every, some, strict=True)):
        assert (part.grad is not None) == (i in wanted)
        if i in wanted:
            assert torch.equal(part.grad, full.grad)  # type: ignore[arg-type]


def test_gradient_of_the_sum_alone(seed: int) -> None:
    x, residual, weight = (
        torch.randn(6, 40, requires_grad=True),
        torch.randn(6, 40),
        torch.randn(40, requires_grad=True),
    )
    _, total = add_rms_norm(x, residual, (40,), weight)
    (2 * total).sum().backward()
    assert torch.equal(x.grad, torch.full((6, 40), 2.0))  # type: ignore[arg-type]
    assert weight.grad is None


def test_second_derivatives_are_refused(seed: int) -> None:
    x, weight = torch.randn(6, 40, requires_grad=True), torch.randn(40, requires_grad=True)
    for wanted in (x, weight):
        (first,) = torch.autograd.grad(layer_norm(x, (40,), weight).square().sum(), wanted, create_graph=True)
        with pytest.raises(UnsupportedError, match="second derivatives of normalisation"):
            first.sum().backward()


def test_other_differentiation_is_refused(seed: int) -> None:
    x = torch.randn(6, 40)
    with pytest.raises(UnsupportedError, match=re.escape("torch.func gradients of normalisation")):
        torch.func.grad(lambda x: layer_norm(x, (40,)).sum())(x)


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed"])
def test_operators_keep_pytorchs_rules(layout: str, seed: int) -> None:
    inputs = Case((3, 2), (40,), layout=layout, residual=True).inputs(torch.float32)  # type: ignore[arg-type]
    x, residual, weight, bias, grad = inputs.input, inputs.residual, inputs.weight, inputs.bias, inputs.grad
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]  # type: ignore[union-attr]
    torch.library.opcheck(operators.norm.default, (*leaves, 1, 1e-5, True))
    torch.library.opcheck(operators.norm.default, (leaves[0], None, None, 1, 1e-5, False))
    torch.library.opcheck(operators.add_norm.default, (leaves[0], residual, *leaves[1:], 1, 1e-5, True))
    statistics = operators.norm(x, None, None, 1, 1e-5, True)[1]
    torch.library.opcheck(operators.norm_backward.default, (grad, inputs.grad_sum, x, weight, statistics, 1, True))
    torch.library.opcheck(operators.norm_backward.default, (grad, None, x, weight, statistics, 1, True))
    arguments = (grad, x, statistics, 1, True, torch.float32, True)
    torch.library.opcheck(operators.norm_backward_parameters.default, arguments)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_as_one_graph(seed: int) -> None:
    x, weight, bias = torch.randn(6, 40), torch.randn(40, requires_grad=True), torch.randn(40, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        y, total = add_layer_norm(x, 2 * x, (40,), weight, bias)
        return layer_norm(y, (40,), weight, bias) + rms_norm(total, (40,), weight)

    results = []
    for run in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        results.append((y, *torch.autograd.grad(y.square().sum(), (leaf, weight, bias))))
    assert all(torch.equal(eager, compiled) for eager, compiled in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((Case((18,), (40,)), dtype) for dtype in DTYPES),
        (Case((7,), (61,), centred=False, residual=True, layout="sliced"), torch.float32),
    ],
    ids=["float32", "float16", "bfloat16", "sliced"],
)
def test_no_finding(case: Case, dtype: torch.dtype, seed: int) -> None:
    inputs = case.inputs(dtype)
    with simulator.check():
        assert not any(x.isnan().any() for x in ours(inputs).values()), "an element was never written"


@pytest.mark.parametrize(("path", "number"), barriers("ops/norm/"))
def test_each_barrier_is_missed(path: str, number: int, seed: int) -> None:
    inputs = SHARED.inputs(torch.float32)
    with pytest.raises(KernelCheckError), without_barrier(path, number), simulator.check():
        ours(inputs)


def test_plans_refuse_what_no_device_can_do() -> None:
    x = torch.empty(2, 8, dtype=torch.float64)
    problem = function.describe({"x": x}, None, None, 1, centred=True)
    long = ("x", Operand(torch.float32, (2**31, 1)))
    for refused in (problem, dataclasses.replace(problem, shape=(2, 2**31), operands=(long,))):
        for make in (plan.forward, plan.backward, plan.parameters):
            with pytest.raises(UnsupportedError):
                make(refused, Capabilities())


def test_autocast_is_pytorchs(seed: int) -> None:
    x, weight = torch.randn(6, 40), torch.randn(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for value in (x, x.bfloat16()):
            assert layer_norm(value, (40,), weight).dtype == F.layer_norm(value, (40,), weight).dtype == value.dtype


X, W = torch.zeros(2, 3), torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: layer_norm([1.0], (1,)), TypeError, "input is a list; accepted is a Tensor"),
        (lambda: layer_norm(X.int(), (3,)), TypeError, "input has dtype torch.int32; accepted are float32"),
        (lambda: layer_norm(X.to_sparse(), (3,)), ValueError, "input is of layout torch.sparse_coo"),
        (lambda: layer_norm(X, 3), TypeError, "normalized_shape is a int; accepted is a sequence of ints"),
        (lambda: layer_norm(X, "3"), TypeError, "normalized_shape is a str"),
        (lambda: layer_norm(X, (3.0,)), TypeError, "normalized_shape holds a float; accepted are ints"),
        (lambda: layer_norm(X, ()), ValueError, "normalized_shape is empty"),
        (lambda: layer_norm(X, (2,)), ValueError, "normalized_shape is (2,); accepted are the last sizes of input"),
        (lambda: layer_norm(W, (3, 3)), ValueError, "normalized_shape is (3, 3); accepted"),
        (lambda: layer_norm(X, (3,), 1.0), TypeError, "weight is a float; accepted is a Tensor"),
        (lambda: layer_norm(X, (3,), X), ValueError, "weight has shape (2, 3); accepted is normalized_shape, (3,)"),
        (lambda: layer_norm(X, (3,), W.half()), TypeError, "weight has dtype torch.float16 and input torch.float32"),
        (lambda: layer_norm(X, (3,), W.to("meta")), ValueError, "weight is on meta and input on cpu"),
        (lambda: layer_norm(X, (3,), None, X), ValueError, "bias has shape (2, 3)"),
        (lambda: layer_norm(X.half(), (3,), W, W.half()), TypeError, "bias has dtype torch.float16 and weight"),
        (lambda: layer_norm(X, (3,), eps="1"), TypeError, "eps is a str; accepted is a number"),
        (lambda: layer_norm(X, (3,), eps=-1e-5), ValueError, "eps is -1e-05; accepted are finite numbers from 0"),
        (lambda: rms_norm(X, (3,), eps=torch.nan), ValueError, "eps is nan"),
        (lambda: rms_norm(X, (3,), X), ValueError, "weight has shape (2, 3)"),
        (lambda: add_rms_norm(X, 1.0, (3,)), TypeError, "residual is a float; accepted is a Tensor"),
        (lambda: add_layer_norm(X, W, (3,)), ValueError, "residual has shape (3,); accepted is that of input, (2, 3)"),
        (lambda: add_layer_norm(X, X.half(), (3,)), TypeError, "residual has dtype torch.float16 and input"),
        (lambda: operators.norm(X, None, None, 3, 1e-5, True), ValueError, "dims is 3; accepted are 1 to 2"),
        (lambda: operators.norm(X, X, None, 1, 1e-5, True), ValueError, "a parameter is torch.float32 of 6 elements"),
        (lambda: operators.add_norm(X, X.t(), None, None, 1, 1e-5, True), ValueError, "residual has shape (3, 2)"),
        (lambda: operators.norm_backward(X, None, X, None, W, 1, True), ValueError, "statistics is torch.float32 of"),
    ],
)
def test_bad_arguments_are_named(
    assert_refused: Callable[..., None], call: Callable[[], object], error: type[Exception], words: str
) -> None:
    assert_refused(call, error, words)
