"""Layers that take the place of PyTorch's: the same parameters, results and gradients, for every option they have."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import UnsupportedError, functional, nn
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def floats(*shape: int) -> Callable[[torch.dtype], Tensor]:
    return lambda dtype: torch.randn(shape).to(dtype)


def indices(high: int, *shape: int) -> Callable[[torch.dtype], Tensor]:
    return lambda _: torch.randint(high, shape)


#: A layer, its arguments, and what makes its inputs.
LAYERS: dict[str, tuple[str, dict[str, Any], tuple[Callable[[torch.dtype], Tensor], ...]]] = {
    "linear": ("Linear", {"in_features": 24, "out_features": 40}, (floats(2, 5, 24),)),
    "linear without bias": ("Linear", {"in_features": 24, "out_features": 7, "bias": False}, (floats(9, 24),)),
    "layer norm": ("LayerNorm", {"normalized_shape": (3, 20)}, (floats(4, 3, 20),)),
    "layer norm, no bias": ("LayerNorm", {"normalized_shape": 33, "bias": False, "eps": 1e-3}, (floats(4, 33),)),
    "layer norm, plain": ("LayerNorm", {"normalized_shape": 33, "elementwise_affine": False}, (floats(4, 33),)),
    "rms norm": ("RMSNorm", {"normalized_shape": 48}, (floats(4, 3, 48),)),
    "rms norm, plain": ("RMSNorm", {"normalized_shape": 48, "eps": 1e-4, "elementwise_affine": False}, (floats(48),)),
    "gelu": ("GELU", {}, (floats(3, 50),)),
    "gelu by tanh": ("GELU", {"approximate": "tanh"}, (floats(3, 50),)),
    "silu": ("SiLU", {}, (floats(3, 50),)),
    "relu": ("ReLU", {}, (floats(3, 50),)),
    "softmax": ("Softmax", {"dim": 1}, (floats(3, 17, 4),)),
    "log softmax": ("LogSoftmax", {"dim": -1}, (floats(3, 17),)),
    "embedding": ("Embedding", {"num_embeddings": 11, "embedding_dim": 24}, (indices(11, 4, 5),)),
    "embedding with padding": (
        "Embedding",
        {"num_embeddings": 11, "embedding_dim": 24, "padding_idx": 3},
        (indices(11, 40),),
    ),
    "embedding of limited norm": (
        "Embedding",
        {"num_embeddings": 11, "embedding_dim": 24, "max_norm": 3.0, "scale_grad_by_freq": True},
        (indices(11, 40),),
    ),
    "cross-entropy": ("CrossEntropyLoss", {"ignore_index": 2}, (floats(9, 13), indices(13, 9))),
    "cross-entropy with probabilities": ("CrossEntropyLoss", {}, (floats(9, 13), floats(9, 13))),
    "cross-entropy, smoothed": (
        "CrossEntropyLoss",
        {"label_smoothing": 0.1, "reduction": "sum"},
        (floats(9, 13), indices(13, 9)),
    ),
}


def pair(layer: str, arguments: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Our layer and PyTorch's, made after the same seed."""
    made = []
    seed = torch.initial_seed()
    for module in (nn, torch.nn):
        torch.manual_seed(seed)
        made.append(getattr(module, layer)(**arguments).to(dtype))
    return made[0], made[1]


def results(layer: torch.nn.Module, inputs: tuple[Tensor, ...], call: dict[str, Any], grad: Tensor) -> list[Tensor]:
    """The output, and in one vector the gradients of the floating-point inputs and of the parameters.

    One vector, because a gradient that is 0 but for rounding (of a query with a single key) has no scale of its own.
    """
    inputs = tuple(x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs)
    out = layer(*inputs, **call)
    out = out[0] if isinstance(out, tuple) else out
    sources = [x for x in inputs if x.requires_grad] + list(layer.parameters())
    gradients = torch.autograd.grad(out, sources, grad.to(out.dtype).expand(out.shape))
    return [out.detach(), torch.cat([x.flatten() for x in gradients])]


