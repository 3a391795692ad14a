"""What operations share: merged dimensions, prepared calls, checks of arguments."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from mps_flash_attn import UnsupportedError
from mps_flash_attn.ops import calls, checks
from mps_flash_attn.ops.strides import coalesce


@given(st.lists(st.integers(1, 4), max_size=5).flatmap(lambda s: st.tuples(st.just(s), st.permutations(range(len(s))))))
def test_coalesced_strides_reach_the_same_elements_in_order(problem: tuple[list[int], list[int]]) -> None:
    shape, order = problem
    tensor = torch.arange(torch.Size(shape).numel()).view(shape).permute(order)
    merged, (strides, zeros) = coalesce(tensor.shape, tensor.stride(), (0,) * len(shape))
    assert torch.equal(tensor.as_strided(merged, strides).flatten(), tensor.flatten())
    assert 1 not in merged
    assert all(stride == 0 for stride in zeros)


def test_contiguous_tensors_have_one_dimension() -> None:
    tensor = torch.empty(2, 3, 4)
    assert coalesce(tensor.shape, tensor.stride(), tensor.stride()) == ((24,), ((1,), (1,)))
    assert coalesce((2, 3), (3, 1), (0, 1)) == ((2, 3), ((3, 1), (0, 1)))
    assert coalesce((), ()) == ((), ((),))


def test_prepared_calls_are_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_MOST_CALLS", 3)
    monkeypatch.setattr(calls, "_all", [])
    prepared: calls.PreparedCalls[int] = calls.PreparedCalls()
    for problem in range(5):
        prepared[problem] = problem
        assert len(prepared) <= 3
    assert prepared[4] == 4
    calls.forget()
    assert not prepared


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("check", "error", "words"),
    [
        (lambda: checks.require_tensor("input", [1.0]), TypeError, "input is a list; accepted is a Tensor"),
        (
            lambda: checks.require_tensor("input", X.int()),
            TypeError,
            "input has dtype torch.int32; accepted are float32",
        ),
        (lambda: checks.require_tensor("input", X.to_sparse()), ValueError, "input is of layout torch.sparse_coo"),
        (
            lambda: checks.require_match("weight", X.half(), "input", X),
            TypeError,
            "weight has dtype torch.float16",
        ),
        (
            lambda: checks.require_match("weight", X.to("meta"), "input", X),
            ValueError,
            "weight is on meta and",
        ),
        (
            lambda: checks.require_shape("weight", X, (3,), "the last size"),
            ValueError,
            "weight has shape (2, 3); ",
        ),
        (lambda: checks.require_dim("dim", 1.0, 2), TypeError, "dim is a float; accepted is an int"),
        (lambda: checks.require_dim("dim", 2, 2), ValueError, "dim is 2; accepted are -2 to 1"),
        (lambda: checks.require_number("eps", "1"), TypeError, "eps is a str; accepted is a number"),
        (lambda: checks.require_number("eps", torch.nan), ValueError, "eps is nan; accepted are finite numbers"),
        (
            lambda: checks.require_number("eps", -1.0, least=0),
            ValueError,
            "eps is -1.0; accepted are finite",
        ),
    ],
)
def test_bad_arguments_are_named(check: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        check()


def test_good_arguments_pass() -> None:
    checks.require_tensor("input", X)
    checks.require_match("weight", X.half(), "input", X, dtype=False)
    assert checks.require_dim("dim", -1, 3) == 2
    assert checks.require_dim("dim", -1, 0) == 0
    assert checks.require_number("eps", 1, least=1) == 1.0


def test_other_differentiation_than_backward_is_refused() -> None:
    checks.require_reverse_mode("softmax")
    torch.vmap(lambda x: (checks.require_reverse_mode("softmax"), x)[1])(X)
    with pytest.raises(UnsupportedError, match=r"forward-mode differentiation and torch\.func gradients of softmax"):
        torch.func.grad(lambda x: (checks.require_reverse_mode("softmax"), x.sum())[1])(X)
    with pytest.raises(UnsupportedError, match="of softmax"), forward_ad.dual_level():
        checks.require_reverse_mode("softmax")
