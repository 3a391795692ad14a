"""Rotary position embedding: against float64, far positions, gradients, PyTorch's compiler, bad arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from mps_flash_attn import UnsupportedError
from mps_flash_attn.functional import rope, rope_tables
from mps_flash_attn.ops.rope import function, reference
from mps_flash_attn.ops.rope.cases import AnglesName, Case
from mps_flash_attn.runtime import simulator
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ANGLES: tuple[AnglesName, ...] = ("offset", "positions", "batch-positions", "tables", "batch-tables")


def check(case: Case, dtype: torch.dtype) -> None:
    """The rotation and its gradient, which turns back."""
    positions, query = case.positions(), case.input(dtype).requires_grad_()
    arguments = case.arguments(positions, dtype)
    exact, pytorch = case.expected(query.detach(), positions)
    output = rope(query, **arguments)
    assert_accurate(f"output of {case}", output.detach(), pytorch, exact)
    gradient = case.input(dtype)
    exact, pytorch = case.expected(gradient, positions, inverse=True)
    (ours,) = torch.autograd.grad(output, query, gradient)
    assert_accurate(f"gradient of {case}", ours, pytorch, exact)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotations_and_their_gradients(dtype: torch.dtype, interleaved: bool, seed: int) -> None:
    for case in (
        Case((2, 3, 40), 64, 64, interleaved, first=3),
        Case((2, 9, 7), 96, 32, interleaved, layout="transposed"),
        Case((13,), 17, 10, interleaved, first=-4),
        Case((2, 1, 5, 7), 64, 64, interleaved, "tables"),
    ):
        check(case, dtype)


@given(
    st.builds(
        Case,
        shape=st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple),
        columns=st.sampled_from((17, 24)),
        rotary_dim=st.sampled_from((0, 2, 6, 16)),
        interleaved=st.booleans(),
        angles=st.sampled_from(ANGLES),
        layout=st.sampled_from(("contiguous", "transposed", "sliced", "expanded", "columns")),
        first=st.sampled_from((0, 77)),
    ),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    check(case, torch.bfloat16)


@pytest.mark.parametrize("position_dtype", [torch.int32, torch.int64], ids=str)
def test_far_positions_are_as_exact_as_near_ones(position_dtype: torch.dtype, seed: int) -> None:
    """In float32 alone, the angle at position 10,000,000 would be off by a third of a radian."""
    for first in (0, 100_000, 10_000_000):
        positions = torch.arange(first, first + 8)
        query = torch.randn(8, 64)
        exact = reference.rope(query.double(), *trigonometry(positions), False)
        for output in (rope(query, positions=positions.to(position_dtype)), rope(query, offset=first)):
            assert (output - exact).abs().max() <= 2e-6
        in_float32 = positions.float()[:, None] * 10000.0 ** (-torch.arange(0, 64, 2) / 64)
        naive = reference.rope(query, in_float32.cos(), in_float32.sin(), False)
        assert first < 100_000 or (naive - exact).abs().max() > 1e-3, "else the test would show nothing"


def trigonometry(positions: Tensor) -> tuple[Tensor, Tensor]:
    radians = reference.angles(positions, 64, 10000.0)
    return radians.cos(), radians.sin()


@pytest.mark.parametrize("base", [0.5, 1.0, 500000.0])
def test_fractions_of_a_turn(base: float) -> None:
    """Whole turns are dropped exactly, whatever the base; a negative position turns back."""
    device = torch.device("cpu")
    for pair, units in enumerate(function.turns(base, 8, device).tolist()):
        radians = base ** (-pair / 4)
        assert abs(math.remainder(units / 2**64 * math.tau - radians, math.tau)) <= 1e-14
    query = torch.randn(1, 8, dtype=torch.float64)
    turned = rope(rope(query, base=base, offset=1234), base=base, offset=-1234)
    assert (turned - query).abs().max() <= 1e-14


def test_float64(seed: int) -> None:
    query = torch.randn(2, 50, 64, dtype=torch.float64)
    for interleaved in (False, True):
        exact = reference.rope(query, *trigonometry(torch.arange(50)), interleaved)
        assert (rope(query, interleaved=interleaved) - exact).abs().max() <= 1e-13


@pytest.mark.parametrize("angles", ["offset", "batch-positions", "batch-tables"])
def test_gradcheck(angles: AnglesName, seed: int) -> None:
    case = Case((2, 3, 4), 7, 4, angles == "offset", angles)
    query, arguments = case.input(torch.float64).requires_grad_(), case.arguments(case.positions(), torch.float64)
    assert torch.autograd.gradcheck(lambda x: rope(x, **arguments), (query,))
    assert torch.autograd.gradgradcheck(lambda x: rope(x, **arguments), (query,))


def test_tables_are_those_of_the_rule(seed: int) -> None:
    cos, sin = rope_tables(6, 8, offset=100_000)
    query = torch.randn(2, 6, 8)
    assert (rope(query, cos=cos, sin=sin) - rope(query, offset=100_000)).abs().max() <= 1e-6
    assert (cos.shape, cos.dtype) == ((6, 4), torch.float32)
    assert rope_tables(0, 8, dtype=torch.float64)[1].dtype == torch.float64
    half = rope(query, cos=cos.half(), sin=sin.half())
    assert torch.equal(half, rope(query, cos=cos.half().float(), sin=sin.half().float()))


def test_rows_keep_their_place_in_a_longer_sequence(seed: int) -> None:
    """What a cache of keys relies on: a row's bits depend on its position alone."""
    keys = torch.randn(2, 3, 20, 64).half()
    whole = rope(keys)
    for first in (0, 7, 19):
        assert torch.equal(rope(keys[:, :, first:], offset=first), whole[:, :, first:])


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "columns"])
def test_same_bits_for_every_layout(layout: Any, seed: int) -> None:
    query = Case((2, 5, 9), 64, 32, layout=layout).input(torch.float16)
    assert torch.equal(rope(query, rotary_dim=32), rope(query.contiguous(), rotary_dim=32))


