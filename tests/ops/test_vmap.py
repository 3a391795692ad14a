"""``torch.vmap`` of every operation: what PyTorch gives, in as many launches as a single call takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import UnsupportedError, functional
from mps_flash_attn.ops.vmap import each, last, lead
from mps_flash_attn.runtime import simulator

SIZE = 3

Function = Callable[..., Any]


def indices(high: int, *shape: int) -> Callable[[], Tensor]:
    return functools.partial(torch.randint, high, shape)


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    return functools.partial(torch.randn, shape, dtype=dtype)


@dataclass(frozen=True)
class Case:
    """Ours and PyTorch's function, its arguments as a call has them, and which of them are mapped, where.

    Attributes:
        in_dims: one tuple an argument list to be tried.
        loops: whether it takes a launch a call.
    """

    ours: Function
    theirs: Function
    arguments: tuple[Callable[[], Tensor], ...]
    in_dims: tuple[tuple[int | None, ...], ...]
    loops: bool = False


ONE = ((0,), (1,), (-1,))
TWO = ((0, 0), (1, None), (None, 0), (0, 1))
#: Rows of 6 by a norm without its weight and bias.
ROWS = functools.partial(F.layer_norm, normalized_shape=(6,))


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def halves(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


CASES = {
    "silu": Case(functional.silu, F.silu, (floats(4, 6),), ONE),
    "silu of a number": Case(functional.silu, F.silu, (floats(),), ((0,),)),
    "add": Case(functional.add, torch.add, (floats(4, 6), floats(6)), ((0, 0), (1, None), (None, 0))),
    "mul": Case(functional.mul, torch.mul, (floats(6), floats(4, 6)), TWO),
    "mul by a number": Case(lambda x: functional.mul(x, 0.5), lambda x: x * 0.5, (floats(4, 6),), ONE),
    "mul of dtypes": Case(functional.mul, torch.mul, (floats(4, 6), floats(6, dtype=torch.float16)), TWO[:3]),
    "mul by numbers of another dtype": Case(
        functional.mul, torch.mul, (floats(6, dtype=torch.float16), floats()), ((None, 0), (0, 0)), loops=True
    ),
    "swiglu": Case(functional.swiglu, silu_gate, (floats(4, 6), floats(4, 6)), TWO),
    "swiglu of halves": Case(functional.swiglu, halves, (floats(4, 6),), ((0,), (1,))),
    "softmax": Case(lambda x: functional.softmax(x, -1), lambda x: x.softmax(-1), (floats(4, 6),), ONE),
    "softmax of the first": Case(lambda x: functional.softmax(x, 0), lambda x: x.softmax(0), (floats(4, 6),), ONE),
    "log_softmax of a number": Case(
        lambda x: functional.log_softmax(x, 0), lambda x: x.log_softmax(0), (floats(),), ((0,),)
    ),
    "sum": Case(lambda x: functional.sum(x, (0, 2)), lambda x: x.sum((0, 2)), (floats(4, 5, 6),), ONE),
    "sum of all": Case(functional.sum, torch.sum, (floats(4, 6),), ONE),
    "amax": Case(
        lambda x: functional.amax(x, 1, keepdim=True), lambda x: x.amax(1, keepdim=True), (floats(4, 6),), ONE
    ),
    "layer_norm": Case(lambda x: functional.layer_norm(x, (6,)), ROWS, (floats(4, 6),), ((0,), (1,))),
    "layer_norm of one row": Case(lambda x: functional.layer_norm(x, (6,)), ROWS, (floats(6),), ((0,), (1,))),
    "layer_norm with weights": Case(
        lambda x, weight, bias: functional.layer_norm(x, (6,), weight, bias),
        lambda x, weight, bias: F.layer_norm(x, (6,), weight, bias),
        (floats(4, 6), floats(6), floats(6)),
        ((0, None, None),),
    ),
    "layer_norm with weights of each": Case(
        lambda x, weight: functional.layer_norm(x, (6,), weight),
        lambda x, weight: F.layer_norm(x, (6,), weight),
        (floats(4, 6), floats(6)),
        ((0, 0), (None, 1)),
        loops=True,
    ),
    "rms_norm": Case(
        lambda x: functional.rms_norm(x, (6,)), lambda x: F.rms_norm(x, (6,)), (floats(4, 6),), ((0,), (1,))
    ),
    "add_layer_norm": Case(
        lambda x, y: functional.add_layer_norm(x, y, (6,))[0], lambda x, y: ROWS(x + y), (floats(4, 6),) * 2, TWO
    ),
    "cross_entropy": Case(
        lambda x, t: functional.cross_entropy(x, t, reduction="none"),
        lambda x, t: F.cross_entropy(x, t, reduction="none"),
        (floats(4, 6), indices(6, 4)),
        TWO,
    ),
    "cross_entropy of one row": Case(
        lambda x, t: functional.cross_entropy(x, t, reduction="none"),
        lambda x, t: F.cross_entropy(x, t, reduction="none"),
        (floats(6), indices(6)),
        ((0, 0), (1, None), (None, 0)),
    ),
    "cross_entropy of probabilities": Case(
        lambda x, t: functional.cross_entropy(x, t, reduction="none", label_smoothing=0.1),
        lambda x, t: F.cross_entropy(x, t, reduction="none", label_smoothing=0.1),
        (floats(4, 6, 2), floats(4, 6, 2)),
        TWO,
    ),
    "cross_entropy with weights of each": Case(
        lambda x, weight: functional.cross_entropy(x, torch.arange(4), weight, reduction="none"),
        lambda x, weight: F.cross_entropy(x, torch.arange(4), weight, reduction="none"),
        (floats(4, 6), lambda: torch.rand(6)),
        ((0, 0),),
        loops=True,
    ),
    "embedding": Case(functional.embedding, F.embedding, (indices(5, 7), floats(5, 4)), ((0, None), (1, None))),
    "embedding of each": Case(
        functional.embedding, F.embedding, (indices(5, 7), floats(5, 4)), ((0, 0), (None, 1)), loops=True
    ),
    "matmul": Case(functional.matmul, torch.matmul, (floats(4, 6), floats(6, 5)), TWO),
}
PAIRS = [(name, in_dims) for name, case in CASES.items() for in_dims in case.in_dims]


def inputs(name: str, in_dims: tuple[int | None, ...]) -> list[Tensor]:
    """Arguments with their mapped dimension where it is said to be."""
    return [
        make() if dim is None else torch.stack([make() for _ in range(SIZE)], dim)
        for make, dim in zip(CASES[name].arguments, in_dims, strict=True)
    ]


def differentiable(tensors: list[Tensor], name: str) -> list[Tensor]:
    skipped = 1 if name == "cross_entropy with weights of each" else None  # the weights' gradient is not implemented
    return [x.requires_grad_() for i, x in enumerate(tensors) if x.is_floating_point() and i != skipped]


def close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal but for rounding, to the digits of the least dtype that took part."""
    half = any(x.dtype == torch.float16 for x in expected)
    torch.testing.assert_close(found, expected, atol=1e-2 if half else 1e-4, rtol=1e-2 if half else 1e-4)


