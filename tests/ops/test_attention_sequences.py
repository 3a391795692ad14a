"""Sequences whose lengths are in tensors: each as if it were alone, nothing of the padding computed, nothing missed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn.errors import UnsupportedError
from mps_flash_attn.flash_attn_interface import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from mps_flash_attn.ops.attention.arguments import Scoring
from mps_flash_attn.ops.attention.cases import Case, Inputs
from mps_flash_attn.ops.attention.expected import exact, pytorch
from mps_flash_attn.ops.attention.problem import Causal
from mps_flash_attn.ops.attention.sequence_api import attend
from mps_flash_attn.ops.attention.sequences import Lengths
from mps_flash_attn.runtime import simulator
from tests.ops.attention import ours
from tests.tolerance import assert_accurate


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Sequences one after the other, ``unused`` rows behind them, and of each sequence's keys some that are not used.

    Attributes:
        case: its lengths are not used, but all else; every head has a slope and a sink of its own in each sequence.
    """

    case: Case
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    not_used: tuple[int, ...]
    unused: int = 0

    def inputs(self, dtype: torch.dtype) -> Inputs:
        total = (sum(self.queries) + self.unused, sum(self.keys) + self.unused)
        packed = dataclasses.replace(self.case, queries=total[0], keys=total[1], batch=1).inputs(dtype)
        per_sequence = dataclasses.replace(self.case, batch=len(self.queries)).inputs(dtype).modifiers
        modifiers = per_sequence._replace(
            seed=packed.modifiers.seed,
            cu_seqlens_q=int32(0, *itertools.accumulate(self.queries)),
            cu_seqlens_k=int32(0, *itertools.accumulate(self.keys)),
            seqused_k=int32(*(max(n - m, 0) for n, m in zip(self.keys, self.not_used, strict=True))),
        )
        return dataclasses.replace(packed, modifiers=modifiers)

    def each(self, packed: Inputs) -> list[tuple[slice, slice, Inputs]]:
        """The rows of each sequence, and it alone."""
        m = packed.modifiers
        alone = m._replace(cu_seqlens_q=None, cu_seqlens_k=None, seqused_k=None)
        found = []
        for n, (first, first_key) in enumerate(zip(m.cu_seqlens_q.tolist(), m.cu_seqlens_k.tolist(), strict=True)):
            if n == len(self.queries):
                break
            rows = slice(first, first + self.queries[n])
            columns = slice(first_key, first_key + m.seqused_k[n].item())
            values = {
                **{name: getattr(packed, name)[:, :, rows] for name in ("query", "grad_out", "grad_lse")},
                **{name: getattr(packed, name)[:, :, columns] for name in ("key", "value")},
            }
            one = {
                name: None if x is None else x[n : n + 1]
                for name, x in (("alibi_slopes", m.alibi_slopes), ("sinks", m.sinks))
            }
            inputs = dataclasses.replace(packed, **values, modifiers=alone._replace(**one))
            found.append((rows, columns, dataclasses.replace(inputs, first_head=n * self.case.query_heads)))
        return found


def check(problem: Packed, dtype: torch.dtype) -> None:
    """All results at once, so that a sequence whose gradient is a sum of terms that cancel is not measured by it."""
    packed = problem.inputs(dtype)
    results = ours(packed)
    out, lse, dq, dk, dv, _, dsinks = results
    expected = {"exact": exact, "pytorch": pytorch}
    collected: dict[str, list[Tensor]] = {}
    for name, compute in expected.items():
        like = [x for x in (out, lse, dq, dk, dv) if x is not None]
        whole = [torch.zeros_like(x, dtype=torch.float64 if name == "exact" else x.dtype) for x in like]
        whole[1].fill_(-torch.inf)
        sinks = []
        for rows, columns, inputs in problem.each(packed):
            alone = compute(inputs)
            for target, part, place in zip(whole, alone, (rows, rows, rows, columns, columns), strict=False):
                assert part is not None
                target[:, :, place] = part
            sinks.append(alone[6])
        collected[name] = whole + ([torch.cat([x for x in sinks if x is not None])] if problem.case.sinks else [])
    actual = [out, lse, dq, dk, dv] + ([dsinks] if problem.case.sinks else [])
    names = ("out", "lse", "dq", "dk", "dv", "dsinks")
    for name, x, baseline, reference in zip(names, actual, collected["pytorch"], collected["exact"], strict=False):
        assert x is not None
        assert_accurate(f"{name} of {problem}", x, baseline, reference)