def test_many_dimensions_are_copied(seed: int) -> None:
    query = torch.randn((4,) * 6 + (3, 17))[(slice(None, None, 2),) * 6]
    assert torch.equal(rope(query, rotary_dim=4), rope(query.contiguous(), rotary_dim=4))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded", "columns"])
@pytest.mark.parametrize("angles", ["offset", "batch-positions", "tables"])
def test_operator_keeps_pytorchs_rules(angles: AnglesName, layout: Any, seed: int) -> None:
    case = Case((2, 3, 4), 17, 4, False, angles, layout)
    query, given = case.input(torch.bfloat16).requires_grad_(), case.arguments(case.positions(), torch.bfloat16)
    tensors = (given.get("positions"), given.get("cos"), given.get("sin"))
    torch.library.opcheck(torch.ops.mps_flash_attn.rope.default, (query, *tensors, 10000.0, 0, 4, False, False))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(seed: int, dynamic: bool) -> None:
    def model(query: Tensor, positions: Tensor) -> Tensor:
        return (rope(query, offset=3) * rope(query.transpose(1, 2), positions=positions).transpose(1, 2)).sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (7, 9):
        plain = torch.randn(2, length, 4, 24, requires_grad=True)
        other = plain.detach().clone().requires_grad_()
        positions = torch.randint(100, (2, length))
        model(plain, positions).backward()
        compiled(other, positions).backward()
        assert plain.grad is not None
        assert other.grad is not None
        assert torch.equal(plain.grad, other.grad)


def test_autocast_leaves_the_dtype(seed: int) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rope(torch.randn(3, 8)).dtype == torch.float32


def test_other_differentiation_is_refused(seed: int) -> None:
    query = torch.randn(3, 8)
    with pytest.raises(UnsupportedError, match="forward-mode"), forward_ad.dual_level():
        rope(query)
    cos, sin = rope_tables(3, 8)
    with pytest.raises(UnsupportedError, match="sin requires grad and its gradient is not implemented"):
        rope(query, cos=cos, sin=sin.requires_grad_())
    with torch.no_grad():
        rope(query, cos=cos, sin=sin)


