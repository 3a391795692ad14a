"""Gradients of attention and how the operators live with PyTorch's transforms and compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from mps_flash_attn import UnsupportedError, flash_attention
from mps_flash_attn.ops.attention.problem import Causal

D = 8

forward = torch.ops.mps_flash_attn.attention_forward.default
backward = torch.ops.mps_flash_attn.attention_backward.default


def operands(
    dtype: torch.dtype = torch.float64, *, batch: int = 2, queries: int = 5, keys: int = 6, requires_grad: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Four query heads, two key heads."""
    shapes = ((batch, 4, queries, D), (batch, 2, keys, D), (batch, 2, keys, D))
    query, key, value = (torch.randn(shape, dtype=dtype).requires_grad_(requires_grad) for shape in shapes)
    return query, key, value


def transposed(x: Tensor) -> Tensor:
    """The same values with ``[B, L, H, D]`` in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2).detach().requires_grad_(x.requires_grad)


def sliced(x: Tensor) -> Tensor:
    """The same values as a slice of a wider tensor."""
    wide = x.new_zeros(*x.shape[:-1], D + 3)
    wide[..., 1 : D + 1] = x.detach()
    return wide[..., 1 : D + 1].requires_grad_(x.requires_grad)


def expanded(x: Tensor) -> Tensor:
    """The values of the first batch for all batches."""
    return x[:1].detach().expand_as(x).requires_grad_(x.requires_grad)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": transposed,
    "sliced": sliced,
    "expanded": expanded,
}
MASKS: dict[str, Callable[[], Tensor | None]] = {
    "none": lambda: None,
    "boolean": lambda: torch.rand(1, 1, 5, 6) > 0.3,
    "additive": lambda: torch.randn(1, 4, 1, 6),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "mask", "causal"),
    [
        (torch.float32, "none", Causal.TOP_LEFT),
        (torch.float64, "boolean", Causal.NONE),
        (torch.bfloat16, "additive", Causal.BOTTOM_RIGHT),
    ],
    ids=str,
)
def test_forward_operator_keeps_pytorchs_rules(
    seed: int, dtype: torch.dtype, mask: str, causal: Causal, layout: str
) -> None:
    query, key, value = (LAYOUTS[layout](x) for x in operands(dtype))
    torch.library.opcheck(forward, (query, key, value, MASKS[mask](), 0.3, int(causal)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_operator_keeps_pytorchs_rules(seed: int, dtype: torch.dtype, layout: str) -> None:
    query, key, value = (LAYOUTS[layout](x) for x in operands(dtype, requires_grad=False))
    mask = MASKS["additive"]()
    out, lse = forward(query, key, value, mask, 0.3, 0)
    for grad_lse in (None, torch.randn_like(lse)):
        args = (LAYOUTS[layout](torch.randn_like(out)), grad_lse, query, key, value, mask, out, lse, True, 0.3, 0)
        torch.library.opcheck(backward, args)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("alignment", [None, "top-left", "bottom-right"])
def test_gradients_are_exact(seed: int, alignment: Any, mask: str) -> None:
    attn_mask = MASKS[mask]()

    def attention(*args: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = flash_attention(
            *args,  # type: ignore[call-overload]
            attn_mask=attn_mask,
            is_causal=alignment is not None,
            causal_alignment=alignment or "top-left",
            enable_gqa=True,
            return_lse=True,
        )
        return out, lse.masked_fill(lse == -torch.inf, 0)

    assert torch.autograd.gradcheck(attention, operands(batch=1), fast_mode=True)
    if alignment is None:
        assert torch.autograd.gradcheck(attention, operands(batch=1))


def test_gradients_through_broadcasting_and_folding(seed: int) -> None:
    shapes = ((2, 1, 2, 3, D), (1, 2, 1, 4, D), (4, D))
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(flash_attention, tensors)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_gradients_of_some_operands(seed: int, wanted: tuple[int, ...]) -> None:
    every = operands()
    some = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(every)]
    for tensors in (every, some):
        flash_attention(*tensors, enable_gqa=True).square().sum().backward()
    for i, (all_grad, some_grad) in enumerate(zip(every, some, strict=True)):
        assert (some_grad.grad is not None) == (i in wanted)
        if i in wanted:
            assert torch.equal(some_grad.grad, all_grad.grad)  # type: ignore[arg-type]


def test_gradient_of_the_log_sum_exp_alone(seed: int) -> None:
    query, key, value = operands()
    _, lse = flash_attention(query, key, value, scale=0.3, enable_gqa=True, return_lse=True)
    grads = torch.autograd.grad(lse.sum(), (query, key, value))
    scores = query @ key.repeat_interleave(2, dim=1).mT * 0.3
    expected = torch.autograd.grad(scores.logsumexp(-1).sum(), (query, key))
    assert all((a - b).abs().max() <= 1e-12 for a, b in zip(grads, expected, strict=False))
    assert not grads[2].any()


def test_rows_without_keys_have_zero_gradients(seed: int) -> None:
    query, key, value = operands()
    mask = torch.ones(5, 6, dtype=torch.bool)
    mask[2] = False
    out = flash_attention(query, key, value, mask, enable_gqa=True)
    assert not out[:, :, 2].any()
    grads = torch.autograd.grad(out.sum(), (query, key, value))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][:, :, 2].any()


def test_second_derivatives_are_refused() -> None:
    query, key, value = operands()
    first = torch.autograd.grad(
        flash_attention(query, key, value, enable_gqa=True).square().sum(), query, create_graph=True
    )
    with pytest.raises(UnsupportedError, match=r"second derivatives of attention are not supported.*SDPBackend\.MATH"):
        first[0].sum().backward()


def test_first_derivatives_with_create_graph_are_fine(seed: int) -> None:
    query, key, value = operands()
    out = flash_attention(query, key, value, enable_gqa=True).sum()
    plain = torch.autograd.grad(out, query, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(out, query, create_graph=True)[0], plain)


def test_forward_mode_is_refused_and_never_silently_zero() -> None:
    query, key, value = operands(requires_grad=False)

    def attention(query: Tensor) -> Tensor:
        return flash_attention(query, key, value, enable_gqa=True)

    with pytest.raises(UnsupportedError, match="forward-mode differentiation"), forward_ad.dual_level():
        attention(forward_ad.make_dual(query, query))
    with pytest.raises(UnsupportedError, match="forward-mode differentiation"):
        torch.func.jvp(attention, (query,), (query,))
    with pytest.raises(UnsupportedError, match=r"torch\.func gradients"):
        torch.func.grad(lambda x: attention(x).sum())(query)
    with pytest.raises(UnsupportedError, match=r"torch\.func gradients"):
        torch.func.grad(lambda x: torch.vmap(attention)(x).sum())(query[None])


def test_gradients_of_a_vmap(seed: int) -> None:
    query, key, value = operands()
    stacked = torch.stack([query, -query]).detach().requires_grad_()
    torch.vmap(lambda x: flash_attention(x, key, value, enable_gqa=True))(stacked).square().sum().backward()
    for i, one in enumerate((query, -query.detach())):
        one = one.detach().requires_grad_()
        flash_attention(one, key, value, enable_gqa=True).square().sum().backward()
        assert one.grad is not None
        assert stacked.grad is not None
        assert (stacked.grad[i] - one.grad).abs().max() <= 1e-12


def test_batched_gradients(seed: int) -> None:
    query, key, value = operands()
    out, lse = flash_attention(query, key, value, enable_gqa=True, return_lse=True)
    grads = torch.randn(3, *out.shape, dtype=out.dtype), torch.randn(3, *lse.shape, dtype=lse.dtype)
    batched = torch.autograd.grad((out, lse), (query, key), grads, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        single = torch.autograd.grad((out, lse), (query, key), [grad[i] for grad in grads], retain_graph=True)
        assert all((b[i] - s).abs().max() <= 1e-12 for b, s in zip(batched, single, strict=True))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(seed: int, use_reentrant: bool) -> None:
    def block(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return flash_attention(query.sin(), key, value, is_causal=True, enable_gqa=True).cos()

    plain, kept = operands(torch.float32), operands(torch.float32)
    with torch.no_grad():
        for a, b in zip(kept, plain, strict=True):
            a.copy_(b)
    block(*plain).sum().backward()
    checkpoint(block, *kept, use_reentrant=use_reentrant).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(kept, plain, strict=True))  # type: ignore[arg-type]


def test_inference_mode_and_no_grad(seed: int) -> None:
    query, key, value = operands(torch.float32)
    expected = flash_attention(query, key, value, enable_gqa=True)
    assert expected.requires_grad
    with torch.inference_mode():
        for tensors in ((query, key, value), [x.clone() for x in (query, key, value)]):
            assert torch.equal(flash_attention(*tensors, enable_gqa=True), expected)
    with torch.no_grad():
        assert not flash_attention(query, key, value, enable_gqa=True).requires_grad


def test_saved_tensors_are_the_operands_and_rows_alone(seed: int) -> None:
    """What autograd keeps between forward and backward is of size L * D, not L * L."""
    query, key, value = operands(torch.float32, queries=64, keys=64)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        out = flash_attention(query, key, value, enable_gqa=True)
    pointers = {x.data_ptr() for x in (query, key, value, out)}
    extra = [x for x in kept if x.data_ptr() not in pointers]
    assert [x.shape for x in extra] == [query.shape[:-1]], "the log-sum-exp"


def attention_and_lse(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    out, lse = flash_attention(query, key, value, mask, is_causal=True, scale=scale, enable_gqa=True, return_lse=True)
    return out.square().sum() + lse.sum()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("mask", ["none", "boolean"])
def test_compiles_without_graph_breaks(seed: int, mask: str, scale: float | None, dynamic: bool) -> None:
    compiled = torch.compile(attention_and_lse, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    attn_mask = MASKS[mask]()
    for _ in range(2):
        plain = operands(torch.float32)
        copies = [x.detach().clone().requires_grad_() for x in plain]
        attention_and_lse(*plain, attn_mask, scale).backward()
        compiled(*copies, attn_mask, scale).backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(copies, plain, strict=True))  # type: ignore[arg-type]


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_folding_casting_and_inference(seed: int) -> None:
    query, key, value = (x.float()[None].expand(3, -1, -1, -1, -1) for x in operands(requires_grad=False))

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return flash_attention(query, key, value, enable_gqa=True)

    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query, key, value), attention(query, key, value))
    with torch.inference_mode():
        assert torch.equal(compiled(query, key, value), attention(query, key, value))


@pytest.mark.usefixtures("fresh_compiler")
def test_one_compiled_graph_serves_new_lengths(seed: int) -> None:
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    compiled = torch.compile(attention_and_lse, fullgraph=True, dynamic=True, backend=count)
    for length in (5, 6, 9):
        tensors = operands(torch.float32, queries=length, keys=length, requires_grad=False)
        assert torch.equal(compiled(*tensors, None, None), attention_and_lse(*tensors, None, None))
    assert graphs == 1


@pytest.mark.usefixtures("fresh_compiler")
def test_export_keeps_the_operator(seed: int) -> None:
    class Attention(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return flash_attention(query, key, value, enable_gqa=True)

    tensors = operands(torch.float32, requires_grad=False)
    program = torch.export.export(Attention(), tensors)
    assert forward in [node.target for node in program.graph.nodes]
    assert torch.equal(program.module()(*tensors), Attention()(*tensors))