@pytest.mark.parametrize(("name", "in_dims"), PAIRS, ids=str)
def test_as_many_launches_as_one_call(name: str, in_dims: tuple[int | None, ...], seed: int) -> None:
    case, tensors = CASES[name], inputs(name, in_dims)
    single = [x if dim is None else x.select(dim, 0) for x, dim in zip(tensors, in_dims, strict=True)]
    with simulator.profile() as one:
        case.ours(*single)
    with simulator.profile() as all_:
        found = torch.vmap(case.ours, in_dims)(*tensors)
    assert len(all_.launches) == len(one.launches) * (SIZE if case.loops else 1)
    expected = torch.vmap(case.theirs, in_dims)(*tensors)
    close([found], [expected])


@pytest.mark.parametrize(("name", "in_dims"), PAIRS, ids=str)
def test_gradients_of_a_vmap(name: str, in_dims: tuple[int | None, ...], seed: int) -> None:
    case, tensors = CASES[name], inputs(name, in_dims)
    leaves = differentiable(tensors, name)
    out, expected = (torch.vmap(f, in_dims)(*tensors) for f in (case.ours, case.theirs))
    grad = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad(x, leaves, grad) for x in (out, expected))
    close(found, wanted)


@pytest.mark.parametrize("name", CASES)
def test_a_vmap_of_gradients(name: str, seed: int) -> None:
    """Several gradients of one result at once: the backward operators' own rules."""
    case = CASES[name]
    tensors = [make() for make in case.arguments]
    leaves = differentiable(tensors, name)
    out, expected = case.ours(*tensors), case.theirs(*tensors)
    grads = torch.randn(SIZE, *expected.shape).to(expected.dtype)
    found = torch.vmap(lambda grad: torch.autograd.grad(out, leaves, grad, retain_graph=True))(grads)
    each_of_them = zip(*(torch.autograd.grad(expected, leaves, grad, retain_graph=True) for grad in grads), strict=True)
    close(found, tuple(map(torch.stack, each_of_them)))


