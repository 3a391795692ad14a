"""Products against float64, as operators and public functions: layouts, gradients, checks, words for bad calls."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import UnsupportedError
from mps_flash_attn.errors import KernelCheckError
from mps_flash_attn.functional import linear, matmul
from mps_flash_attn.launch import Capabilities
from mps_flash_attn.ops import calls
from mps_flash_attn.ops.gemm import function, plan
from mps_flash_attn.ops.gemm.activation import Activation
from mps_flash_attn.ops.gemm.cases import LAYOUTS, NAMES, SIZES, Case
from mps_flash_attn.runtime import simulator
from tests.ops.barriers import barriers, without_barrier
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: Small blocks, so that few elements make several of them, in depth too.
SMALL = plan.Tiling(BM=32, BN=32, BK=16, WM=2, WN=1, group=2)

product = torch.ops.mps_flash_attn.gemm.default
epilogue_backward = torch.ops.mps_flash_attn.gemm_epilogue_backward.default


@contextlib.contextmanager
def tiled(chosen: plan.Tiling) -> Iterator[None]:
    """Has every product take this tiling."""

    def forget() -> None:
        plan.product.cache_clear()
        calls.forget()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "default_tiling", lambda *_: chosen)
        forget()
        yield
    forget()


def ours(case: Case, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """``c`` and the gradients from the kernels, from PyTorch, and exactly."""
    inputs = case.inputs(dtype)
    operands = [x.detach().requires_grad_() for x in (inputs.a, inputs.b)]
    biases = [] if inputs.bias is None else [inputs.bias.detach().requires_grad_()]
    activation = inputs.activation
    c, _ = product(*operands, *(biases or [None]), int(activation), activation.needs_input)
    gradients = torch.autograd.grad(c, (*operands, *biases), inputs.grad_c)
    return (c.detach(), *gradients), inputs.pytorch(), inputs.exact()


def check(case: Case, dtype: torch.dtype) -> None:
    for name, actual, baseline, exact in zip(NAMES, *ours(case, dtype), strict=False):
        assert_accurate(f"{name} of {case} in {dtype}", actual, baseline, exact)


def check_sizes(dtype: torch.dtype) -> None:
    """Each size once as M, N and K."""
    for rows, columns, depth in zip(SIZES, (*SIZES[2:], *SIZES[:2]), (*SIZES[3:], *SIZES[:3]), strict=True):
        check(Case(rows, columns, depth), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(dtype: torch.dtype, seed: int) -> None:
    with tiled(SMALL):
        check_sizes(dtype)


def test_default_tilings(seed: int) -> None:
    check_sizes(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype: torch.dtype, seed: int) -> None:
    """Each layout once as A and B."""
    with tiled(SMALL):
        for a_layout, b_layout in zip(LAYOUTS, (*LAYOUTS[3:], *LAYOUTS[:3]), strict=True):
            check(Case(65, 129, 33, a_layout=a_layout, b_layout=b_layout), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_of_whole_chunks(dtype: torch.dtype, seed: int) -> None:
    with tiled(SMALL):
        for layout in ("contiguous", "transposed"):
            check(Case(72, 40, 24, a_layout=layout, b_layout=layout), dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", Activation)
def test_epilogues(activation: Activation, seed: int) -> None:
    for dtype, bias, splits in ((torch.float32, True, 1), (torch.float16, False, 2)):
        with tiled(replace(SMALL, splits=splits)):
            check(Case(70, 45, 50, bias=bias, activation=activation), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_epilogue_in_other_dtypes(dtype: torch.dtype, seed: int) -> None:
    with tiled(SMALL):
        for activation in (Activation.GELU, Activation.GELU_TANH):
            check(Case(40, 33, 20, bias=True, activation=activation), dtype)


@pytest.mark.parametrize("splits", [2, 3, 64])
def test_split_depth(splits: int, seed: int) -> None:
    with tiled(replace(SMALL, splits=splits)):
        for depth in (1, 16, 17, 160, 333):
            check(Case(33, 20, depth, (2,), (), bias=True), torch.float32)


def test_depth_is_split_for_thin_products_only() -> None:
    def chosen(rows: int, columns: int, depth: int) -> plan.Plan:
        a, b = plan.Operand(True, depth), plan.Operand(True, depth)
        return plan.product(plan.Problem(torch.float16, (), rows, columns, depth, a, b), Capabilities())

    thin = chosen(4, 512, 16384)
    assert thin.splits == 8
    assert thin.reduction is not None
    assert chosen(4096, 4096, 16384).reduction is None
    assert chosen(4, 512, 256).reduction is None


@given(
    st.builds(
        Case,
        rows=st.sampled_from((0, 2, *SIZES)),
        columns=st.sampled_from((0, 2, *SIZES)),
        depth=st.sampled_from((0, 2, *SIZES)),
        a_batch=st.sampled_from(((), (2,), (1,), (3, 2), (3, 1))),
        b_batch=st.sampled_from(((), (2,), (1, 2), (3, 1), (0, 1, 2))),
        a_layout=st.sampled_from(LAYOUTS),
        b_layout=st.sampled_from(LAYOUTS),
    ),
    st.integers(0, 2**31),
)
@settings(max_examples=50)
def test_combinations(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    with tiled(SMALL):
        check(case, torch.float32)


def test_more_batch_dimensions_than_the_kernel_walks(seed: int) -> None:
    a = torch.randn(2, 1, 2, 1, 2, 1, 3, 4)
    b = torch.randn(1, 2, 1, 2, 1, 2, 4, 3)
    assert_accurate("c", matmul(a, b), a @ b, a.double() @ b.double())


@pytest.mark.parametrize("depth", [40, 700])
def test_same_bits_for_every_layout(depth: int, seed: int) -> None:
    a, b = torch.randn(33, depth), torch.randn(depth, 20)
    expected = matmul(a, b)
    for transposed in (a.T.contiguous().T, torch.nn.functional.pad(a, (1, 2))[:, 1:-2]):
        for other in (b.T.contiguous().T, torch.stack([b, b], -1)[..., 0]):
            assert torch.equal(matmul(transposed, other), expected)


def test_nan_reaches_its_row_and_column_alone(seed: int) -> None:
    a, b = torch.randn(40, 30), torch.randn(30, 20)
    a[5, 3] = torch.nan
    for name in (None, "relu", "gelu", "gelu_tanh", "silu"):
        c = linear(a, b.T, activation=name)
        assert c.isnan().any(1).nonzero().flatten().tolist() == [5]
        assert c[5].isnan().all()


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_activations_far_from_zero(name: Any, seed: int) -> None:
    x = torch.tensor([-1e4, -90.0, -30.0, -6.1, -1e-3, 0.0, 1e-3, 0.47, 6.1, 30.0, 90.0, 1e4], dtype=torch.float32)
    approximate = "tanh" if name == "gelu_tanh" else "none"
    activate: Callable[[Tensor], Tensor] = F.silu if name == "silu" else lambda z: F.gelu(z, approximate=approximate)
    leaf, ours_leaf = (x.clone()[:, None].requires_grad_() for _ in range(2))
    expected, actual = activate(leaf), linear(ours_leaf, torch.ones(1, 1), activation=name)
    assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-6)
    (theirs,) = torch.autograd.grad(expected.sum(), leaf)
    (gradient,) = torch.autograd.grad(actual.sum(), ours_leaf)
    assert torch.allclose(gradient, theirs, rtol=1e-5, atol=1e-6)


SHAPES = [
    ((5,), (5,)),
    ((4, 5), (5,)),
    ((5,), (5, 3)),
    ((2, 4, 5), (5,)),
    ((5,), (2, 5, 3)),
    ((2, 3, 4, 5), (5, 6)),
    ((4, 5), (2, 3, 5, 6)),
    ((2, 1, 4, 5), (3, 5, 6)),
    ((0, 4, 5), (5, 6)),
    ((3, 0, 5), (5, 6)),
    ((3, 4, 0), (0, 6)),
    ((4, 5), (5, 0)),
    ((0,), (0,)),
    ((2, 0, 1, 5), (1, 5, 1)),
]


@pytest.mark.parametrize(("left", "right"), SHAPES, ids=str)
def test_matmul_has_the_shapes_and_gradients_of_pytorch(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in (left, right))
    expected, actual = a @ b, matmul(a, b)
    assert actual.shape == expected.shape
    assert torch.allclose(actual, expected)
    for theirs, gradient in zip(*(torch.autograd.grad(c.sum(), (a, b)) for c in (expected, actual)), strict=True):
        assert gradient.shape == theirs.shape
        assert torch.allclose(gradient, theirs)


@pytest.mark.parametrize(
    ("shape", "weight"), [((5,), (3, 5)), ((2, 4, 5), (3, 5)), ((4, 5), (5,)), ((5,), (5,)), ((0, 5), (3, 5))], ids=str
)
def test_linear_has_the_shapes_of_pytorch(shape: tuple[int, ...], weight: tuple[int, ...], seed: int) -> None:
    x, w, bias = (torch.randn(size, dtype=torch.float64) for size in (shape, weight, weight[:-1]))
    for vector in (None, bias):
        expected = x @ w.T if w.dim() == 2 else x @ w
        expected = expected if vector is None else expected + vector
        actual = linear(x, w, vector)
        assert actual.shape == expected.shape
        assert torch.allclose(actual, expected)


def test_operands_are_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> Any:
        raise AssertionError("a copy")

    a, b = torch.randn(3, 4, 8).transpose(0, 1), torch.randn(6, 8)
    monkeypatch.setattr(Tensor, "contiguous", forbidden)
    matmul(a, b.T)
    matmul(a.mT, b[1:4, 2:5])
    with pytest.raises(AssertionError, match="a copy"):
        matmul(b, torch.randn(16, 4)[::2, ::2])


GRADIENTS = {
    "matmul": lambda a, b, bias: matmul(a, b),
    "batched": lambda a, b, bias: matmul(torch.stack([a, 2 * a]).unsqueeze(1), torch.stack([b, b.sin(), b.cos()])),
    **{
        str(name): lambda a, b, bias, name=name: linear(a, b.T, bias, activation=name)
        for name in (None, "gelu", "gelu_tanh", "silu")
    },
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_exact(name: str, seed: int) -> None:
    operands = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((4, 5), (5, 3), (3,))]
    assert torch.autograd.gradcheck(GRADIENTS[name], operands)
    if name in ("matmul", "batched", "None"):
        assert torch.autograd.gradgradcheck(GRADIENTS[name], operands)


def test_gradient_of_relu(seed: int) -> None:
    a, b, bias = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((4, 5), (3, 5), (3,)))
    expected = torch.autograd.grad(F.linear(a, b, bias).relu().sum(), (a, b, bias))
    actual = torch.autograd.grad(linear(a, b, bias, "relu").sum(), (a, b, bias))
    assert all(torch.allclose(x, y) for x, y in zip(actual, expected, strict=True))


def test_gradients_that_nobody_asked_for_are_not_computed(seed: int) -> None:
    weight, bias = torch.randn(3, 5, requires_grad=True), torch.randn(3)
    with simulator.profile() as profile:
        linear(torch.randn(4, 5), weight, bias, "gelu").sum().backward()
    assert [x.kernel for x in profile.launches] == ["gemm", "gemm_epilogue_backward", "gemm"]
    with simulator.profile() as profile, torch.no_grad():
        linear(torch.randn(4, 5), weight, bias, "gelu")
    assert profile.total.device_bytes_written == 4 * 3 * 4


def test_pre_activation_is_computed_again_where_it_was_not_saved(seed: int) -> None:
    a, b = torch.randn(4, 5, requires_grad=True), torch.randn(5, 3)
    gradients = [
        torch.autograd.grad(product(a, b, None, int(Activation.SILU), save)[0].sum(), a)[0] for save in (True, False)
    ]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_second_derivatives_of_activations_are_refused(name: Any, seed: int) -> None:
    a, b = torch.randn(4, 5, requires_grad=True), torch.randn(3, 5)
    (gradient,) = torch.autograd.grad(linear(a, b, activation=name).sum(), a, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivatives of a product with an activation"):
        gradient.sum().backward()


@pytest.mark.parametrize("layouts", [("contiguous", "transposed"), ("transposed", "sliced")], ids=str)
def test_operators_keep_pytorchs_rules(layouts: tuple[Any, Any], seed: int) -> None:
    inputs = Case(4, 3, 5, (2,), (), *layouts, bias=True).inputs(torch.float64)
    for activation in (Activation.NONE, Activation.SILU):
        operands = [x.detach().requires_grad_() for x in (inputs.a, inputs.b, inputs.bias) if x is not None]
        torch.library.opcheck(product, (*operands, int(activation), activation.needs_input))
        args = (inputs.grad_c, torch.randn_like(inputs.grad_c), int(activation), True)
        torch.library.opcheck(epilogue_backward, args)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_into_one_graph(seed: int) -> None:
    tensors = [torch.randn(size, requires_grad=True) for size in ((2, 4, 5), (3, 5), (3,))]
    compiled = torch.compile(lambda x, w, b: linear(x, w, b, "gelu"), fullgraph=True, backend="aot_eager")
    actual, expected = compiled(*tensors), linear(*tensors, "gelu")
    assert torch.equal(actual, expected)
    for x, y in zip(*(torch.autograd.grad(c.sum(), tensors) for c in (actual, expected)), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_as_pytorch_does(dtype: torch.dtype, seed: int) -> None:
    x, weight, bias = torch.randn(4, 5, requires_grad=True), torch.randn(3, 5).to(dtype), torch.randn(3)
    with torch.autocast("cpu", dtype=dtype):
        assert linear(x, weight, bias).dtype == F.linear(x, weight, bias).dtype == dtype
        assert matmul(x, weight.T).dtype == torch.matmul(x, weight.T).dtype == dtype
        assert linear(x.double(), weight.double(), bias.double()).dtype == torch.float64
        linear(x, weight, bias).float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("in_dims", [(0, None), (None, 2), (1, 0)], ids=str)
def test_vmap_is_one_launch(in_dims: tuple[int | None, int | None], seed: int) -> None:
    shapes = ((2, 1, 4, 5), (3, 5, 6))
    a, b = (
        torch.randn(shape if dim is None else (*shape[:dim], 7, *shape[dim:]))
        for shape, dim in zip(shapes, in_dims, strict=True)
    )
    with simulator.profile() as profile:
        actual = torch.vmap(matmul, in_dims)(a, b)
    assert len(profile.launches) == 1
    assert torch.allclose(actual, torch.vmap(torch.matmul, in_dims)(a, b), atol=1e-5)


def test_vmap_over_weights_and_biases(seed: int) -> None:
    x, weight, bias = torch.randn(4, 5), torch.randn(7, 3, 5), torch.randn(3, 7)
    for in_dims in ((None, 0, None), (None, 0, 1)):
        vector = bias if in_dims[2] else bias[:, 0]
        actual = torch.vmap(lambda *args: linear(*args, "gelu"), in_dims)(x, weight, vector)
        expected = torch.vmap(lambda *args: F.gelu(F.linear(*args)), in_dims)(x, weight, vector)
        assert torch.allclose(actual, expected, atol=1e-5)


def test_meta_tensors_have_shapes_alone() -> None:
    x, weight = torch.randn(2, 4, 5, device="meta"), torch.randn(3, 5, device="meta")
    assert linear(x, weight, activation="gelu").shape == (2, 4, 3)
    assert matmul(x, weight.T).device.type == "meta"


@pytest.mark.parametrize(
    ("case", "chosen", "dtype"),
    [
        (Case(70, 40, 50, bias=True, activation=Activation.GELU), SMALL, torch.float32),
        (Case(33, 65, 40, (2,), (), "transposed", "transposed"), replace(SMALL, stages=2), torch.float16),
        (Case(40, 40, 100), replace(SMALL, stages=3), torch.bfloat16),
        (Case(20, 36, 100, a_layout="sliced", bias=True), replace(SMALL, splits=3), torch.bfloat16),
    ],
    ids=("bias-gelu", "two stages", "three stages", "split"),
)
def test_no_finding(case: Case, chosen: plan.Tiling, dtype: torch.dtype, seed: int) -> None:
    with tiled(chosen):
        with simulator.check():
            results, *_ = ours(case, dtype)
        assert not any(x.isnan().any() for x in results), "an element was never written"


@pytest.mark.parametrize(("path", "number"), [x for x in barriers("ops/gemm/") if "/ladder/" not in x[0]])
def test_each_barrier_is_missed(path: str, number: int, seed: int) -> None:
    def run() -> None:
        for stages in (1, 2, 3):
            with tiled(replace(SMALL, stages=stages)):
                ours(Case(40, 40, 70, bias=True), torch.float32)

    with pytest.raises(KernelCheckError), without_barrier(path, number), simulator.check():
        run()


def test_plans_refuse_what_cannot_run() -> None:
    a, b = plan.Operand(True, 64), plan.Operand(False, 64)
    problem = plan.Problem(torch.float32, (), 64, 64, 64, a, b)
    good = plan.Tiling(64, 64, 32, 2, 2)
    for tiling, words in (
        (replace(good, BM=48), "48 x 64 x 32 is not made of 16 x 16 tiles for 2 x 2 simdgroups"),
        (replace(good, BK=8), "64 x 64 x 8 is not made of"),
        (replace(good, stages=0), "0 stages"),
        (replace(good, splits=0), "0 splits"),
        (replace(good, BM=1024, WM=64), "4096 threads are more than 1024"),
        (replace(good, BM=128, BN=128, WM=1, WN=1), "512 accumulators a lane are more than 128"),
        (replace(good, BK=64, stages=2), "69632 bytes of threadgroup memory are more than 32768"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            plan.product(problem, Capabilities(), tiling)
    with pytest.raises(UnsupportedError, match="float64 has no kernel on this device"):
        plan.product(replace(problem, dtype=torch.float64), Capabilities())
    with pytest.raises(UnsupportedError, match="do not fit in 32 bits"):
        plan.product(replace(problem, depth=2**31), Capabilities())


def test_tilings_are_distinct_and_most_can_run() -> None:
    problem = plan.Problem(torch.float16, (), 512, 512, 512, plan.Operand(True, 512), plan.Operand(False, 512))
    every = list(plan.tilings(problem, Capabilities()))
    assert every[0] == plan.default_tiling(problem, Capabilities())
    assert len(set(every)) == len(every)

    def runs(tiling: plan.Tiling) -> bool:
        try:
            launch = plan.product(problem, Capabilities(), tiling).product
        except UnsupportedError:
            return False
        return launch.threadgroup_bytes <= 32 * 1024 and launch.group_size[0] <= 1024

    assert sum(map(runs, every)) > len(every) / 4


def test_default_tilings_fit_every_device() -> None:
    for rows, columns, dtype, depth_last in itertools.product((1, 16, 17), (1, 17), DTYPES, (True, False)):
        a, b = plan.Operand(depth_last, 8), plan.Operand(not depth_last, 8)
        problem = plan.Problem(dtype, (), rows, columns, 4096, a, b)
        for bytes_ in (8 * 1024, 32 * 1024):
            chosen = plan.product(problem, Capabilities(threadgroup_bytes=bytes_))
            assert chosen.product.threadgroup_bytes <= bytes_


def test_a_large_device_gets_wide_blocks_where_there_are_enough_of_them() -> None:
    large = Capabilities(threadgroup_bytes=227 * 1024, matrix_unit="mma")

    def block(size: int, capabilities: Capabilities) -> tuple[int, int]:
        a, b = plan.Operand(True, size, aligned=True), plan.Operand(False, size, aligned=True)
        tiling = plan.default_tiling(plan.Problem(torch.float16, (), size, size, size, a, b), capabilities)
        return tiling.BM, tiling.BN

    assert block(2048, large) == (128, 128)
    assert block(2048, replace(large, wgmma=True)) == (128, 256)
    assert block(1500, replace(large, wgmma=True)) == (128, 128)
    assert block(512, large) == block(2048, Capabilities()) == (64, 64)


def test_classes_of_shapes() -> None:
    a, b = plan.Operand(True, 64), plan.Operand(False, 64)
    problem = plan.Problem(torch.float32, (3,), 100, 64, 65, a, b)
    assert plan.shape_class(problem) == "128x64x128-nn-b4"
    assert plan.shape_class(replace(problem, rows=128)) == plan.shape_class(problem)
    assert plan.shape_class(replace(problem, rows=129)) != plan.shape_class(problem)


def test_a_new_size_compiles_nothing() -> None:
    a, b = plan.Operand(True, 64), plan.Operand(False, 64)
    problem = plan.Problem(torch.float32, (), 100, 64, 65, a, b)
    texts = {
        plan.product(replace(problem, rows=m, columns=n, depth=k), Capabilities()).product.text
        for m, n, k in ((17, 17, 100), (64, 64, 1), (5000, 300, 2))
    }
    assert len(texts) == 1


X, W, B = torch.zeros(4, 5), torch.zeros(3, 5), torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: matmul([1.0], W), TypeError, "input is a list; accepted is a Tensor"),
        (lambda: matmul(X, W.int()), TypeError, "other has dtype torch.int32; accepted are float32"),
        (lambda: matmul(X, W.half().T), TypeError, "other has dtype torch.float16 and input torch.float32"),
        (lambda: matmul(X, W.T.to("meta")), ValueError, "other is on meta and input on cpu"),
        (lambda: matmul(X, W), ValueError, "other has shape (3, 5) and input (4, 5); accepted are matrices"),
        (lambda: matmul(X, torch.zeros(4)), ValueError, "other has shape (4,) and input (4, 5)"),
        (lambda: matmul(torch.zeros(()), X), ValueError, "input has no dimensions"),
        (lambda: matmul(X.expand(2, 4, 5), W.T.expand(3, 5, 3)), ValueError, "other has batch dimensions (3,) and"),
        (lambda: matmul(X.to_sparse(), W.T), ValueError, "input is of layout torch.sparse_coo"),
        (lambda: linear(X, W, activation="tanh"), ValueError, "activation is 'tanh'; accepted are None, 'relu'"),
        (lambda: linear(X, W.T), ValueError, "weight has shape (5, 3); accepted are [N, K]"),
        (lambda: linear(X, W.expand(2, 3, 5)), ValueError, "weight has shape (2, 3, 5)"),
        (lambda: linear(X, W, B[:2]), ValueError, "bias has shape (2,); accepted is one value for each row"),
        (lambda: linear(X, W, B.double()), TypeError, "bias has dtype torch.float64 and input torch.float32"),
        (lambda: linear(X, W, 1.0), TypeError, "bias is a float; accepted is a Tensor"),
        (lambda: linear(X, W.double()), TypeError, "weight has dtype torch.float64 and input torch.float32"),
        (lambda: linear(torch.zeros(()), W), ValueError, "input has no dimensions"),
        (lambda: torch.func.grad(lambda x: matmul(x, W.T).sum())(X), UnsupportedError, "of matmul are not supported"),
        (lambda: torch.func.grad(lambda x: linear(x, W).sum())(X), UnsupportedError, "of linear are not supported"),
        (lambda: product(X, W, None, 0, False), ValueError, "b has shape (3, 5); accepted are as many rows"),
        (lambda: product(X, W.T, B[:2], 0, False), ValueError, "bias has shape (2,); accepted: one value a column"),
        (lambda: product(X, X[0], None, 0, False), ValueError, "b has shape (5,); accepted are two dimensions"),
        (lambda: product(X, W.T.half(), None, 0, False), TypeError, "b is torch.float16 on cpu; accepted: a's"),
        (lambda: epilogue_backward(X, W, 2, False), ValueError, "z is torch.float32 of shape (3, 5)"),
    ],
)
def test_bad_arguments_are_named(
    call: Callable[[], object], error: type[Exception], words: str, assert_refused: Callable[..., None]
) -> None:
    assert_refused(call, error, words)


def test_repeated_calls_prepare_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.randn(4, 5), torch.randn(3, 5)
    linear(x, w)
    monkeypatch.setattr(function, "describe", None)
    linear(x, w)