def assert_equal_results(
    ours: torch.nn.Module, theirs: torch.nn.Module, inputs: tuple[Tensor, ...], call: dict[str, Any]
) -> None:
    def double(x: Any) -> Any:
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    reference = copy.deepcopy(theirs).double()
    exact_inputs, exact_call = tuple(map(double, inputs)), {name: double(x) for name, x in call.items()}
    shape = reference(*exact_inputs, **exact_call)
    shape = (shape[0] if isinstance(shape, tuple) else shape).shape
    grad = torch.randn(shape).to(next((x.dtype for x in inputs if x.is_floating_point()), torch.float32))
    found, expected, exact = (
        results(layer, tensors, arguments, grad)
        for layer, tensors, arguments in (
            (ours, inputs, call),
            (theirs, inputs, call),
            (reference, exact_inputs, exact_call),
        )
    )
    for name, actual, baseline, truth in zip(("output", "gradients"), found, expected, exact, strict=True):
        assert_accurate(f"{name} of {ours}", actual, baseline, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", LAYERS)
def test_layer_is_a_drop_in(which: str, dtype: torch.dtype, seed: int) -> None:
    layer, arguments, make = LAYERS[which]
    ours, theirs = pair(layer, arguments, dtype)
    assert isinstance(ours, type(theirs))
    assert type(ours) is not type(theirs)
    assert repr(ours) == repr(theirs)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert_equal_results(ours, theirs, tuple(x(dtype) for x in make), {})
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(1)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert_equal_results(ours, theirs, tuple(x(dtype) for x in make), {})


@given(st.data())
@settings(max_examples=25)
def test_multihead_attention_is_a_drop_in(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**31), label="seed"))
    batch, heads, queries, keys = 2, draw(st.sampled_from((1, 3))), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    batch_first, batched, shared = (draw(st.booleans()) for _ in range(3))
    keys = queries if shared else keys
    width = 24
    kdim, vdim = (None, None) if shared else draw(st.sampled_from(((None, None), (16, 32), (24, 24))))
    arguments = {
        "embed_dim": width,
        "num_heads": heads,
        "bias": draw(st.booleans()),
        "add_bias_kv": draw(st.booleans()),
        "add_zero_attn": draw(st.booleans()),
        "kdim": kdim,
        "vdim": vdim,
        "batch_first": batch_first,
        "dropout": 0.3,
    }
    ours, theirs = pair("MultiheadAttention", arguments)
    ours.eval()  # dropout is off
    theirs.eval()

    def tensor(length: int, size: int) -> Tensor:
        if not batched:
            return torch.randn(length, size)
        return torch.randn(batch, length, size) if batch_first else torch.randn(length, batch, size)

    query = tensor(queries, width)
    inputs = (query, query, query) if shared else (query, tensor(keys, kdim or width), tensor(keys, vdim or width))
    call: dict[str, Any] = {"need_weights": False}
    # The first key is never hidden: PyTorch gives NaN for a query that sees none.
    kind = draw(st.sampled_from(("none", "boolean", "additive", "per head", "causal")))
    if kind != "none":
        shape = (batch * heads if batched else heads, queries, keys) if kind == "per head" else (queries, keys)
        mask = torch.rand(shape) > 0.7
        mask[..., 0] = False
        call["attn_mask"] = mask
        if kind == "additive":
            call["attn_mask"] = torch.randn(shape).masked_fill(mask, -torch.inf)
        if kind == "causal":
            call |= {"attn_mask": torch.ones(shape, dtype=torch.bool).triu(1), "is_causal": True}
    if draw(st.booleans(), label="padding"):
        hidden = torch.rand((batch, keys) if batched else (keys,)) > 0.7
        hidden[..., 0] = False
        additive = kind == "additive"
        call["key_padding_mask"] = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf) if additive else hidden
    assert_equal_results(ours, theirs, inputs, call)