#: Arguments of the backward operators, as one call has them.
BACKWARD: dict[str, Callable[[], tuple[Any, ...]]] = {
    "elementwise": lambda: (*torch.randn(2, 4, 6), torch.randn(6), None, "silu", "mul", True, True),
    "gate_halves": lambda: (torch.randn(4, 3), torch.randn(4, 6), "silu"),
    "softmax": lambda: (torch.randn(4, 6), torch.rand(4, 6), 1, False, torch.float32),
    "reduction_amax": lambda: (torch.randn(4, 1), x := torch.randn(4, 6), x.amax(1, keepdim=True), [1], True),
    "norm": lambda: (*torch.randn(3, 4, 6), None, torch.rand(3, 4), 1, True),
    "cross_entropy": lambda: (torch.randn(4), torch.randn(4, 6), torch.arange(4), None, torch.rand(3, 4), -100, 0.1),
    "cross_entropy of one row": lambda: (
        torch.randn(()),
        *torch.randn(2, 6),
        None,
        torch.rand(3),
        -100,
        0.1,
        True,
        True,
    ),
}


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("name", BACKWARD)
def test_backward_operators_with_every_tensor_mapped(name: str, dim: int, seed: int) -> None:
    operator = getattr(torch.ops.mps_flash_attn, f"{name.split()[0]}_backward")
    calls = [BACKWARD[name]() for _ in range(SIZE)]
    places = [i for i, argument in enumerate(calls[0]) if isinstance(argument, Tensor)]

    def one(*tensors: Tensor) -> Any:
        arguments = list(calls[0])
        for i, tensor in zip(places, tensors, strict=True):
            arguments[i] = tensor
        found = operator(*arguments)
        return tuple(x for x in found if x.numel()) if isinstance(found, tuple) else (found,)

    stacked = [torch.stack([call[i] for call in calls], dim) for i in places]
    with simulator.profile() as counts:
        found = torch.vmap(one, (dim,) * len(stacked))(*stacked)
    assert len(counts.launches) == (2 if name == "reduction_amax" else 1)  # that counts equal elements first
    expected = zip(*(one(*(call[i] for i in places)) for call in calls), strict=True)
    close(found, tuple(map(torch.stack, expected)))


def test_rope(seed: int) -> None:
    x, positions = torch.randn(SIZE, 2, 5, 8), torch.randint(9, (SIZE, 5))
    with simulator.profile() as counts:
        found = torch.vmap(functional.rope)(x)
    assert len(counts.launches) == 1
    assert torch.equal(found, torch.stack([functional.rope(each_) for each_ in x]))
    of_each = torch.vmap(lambda x, positions: functional.rope(x, positions=positions))(x, positions)
    expected = [functional.rope(a, positions=b) for a, b in zip(x, positions, strict=True)]
    assert torch.equal(of_each, torch.stack(expected))


def test_renormalisation_of_a_shared_weight_and_of_each(seed: int) -> None:
    indices, weight, weights = torch.randint(5, (SIZE, 4)), torch.randn(7, 6), torch.randn(7, SIZE, 6)
    expected = weight.clone()
    F.embedding(indices, expected, max_norm=1.0)
    with simulator.profile() as counts:
        found = torch.vmap(lambda indices: functional.embedding(indices, weight, max_norm=1.0))(indices)
    assert len(counts.launches) == 3
    torch.testing.assert_close(weight, expected)
    assert torch.equal(found, weight[indices])
    torch.vmap(lambda indices, weight: functional.embedding(indices, weight, max_norm=1.0), (0, 1))(indices, weights)
    for used, part in zip(indices, weights.unbind(1), strict=True):
        assert (part[used].norm(dim=1) <= 1.0001).all()
    with pytest.raises(IndexError, match="input holds the index"):
        torch.vmap(lambda indices: functional.embedding(indices, weight, max_norm=1.0))(indices + 7)


def test_nested_maps(seed: int) -> None:
    x, weight = torch.randn(2, SIZE, 4, 6), torch.randn(SIZE, 6)
    with simulator.profile() as counts:
        found = torch.vmap(torch.vmap(lambda x, weight: functional.softmax(functional.mul(x, weight), -1)), (0, None))(
            x, weight
        )
    assert len(counts.launches) == 2
    assert (found - (x * weight[:, None]).softmax(-1)).abs().max() <= 1e-6


@given(st.integers(0, 3), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 2), st.integers(0, 3) | st.none())
def test_leading_and_trailing_views(size: int, shape: list[int], more: int, dim: int | None) -> None:
    x = torch.randn(shape)
    mapped = None if dim is None else min(dim, len(shape))
    stacked = x if mapped is None else x.unsqueeze(mapped).expand(*shape[:mapped], size, *shape[mapped:])
    assert lead(stacked, mapped, size, len(shape) + more).shape == (size, *(1,) * more, *shape)
    assert last(stacked, mapped, size).shape == (*shape, size)
    if size:
        assert torch.equal(lead(stacked, mapped, size)[0], x)
        assert torch.equal(last(stacked, mapped, size)[..., 0], x)


def test_no_calls_have_no_result() -> None:
    with pytest.raises(UnsupportedError, match="vmap maps over has size 0"):
        each(torch.neg, 0, (torch.zeros(0, 3),), (0,))