X = torch.zeros(2, 3, 8)
T = torch.zeros(3, 4)
P = torch.zeros(3, dtype=torch.int64)
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "input type": (lambda: rope([0.0]), TypeError, "input is a list; accepted is a Tensor"),  # type: ignore[arg-type]
    "input dtype": (lambda: rope(X.int()), TypeError, "input has dtype torch.int32; accepted are float32"),
    "input rank": (lambda: rope(X[0, 0]), ValueError, "input has shape (8,); accepted are two dimensions or more"),
    "odd columns": (lambda: rope(X[..., :7]), ValueError, "rotary_dim is 7; accepted are even numbers from 0 to D, 7"),
    "rotary_dim odd": (lambda: rope(X, rotary_dim=3), ValueError, "rotary_dim is 3; accepted are even numbers"),
    "rotary_dim high": (lambda: rope(X, rotary_dim=10), ValueError, "rotary_dim is 10; accepted are even"),
    "rotary_dim low": (lambda: rope(X, rotary_dim=-2), ValueError, "rotary_dim is -2; accepted are even"),
    "rotary_dim type": (lambda: rope(X, rotary_dim=4.0), TypeError, "rotary_dim is a float; accepted is an int"),  # type: ignore[arg-type]
    "base type": (lambda: rope(X, base="1"), TypeError, "base is a str; accepted is a number"),  # type: ignore[arg-type]
    "base 0": (lambda: rope(X, base=0), ValueError, "base is 0.0; accepted are numbers greater than 0"),
    "base nan": (lambda: rope(X, base=math.nan), ValueError, "base is nan; accepted are finite numbers"),
    "offset type": (lambda: rope(X, offset=1.0), TypeError, "offset is a float; accepted is an int"),  # type: ignore[arg-type]
    "positions type": (lambda: rope(X, positions=[0]), TypeError, "positions is a list"),  # type: ignore[arg-type]
    "positions dtype": (lambda: rope(X, positions=P.float()), TypeError, "positions has dtype torch.float32"),
    "positions device": (lambda: rope(X, positions=P.to("meta")), ValueError, "positions is on meta"),
    "positions shape": (
        lambda: rope(X, positions=P[:2]),
        ValueError,
        "positions has shape (2,); accepted for this input and rotary_dim are (3,) and (2, 3)",
    ),
    "positions of batches": (
        lambda: rope(X[0], positions=P[None]),
        ValueError,
        "positions has shape (1, 3); accepted for this input and rotary_dim are (3,)",
    ),
    "positions and offset": (
        lambda: rope(X, positions=P, offset=1),
        ValueError,
        "offset is 1 and positions are given; accepted is one of them",
    ),
    "tables and positions": (
        lambda: rope(X, cos=T, sin=T, positions=P),
        ValueError,
        "cos and sin are given, and positions or offset too",
    ),
    "tables and offset": (lambda: rope(X, cos=T, sin=T, offset=1), ValueError, "cos and sin are given, and"),
    "one table": (lambda: rope(X, cos=T), ValueError, "sin is None; accepted are both cos and sin, or none"),
    "table dtype": (lambda: rope(X, cos=T, sin=T.int()), TypeError, "sin has dtype torch.int32"),
    "table device": (lambda: rope(X, cos=T.to("meta"), sin=T), ValueError, "cos is on meta and input on cpu"),
    "table shape": (lambda: rope(X, cos=T[:2], sin=T), ValueError, "cos has shape (2, 4); accepted for this input and"),
    "table width": (
        lambda: rope(X, cos=T, sin=T, rotary_dim=6),
        ValueError,
        "cos has shape (3, 4); accepted for this input and rotary_dim are (3, 3) and (2, 3, 3)",
    ),
    "tables differ": (
        lambda: rope(X, cos=T, sin=T.expand(2, 3, 4)),
        ValueError,
        "sin has shape (2, 3, 4); accepted is the shape of cos, (3, 4)",
    ),
    "length type": (lambda: rope_tables(1.0, 4), TypeError, "length is a float; accepted is an int"),  # type: ignore[arg-type]
    "length": (lambda: rope_tables(-1, 4), ValueError, "length is -1; accepted are 0 and more"),
    "rotary_dim of tables": (
        lambda: rope_tables(1, 3),
        ValueError,
        "rotary_dim is 3; accepted are even numbers from 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(assert_refused: Callable[..., None], name: str) -> None:
    assert_refused(*BAD[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_finding(dtype: torch.dtype, seed: int) -> None:
    with simulator.check():
        check(Case((2, 9, 7), 64, 32, True, "batch-positions", "transposed"), dtype)
        check(Case((2, 5, 7), 17, 10, False, "tables", "sliced"), dtype)


def test_it_runs_in_place(seed: int) -> None:
    """As attention's backward pass uses it: the kernel reads what it writes before it writes it."""
    query = torch.randn(2, 5, 7, 64).half()
    expected = rope(query, rotary_dim=32, offset=3)
    problem = function.describe(query, query, None, None, 3, 32, False, False)
    bound = function.launch.bind(function.plan.forward(problem, simulator.CAPABILITIES), simulator)
    units = function.turns(10000.0, 32, query.device)
    with simulator.check():
        bound(query, units, units, query)
    assert torch.equal(query, expected)


def test_angles_are_computed_once_for_some_heads(seed: int) -> None:
    """Bytes: each element is read and written once, and turns of a pair once for four heads."""
    query = torch.randn(2, 8, 10, 64)
    rope(query)
    with simulator.profile() as counts:
        rope(query)
    (record,) = counts.launches
    assert record.counters.device_bytes_written == query.numel() * 4
    assert record.counters.device_bytes_read == query.numel() * 4 + query.numel() // 2 // 4 * 8