@pytest.fixture
def flash_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a call of flash attention."""
    calls: list[int] = []
    original = functional.flash_attention

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(functional, "flash_attention", record)
    return calls


def test_multihead_attention_computes_as_pytorch_where_flash_attention_cannot(flash_calls: list[int]) -> None:
    x, call = torch.randn(5, 2, 16), {"need_weights": False}
    ours, theirs = pair("MultiheadAttention", {"embed_dim": 16, "num_heads": 2, "dropout": 0.5})

    def same(**call: Any) -> bool:
        torch.manual_seed(3)
        out, weights = ours(x, x, x, **call)
        torch.manual_seed(3)
        expected, expected_weights = theirs(x, x, x, **call)
        equal = weights is None or torch.equal(weights, expected_weights)
        return equal and torch.equal(out, expected)

    ours.eval()
    theirs.eval()
    assert same()  # weights
    ours.use_flash_attention = False
    assert same(**call)
    assert not flash_calls
    ours.use_flash_attention = True
    ours(x, x, x, **call)
    assert len(flash_calls) == 1
    assert not nn.MultiheadAttention(16, 2, use_flash_attention=False).use_flash_attention


@pytest.mark.parametrize(
    ("layer", "inputs", "words"),
    [
        (nn.Softmax(), (torch.zeros(2),), "dim is None"),
        (nn.LogSoftmax(), (torch.zeros(2),), "dim is None"),
    ],
)
def test_options_that_are_not_there_are_refused(layer: Any, inputs: tuple[Tensor, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layer(*inputs)


def test_a_causal_hint_needs_its_mask() -> None:
    x = torch.zeros(2, 3, 16)
    with pytest.raises(ValueError, match="attn_mask is None and is_causal is True"):
        nn.MultiheadAttention(16, 2)(x, x, x, need_weights=False, is_causal=True)


def test_unsupported_options_are_value_errors() -> None:
    assert issubclass(UnsupportedError, ValueError)


class Own(torch.nn.Linear):
    """A subclass may compute something else."""


def model() -> torch.nn.Module:
    shared = torch.nn.Linear(8, 8)
    return torch.nn.Sequential(
        shared,
        torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.GELU("tanh"), shared, torch.nn.Tanh()),
        torch.nn.MultiheadAttention(8, 2),
        Own(8, 8),
    )


def test_convert_swaps_exactly_pytorchs_layers() -> None:
    original = model()
    parameters = list(original.parameters())
    converted = nn.convert(original)
    assert converted is original
    kinds = [type(module) for module in converted.modules()]
    for layer in (nn.Linear, nn.LayerNorm, nn.GELU, nn.MultiheadAttention, Own, torch.nn.Tanh):
        assert layer in kinds
    for layer in (torch.nn.Linear, torch.nn.LayerNorm, torch.nn.GELU, torch.nn.MultiheadAttention):
        assert layer not in kinds
    assert all(x is y for x, y in zip(converted.parameters(), parameters, strict=True))
    assert converted[0] is converted[1][2]  # type: ignore[index]
    assert list(converted.state_dict()) == list(model().state_dict())


def test_a_converted_layer_keeps_settings_and_hooks(seed: int) -> None:
    layer, calls = torch.nn.LayerNorm(8, eps=0.25), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(3, 8)
    expected = layer(x)
    converted = nn.convert(layer)
    assert type(converted) is nn.LayerNorm
    torch.testing.assert_close(converted(x), expected)
    assert len(calls) == 2
    assert nn.convert(converted) is converted


def test_converted_models_are_copied_and_pickled(seed: int) -> None:
    original = nn.convert(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()))
    x = torch.randn(2, 8)
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert type(twin[0]) is nn.Linear
        assert torch.equal(twin(x), original(x))


def test_in_place_activations_write_into_their_input(seed: int) -> None:
    for layer in (nn.ReLU(inplace=True), nn.SiLU(inplace=True)):
        x = torch.randn(5)
        expected = getattr(torch.nn.functional, type(layer).__name__.lower())(x)
        assert layer(x) is x
        torch.testing.assert_close(x, expected)