BASE = Case(0, 0, 40, query_heads=4, key_heads=2)
PROBLEMS = {
    "plain": Packed(BASE, (30, 1, 64, 77), (45, 20, 64, 100), (0, 0, 0, 0)),
    "causal": Packed(dataclasses.replace(BASE, causal=Causal.BOTTOM_RIGHT), (40, 20, 70), (40, 90, 30), (0, 10, 0)),
    "empty sequences": Packed(BASE, (0, 25, 30, 0), (20, 0, 40, 0), (0, 0, 0, 0), unused=9),
    "other values": Packed(dataclasses.replace(BASE, value_head_size=72), (33, 40), (50, 90), (5, 0)),
    "all": Packed(
        Case(
            0, 0, 40, query_heads=4, key_heads=2, causal=Causal.BOTTOM_RIGHT, window=(50, -1), softcap=3.0, alibi=True,
            sinks=True, dropout_p=0.2,
        ),
        (90, 40), (77, 60), (0, 10), unused=3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_each_sequence_as_if_alone(name: str, dtype: torch.dtype, seed: int) -> None:
    check(PROBLEMS[name], dtype)


@pytest.mark.parametrize("name", ["causal", "all"])
def test_no_finding(name: str, seed: int) -> None:
    inputs = PROBLEMS[name].inputs(torch.float32)
    with simulator.check(random_schedules=2):
        assert not any(x.isnan().any() for x in ours(inputs) if x is not None), "an element was never written"


LENGTHS = st.lists(st.tuples(st.integers(0, 90), st.one_of(st.just(0), st.integers(20, 90))), min_size=1, max_size=4)


@settings(max_examples=40)
@given(
    st.builds(
        Case,
        queries=st.just(0),
        keys=st.just(0),
        head_size=st.just(40),
        query_heads=st.just(4),
        key_heads=st.sampled_from((1, 2, 4)),
        causal=st.sampled_from((Causal.NONE, Causal.BOTTOM_RIGHT)),
        layout=st.sampled_from(("contiguous", "transposed", "sliced")),
        window=st.tuples(st.sampled_from((7, 40)), st.sampled_from((-1, 0, 30))),
        bottom_right=st.booleans(),
        softcap=st.sampled_from((0.0, 2.0)),
        alibi=st.just(True),
        sinks=st.booleans(),
        dropout_p=st.sampled_from((0.0, 0.3)),
    ),
    LENGTHS,
    st.integers(0, 30),
    st.integers(0, 20),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, lengths: list[tuple[int, int]], not_used: int, unused: int, seed: int) -> None:
    torch.manual_seed(seed)
    queries, keys = zip(*lengths, strict=True)
    if sum(queries) < 20 or sum(keys) < 20:  # errors are measured by the largest value, not by terms that cancel
        queries, keys = (*queries, 30), (*keys, 40)
    check(Packed(case, queries, keys, (not_used,) + (0,) * (len(queries) - 1), unused), torch.float32)


def test_nothing_of_the_padding_is_computed(seed: int) -> None:
    products = []
    for problem in (Packed(BASE, (64, 64, 512), (64, 64, 512), (0, 0, 0)), Packed(BASE, (640,), (640,), (0,))):
        inputs = problem.inputs(torch.float16)
        with simulator.profile() as counts:
            ours(inputs)
        products.append(counts.total.matrix_products)
    each = sum(n * n for n in (64, 64, 512)) / 640**2
    assert products[0] == pytest.approx(each * products[1], rel=1e-6)


@pytest.mark.parametrize("sinks", [False, True])
def test_gradients_are_exact(sinks: bool, seed: int) -> None:
    shapes = {"q": (9, 4, 4), "k": (11, 2, 4), "v": (11, 2, 3), "sinks": (2, 4)}
    inputs = {n: torch.randn(s, dtype=torch.float64, requires_grad=True) for n, s in shapes.items()}
    lengths = Lengths(int32(0, 5, 9), int32(0, 4, 10), int32(4, 5))

    def attention(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        torch.manual_seed(seed)
        scoring = Scoring(0.2, 1.5, (3, -1), torch.rand(4), s if sinks else None)
        out, lse = attend(q, k, v, lengths, causal=True, scoring=scoring)
        return out, lse.masked_fill(lse == -torch.inf, 0)

    assert torch.autograd.gradcheck(attention, tuple(inputs.values()))


def test_packed_forms(seed: int) -> None:
    qkv, ends = torch.randn(50, 3, 4, 16), int32(0, 20, 50)
    q, k, v = qkv.unbind(1)
    expected, lse, _ = flash_attn_varlen_func(q, k, v, ends, ends, 30, 30, causal=True, return_attn_probs=True)
    assert lse.shape == (4, 50)
    assert torch.equal(expected, flash_attn_varlen_qkvpacked_func(qkv, ends, 30, causal=True))
    assert torch.equal(expected, flash_attn_varlen_kvpacked_func(q, qkv[:, 1:], ends, ends, 30, 30, causal=True))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool, seed: int) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor, ends: Tensor) -> Tensor:
        out = flash_attn_varlen_func(q, k, v, ends, ends, 30, 30, causal=True, window_size=(9, -1))
        assert isinstance(out, Tensor)
        return out.square().sum()

    compiled = torch.compile(attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    plain = [torch.randn(50, heads, 16, requires_grad=True) for heads in (4, 2, 2)]
    for ends in (int32(0, 20, 50), int32(0, 0, 30, 45)):
        expected = torch.autograd.grad(attention(*plain, ends), plain)
        actual = torch.autograd.grad(compiled(*plain, ends), plain)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_operators_keep_pytorchs_rules(seed: int) -> None:
    packed = Packed(dataclasses.replace(BASE, sinks=True, dropout_p=0.1), (6, 3), (5, 8), (0, 2)).inputs(torch.float32)
    forward, backward = (
        getattr(torch.ops.mps_flash_attn, f"attention_{name}").default for name in ("forward", "backward")
    )
    operands, rest = (packed.query, packed.key, packed.value, None), (0.3, 0, *packed.modifiers)
    out, lse = forward(*operands, *rest)
    torch.library.opcheck(backward, (torch.randn_like(out), None, *operands, out, lse, False, *rest))
    leaves = [x.requires_grad_() for x in operands if x is not None]
    torch.library.opcheck(forward, (*leaves, None, *rest))


ROWS = torch.zeros(10, 2, 8)
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no int32": ({"cu_seqlens_q": torch.tensor([0, 4, 9])}, TypeError, "cu_seqlens_q has dtype torch.int64"),
    "not a tensor": ({"cu_seqlens_k": [0, 4, 9]}, TypeError, "cu_seqlens_k is a list"),
    "rank": ({"cu_seqlens_q": int32(0, 4, 9)[None]}, ValueError, "cu_seqlens_q has shape [1, 3]"),
    "start": ({"cu_seqlens_q": int32(1, 4, 9)}, ValueError, "cu_seqlens_q[0] is 1; accepted is 0"),
    "decreasing": ({"cu_seqlens_k": int32(0, 6, 4)}, ValueError, "cu_seqlens_k[2] is 4 after 6"),
    "beyond": ({"cu_seqlens_k": int32(0, 4, 11)}, ValueError, "cu_seqlens_k[2] is 11; accepted are at most 10"),
    "numbers": ({"cu_seqlens_k": int32(0, 4)}, ValueError, "cu_seqlens_q has 3 entries, cu_seqlens_k has 2 entries"),
    "used": ({"seqused_k": int32(4, 6)}, ValueError, "seqused_k[1] is 6; accepted are 0 to 5"),
    "shape": ({"q": ROWS[None]}, ValueError, "q has shape [1, 10, 2, 8]; accepted is [T, H, D]"),
    "heads": ({"q": torch.zeros(10, 3, 8)}, ValueError, "query has 3 heads and key 2"),
    "window": ({"window_size": (-2, 0)}, ValueError, "window is (-2, 0)"),
}


@pytest.mark.parametrize(("arguments", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_in_words(
    arguments: dict[str, Any], error: type[Exception], words: str, assert_refused: Callable[..., None]
) -> None:
    ends = int32(0, 4, 9)
    call = {"q": ROWS, "k": ROWS, "v": ROWS, "cu_seqlens_q": ends, "cu_seqlens_k": ends, **arguments}
    assert_refused(lambda: flash_attn_varlen_func(**call, max_seqlen_q=5, max_seqlen_k=5), error, words)


def test_no_vmap_over_packed_sequences() -> None:
    ends = int32(0, 4, 9)
    with pytest.raises(UnsupportedError, match=r"lengths of sequences inside torch\.vmap"):
        torch.vmap(lambda x: flash_attn_varlen_func(x, x, x, ends, ends, 5, 5))(ROWS[None])
