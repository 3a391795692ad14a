"""What attention promises beside accuracy: masked rows, NaN, independence of layout and of keys that are not seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mps_flash_attn.ops.attention.cases import Case, Inputs
from mps_flash_attn.ops.attention.function import attention_forward
from mps_flash_attn.ops.attention.problem import Causal
from tests.ops.attention import ours

DTYPES = (torch.float32, torch.float16)


def forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: Causal = Causal.NONE
) -> Tensor:
    return attention_forward(query, key, value, mask, query.shape[-1] ** -0.5, int(causal))[0]


def everything(inputs: Inputs) -> tuple[Tensor, ...]:
    return tuple(x for x in ours(inputs) if x is not None)


@pytest.mark.parametrize("kind", ["boolean", "additive", "bottom-right"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_that_sees_no_key_is_zero(dtype: torch.dtype, kind: str, seed: int) -> None:
    case = Case(70, 50, 40, causal=Causal.BOTTOM_RIGHT if kind == "bottom-right" else Causal.NONE)
    inputs = case.inputs(dtype)
    hidden = torch.zeros(70, dtype=torch.bool)
    if kind == "bottom-right":
        hidden[:20] = True
    else:
        hidden[[0, 17, 69]] = True
        mask = ~hidden[None, None, :, None]
        if kind == "additive":
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        inputs = Inputs(**{**vars(inputs), "attn_mask": mask})
    out, lse, dq, dk, dv, *_ = everything(inputs)
    assert torch.equal(out[:, :, hidden], torch.zeros_like(out[:, :, hidden]))
    assert torch.equal(dq[:, :, hidden], torch.zeros_like(dq[:, :, hidden]))
    assert (lse[:, :, hidden] == -torch.inf).all()
    assert lse[:, :, ~hidden].isfinite().all()
    assert all(x.isfinite().all() for x in (out, dq, dk, dv))


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
def test_gradient_of_a_minus_infinite_lse_reaches_nothing(garbage: float, seed: int) -> None:
    inputs = Case(40, 30, 40, causal=Causal.BOTTOM_RIGHT).inputs(torch.float32)
    expected = everything(inputs)
    inputs.grad_lse[:, :, :10] = garbage
    for actual, before in zip(everything(inputs), expected, strict=True):
        assert torch.equal(actual, before)
    inputs.grad_lse[:, :, 10] = garbage
    assert everything(inputs)[2][:, :, 10].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_reaches_the_rows_that_meet_it_and_no_other(dtype: torch.dtype, seed: int) -> None:
    inputs = Case(40, 40, 40, causal=Causal.TOP_LEFT).inputs(dtype)
    query, key, value = inputs.query, inputs.key, inputs.value
    query[0, 0, 5, 3] = torch.nan
    rows = forward(query, key, value, causal=Causal.TOP_LEFT)[0, 0].isnan().all(-1)
    assert rows.nonzero().flatten().tolist() == [5]
    query[0, 0, 5, 3] = 0
    key[0, 1, 30, 2] = torch.nan
    rows = forward(query, key, value, causal=Causal.TOP_LEFT)[0, 1].isnan().all(-1)
    assert rows.nonzero().flatten().tolist() == list(range(30, 40))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hidden_keys_do_not_leak(dtype: torch.dtype, seed: int) -> None:
    inputs = Case(100, 100, 64, causal=Causal.TOP_LEFT).inputs(dtype)
    before = forward(inputs.query, inputs.key, inputs.value, causal=Causal.TOP_LEFT)
    for seen in (1, 16, 33, 64, 99):
        key, value = inputs.key.clone(), inputs.value.clone()
        key[:, :, seen:], value[:, :, seen:] = 100, -7
        after = forward(inputs.query, key, value, causal=Causal.TOP_LEFT)
        assert torch.equal(after[:, :, :seen], before[:, :, :seen])
        assert not torch.equal(after[:, :, seen:], before[:, :, seen:])


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_same_bits_for_every_layout(layout: str, seed: int) -> None:
    inputs = Case(77, 90, 40, query_heads=4, layout=layout, mask="additive").inputs(torch.float16)  # type: ignore[arg-type]
    packed = Inputs(**{name: x.contiguous() if isinstance(x, Tensor) else x for name, x in vars(inputs).items()})
    for actual, expected in zip(everything(inputs), everything(packed), strict=True):
        assert torch.equal(actual, expected)


def test_nothing_outside_a_slice_is_read_or_written(seed: int) -> None:
    whole = torch.full((1, 3, 40, 50), torch.nan)
    view = whole[:, 1:2, 3:-3, 5:-5]
    view.normal_()
    out = forward(view, view, view)
    assert out.isfinite().all()
    assert torch.equal(whole.isnan().sum(), torch.tensor(whole.numel() - view.numel()))


def test_output_has_the_layout_of_the_query(seed: int) -> None:
    inputs = Case(20, 20, 40, layout="transposed").inputs(torch.float32)
    out, _, dq, dk, dv = everything(inputs)
    for tensor in (out, dq, dk, dv):
        assert tensor.transpose(1, 2).is_contiguous()
