"""The names of mps-flash-attn 0.5.2, against their definitions in that version's documentation."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mps_flash_attn
from mps_flash_attn import compatibility, tune
from mps_flash_attn.compatibility import flash_attention
from mps_flash_attn.ops.quantize.reference import NF4
from mps_flash_attn.runtime import simulator
from mps_flash_attn.runtime.cache import cache_folder

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def operands(*batch_heads: int, lengths: tuple[int, int] = (9, 12), key_heads: int | None = None) -> list[Tensor]:
    batch, heads = batch_heads
    sizes = ((heads, lengths[0]), (key_heads or heads, lengths[1]), (key_heads or heads, lengths[1]))
    return [torch.randn(batch, h, n, 8, dtype=torch.float64, requires_grad=True) for h, n in sizes]


def formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    hidden: Tensor | None = None,
    window_size: int = 0,
    bias: Tensor | float = 0.0,
) -> Tensor:
    """``softmax((Q K^T + bias) * scale) V``, where ``hidden`` is true without a key; from the documentation."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = (query @ key.mT + bias) * (scale or 1 / math.sqrt(query.shape[-1]))
    after = torch.arange(key.shape[2]) - torch.arange(query.shape[2])[:, None]
    unseen = torch.zeros_like(after, dtype=torch.bool) if hidden is None else hidden
    if is_causal:
        unseen = unseen | (after > 0)
    if window_size:
        unseen = unseen | (after < -window_size)
    return torch.softmax(scores.masked_fill(unseen, -torch.inf), -1).nan_to_num(0) @ value


def compare(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Values, and gradients of all inputs."""
    assert torch.allclose(found, expected, **EXACT)
    gradient = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), strict=True
    ):
        assert torch.allclose(ours, theirs.nan_to_num(0), rtol=1e-10, atol=1e-10)


def test_every_name_is_the_packages_own() -> None:
    for name in compatibility.__all__:
        if name != "flash_attention":
            assert getattr(mps_flash_attn, name) is getattr(compatibility, name)
            assert name in mps_flash_attn.__all__
    with pytest.raises(AttributeError, match="no attribute 'flash_attention_with_bia'"):
        _ = mps_flash_attn.flash_attention_with_bia


def test_they_cost_nothing_until_they_are_used() -> None:
    text = "import sys, mps_flash_attn; assert 'mps_flash_attn.compatibility' not in sys.modules"
    subprocess.run([sys.executable, "-c", text + "; from mps_flash_attn import replace_sdpa"], check=True)


@pytest.mark.parametrize("window_size", [0, 3])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_as_documented(is_causal: bool, window_size: int, scale: float | None, seed: int) -> None:
    inputs = operands(2, 4, key_heads=2)
    hidden = torch.rand(2, 1, 9, 12) < 0.3
    arguments = (is_causal, scale, hidden, window_size)
    compare(flash_attention(*inputs, *arguments), formula(*inputs, *arguments), inputs)


def test_masks_are_true_where_a_key_is_hidden_and_float_masks_are_exact(seed: int) -> None:
    inputs = operands(1, 2)
    hidden = torch.zeros(1, 1, 9, 12, dtype=torch.bool)
    hidden[..., 5:] = True
    without = flash_attention(inputs[0], *(x[:, :, :5] for x in inputs[1:]))
    assert torch.allclose(flash_attention(*inputs, attn_mask=hidden), without, **EXACT)
    added = torch.randn(1, 2, 9, 12, dtype=torch.float64) * 3
    expected = formula(*inputs, bias=added * math.sqrt(8))
    assert torch.allclose(flash_attention(*inputs, attn_mask=added), expected, **EXACT)


def test_converted_masks() -> None:
    mask = torch.tensor([True, False])
    assert compatibility.convert_mask(None) is None
    assert compatibility.convert_mask(mask) is mask
    added = torch.tensor([0.0, -999.0, -1e3, -torch.inf])
    assert compatibility.convert_mask(added).tolist() == [False, False, True, True]  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(2, 4, 9, 12), (1, 4, 9, 12), (4, 9, 12), (2, 1, 9, 12), (1, 4, 1, 12)], ids=str)
@pytest.mark.parametrize("options", [{}, {"scale": 0.4}, {"is_causal": True, "window_size": 4}], ids=str)
def test_bias_is_added_before_scaling(shape: tuple[int, ...], options: dict[str, Any], seed: int) -> None:
    inputs = [*operands(2, 4, key_heads=2), torch.randn(shape, dtype=torch.float64, requires_grad=True)]
    found = mps_flash_attn.flash_attention_with_bias(*inputs, **options)
    compare(found, formula(*inputs[:3], bias=inputs[3], **options), inputs)


@pytest.mark.parametrize("batch", [0, 2, 3, 6, 7])
@pytest.mark.parametrize(
    "bias_shape", [(3, 2, 9, 12), (3, 1, 9, 12), (5, 2, 9, 12), (1, 2, 9, 12), (2, 9, 12)], ids=str
)
def test_bias_repeats(batch: int, bias_shape: tuple[int, ...], seed: int) -> None:
    inputs = [*operands(batch, 2), torch.randn(bias_shape, dtype=torch.float64, requires_grad=True)]
    bias = inputs[3]
    if len(bias_shape) == 4 and bias_shape[0] > 1:
        bias = bias[torch.arange(batch) % 3]
    found = mps_flash_attn.flash_attention_with_bias(*inputs, bias_repeat_count=3)
    compare(found, formula(*inputs[:3], bias=bias), inputs)


def test_nothing_is_repeated_in_memory(seed: int) -> None:
    """The mask that reaches the operator has the elements of the bias and no more."""
    query, key, value = operands(12, 2)
    bias = torch.randn(3, 2, 9, 12, dtype=torch.float64, requires_grad=True)
    out = mps_flash_attn.flash_attention_with_bias(query, key, value, bias, bias_repeat_count=3)
    masks: list[Tensor] = []
    node: Any = out.grad_fn
    while node is not None and not masks:
        masks = [x for x in getattr(node, "saved_tensors", ()) if x is not None and x.shape[-1] == 12 and x.dim() == 4]
        node = node.next_functions[0][0] if node.next_functions else None
    assert [x.numel() for x in masks if x.shape[-2] == 9] == [bias.numel()]


def test_chunks_change_nothing(seed: int) -> None:
    inputs = operands(2, 2)
    for is_causal in (False, True):
        whole = flash_attention(*inputs, is_causal, 0.3)
        assert torch.equal(mps_flash_attn.flash_attention_chunked(*inputs, 4, is_causal, 0.3), whole)
    compare(mps_flash_attn.flash_attention_chunked(*inputs), formula(*inputs), inputs)


def decoded(stored: Tensor, scale: Tensor, quant_type: int) -> Tensor:
    """The numbers that bytes stand for, from the documentation."""
    if quant_type == mps_flash_attn.QUANT_NF4:
        values = torch.tensor(NF4, dtype=torch.float64)
        numbers = torch.stack((values[(stored & 15).long()], values[(stored >> 4).long()]), -1).flatten(-2)
    elif quant_type == mps_flash_attn.QUANT_INT8:
        numbers = stored.double() - 128
    else:
        e5m2 = quant_type == mps_flash_attn.QUANT_FP8_E5M2
        numbers = stored.view(torch.float8_e5m2 if e5m2 else torch.float8_e4m3fn).double()
    return numbers * scale.double()[..., None, None]


QUANTIZED: dict[str, tuple[int, Callable[..., Any], Callable[..., Tensor], dict[str, bool], float]] = {
    "e4m3": (3, mps_flash_attn.quantize_kv_fp8, mps_flash_attn.flash_attention_fp8, {"use_e5m2": False}, 1 / 16),
    "e5m2": (4, mps_flash_attn.quantize_kv_fp8, mps_flash_attn.flash_attention_fp8, {"use_e5m2": True}, 1 / 8),
    "int8": (5, mps_flash_attn.quantize_kv_int8, mps_flash_attn.flash_attention_int8, {}, 1 / 254),
    "nf4": (6, mps_flash_attn.quantize_kv_nf4, mps_flash_attn.flash_attention_nf4, {}, 0.152),
}


@pytest.mark.parametrize("columns", [8, 130])
@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_keys_and_values(name: str, columns: int, seed: int) -> None:
    quant_type, quantize, attend, options, error = QUANTIZED[name]
    query, key, value = (torch.randn(2, h, n, columns, dtype=torch.float64) for h, n in ((4, 9), (2, 12), (2, 12)))
    key[1, 0] = 0
    stored_key, stored_value, k_scale, v_scale = quantize(key, value, **options)
    width = columns // 2 if name == "nf4" else columns
    numbers = []
    for x, stored, scale in ((key, stored_key, k_scale), (value, stored_value, v_scale)):
        assert (stored.dtype, stored.shape, scale.dtype, scale.shape) == (
            torch.uint8, (2, 2, 12, width), torch.float32, (2, 2),
        )  # fmt: skip
        numbers.append(decoded(stored, scale, quant_type))
        assert ((numbers[-1] - x).abs().amax((2, 3)) <= 1.001 * error * x.abs().amax((2, 3))).all()
    mask = torch.rand(2, 1, 9, 12) < 0.3
    arguments: dict[str, Any] = {"is_causal": True, "attn_mask": mask, "window_size": 5, "scale": 0.2}
    expected = formula(query, *numbers, True, 0.2, mask, 5)
    quantized = (stored_key, stored_value, k_scale, v_scale)
    assert torch.allclose(attend(query, *quantized, **arguments, **options), expected, **EXACT)
    general = mps_flash_attn.flash_attention_quantized(query, *quantized, quant_type, **arguments)
    assert torch.allclose(general, expected, **EXACT)
    if not any(options.values()):  # a scale for each head, the same in all batches
        one = (stored_key[:1], stored_value[:1], k_scale[0], v_scale[0])
        found = attend(query[:1], *one)
        assert torch.allclose(found, formula(query[:1], *(x[:1] for x in numbers)), **EXACT)


@pytest.mark.usefixtures("fresh_compiler")
def test_custom_operators(seed: int) -> None:
    assert mps_flash_attn.register_custom_op() is True
    assert mps_flash_attn.register_custom_op() is True
    inputs = operands(1, 2)
    hidden = torch.rand(1, 1, 9, 12) < 0.3
    expected = formula(*inputs, True, 0.3, hidden, 4)
    compare(torch.ops.mfa.flash_attention(*inputs, True, 0.3, hidden, 4), expected, inputs)
    plain = formula(*inputs)
    assert torch.allclose(torch.ops.mfa.flash_attention(*inputs, False, None, None), plain, **EXACT)
    compiled = torch.compile(
        lambda q, k, v: torch.ops.mfa.forward(q, k, v, False, None, 0), fullgraph=True, backend="aot_eager"
    )
    compare(compiled(*inputs), plain, inputs)


def test_replace_sdpa_patches_mps() -> None:
    try:
        mps_flash_attn.replace_sdpa()
        assert set(sys.modules["mps_flash_attn.patch"]._overrides) == {"mps"}
    finally:
        mps_flash_attn.unpatch()


def test_availability_is_an_apple_gpus() -> None:
    assert mps_flash_attn.is_available() == torch.backends.mps.is_available()


def test_precompiled_kernels_are_found_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_FLASH_ATTN_CACHE_DIR", str(tmp_path))
    folder = cache_folder("simulator")
    assert folder.is_relative_to(tmp_path)
    simulator.compile_shader("kernel void f(device float* x) { x[0] = 1; }")
    tune.path().write_text("{}")
    assert list(folder.glob("*.so"))
    mps_flash_attn.clear_cache()
    assert not list(folder.glob("*.so"))
    assert tune.path().read_text() == "{}"


def test_precompile_asks_for_the_kernels_of_later_calls(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    texts: set[str] = set()
    compile_shader = simulator.compile_shader
    monkeypatch.setattr(simulator, "compile_shader", lambda text: texts.add(text) or compile_shader(text))
    from mps_flash_attn.ops import calls

    calls.forget()
    mps_flash_attn.precompile("cpu", [torch.float32], [32])
    prepared = set(texts)
    assert len(prepared) >= 8
    for length in (48, 80):
        q, k, v = (torch.randn(2, 3, length, 32, requires_grad=True) for _ in range(3))
        for is_causal in (False, True):
            mps_flash_attn.flash_attention(q, k, v, is_causal=is_causal).sum().backward()
    assert texts == prepared


def test_precompile_says_what_is_missing() -> None:
    if not mps_flash_attn.is_available():
        with pytest.raises(RuntimeError, match="device is 'mps', for which no runtime can be used here"):
            mps_flash_attn.precompile()
    with pytest.raises(ValueError, match="device is 'xpu'; accepted are"):
        mps_flash_attn.precompile("xpu")


X = torch.zeros(2, 4, 9, 8)
B = torch.zeros(2, 4, 9, 9)
U, S = X.to(torch.uint8), torch.ones(2, 4)
with_bias = compatibility.flash_attention_with_bias
quantized = functools.partial(compatibility.flash_attention_quantized, X)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: flash_attention(X, X, X, scale=-1.0), ValueError, "scale is -1.0; accepted are positive"),
        (lambda: flash_attention(X, X, X, scale=0), ValueError, "scale is 0; accepted are positive"),
        (lambda: flash_attention(X, X, X, scale="1"), TypeError, "scale is a str"),
        (lambda: flash_attention(X, X, X, window_size=-1), ValueError, "window_size is -1; accepted are 0 and more"),
        (lambda: flash_attention(X, X, X, window_size=(1, 0)), TypeError, "window_size is a tuple; accepted is an int"),
        (lambda: flash_attention(X, X, X, attn_mask=B.bool()[..., 1:]), ValueError, "attn_mask has shape [2, 4, 9, 8]"),
        (lambda: flash_attention(X, X[:, :3], X[:, :3]), ValueError, "query has 4 heads and key 3"),
        (lambda: with_bias(X, X, X, None), TypeError, "attn_bias is a NoneType; accepted is a Tensor"),
        (lambda: with_bias(X, X, X, B.bool()), TypeError, "attn_bias has dtype torch.bool"),
        (lambda: with_bias(X, X, X, B[0, 0]), ValueError, "attn_bias has shape [9, 9]; accepted is [B, Hq, Lq, Lk]"),
        (lambda: with_bias(X[0], X, X, B), ValueError, "query has shape [4, 9, 8]; accepted is [B, H, L, D]"),
        (lambda: with_bias(X, X[:1], X, B), ValueError, "key has shape [1, 4, 9, 8]; accepted is [B, H, L, D] with"),
        (lambda: with_bias(X, X, X, B, scale=0.0), ValueError, "scale is 0.0; accepted are positive"),
        (lambda: with_bias(X, X, X, B, bias_repeat_count=-1), ValueError, "bias_repeat_count is -1; accepted are 0"),
        (lambda: with_bias(X, X, X, B, bias_repeat_count=3), ValueError, "bias_repeat_count is 3 and attn_bias has"),
        (lambda: with_bias(X, X, X, B[:, :3]), ValueError, "attn_mask has shape [2, 3, 9, 9]; accepted is what"),
        (lambda: compatibility.flash_attention_chunked(X, X, X, 0), ValueError, "chunk_size is 0; accepted are 1"),
        (lambda: compatibility.flash_attention_chunked(X, X, X, 1.5), TypeError, "chunk_size is a float"),
        (lambda: quantized(U, U, S, S, 7), ValueError, "quant_type is 7; accepted are 3, 4, 5, 6"),
        (lambda: quantized(X, X, S, S, 5), TypeError, "key has dtype torch.float32; accepted are uint8"),
        (lambda: quantized(U[0], U, S, S, 3), ValueError, "key has shape [4, 9, 8]; accepted is [B, Hkv, Lk, D]"),
        (lambda: quantized(U, U, S.double(), S, 3), TypeError, "k_scale has dtype torch.float64; accepted are float32"),
        (lambda: quantized(U, U, S, S[:, 1:], 3), ValueError, "v_scale has shape [2, 3]; accepted are [2, 4] and [4]"),
        (lambda: quantized(U, U, S, S, 6), ValueError, "query has shape [2, 4, 9, 8]; accepted is [2, Hq, Lq, 16]"),
        (lambda: quantized(U, U, S, S, 3, window_size=-1), ValueError, "window_size is -1"),
        (lambda: compatibility.quantize_kv_nf4(X[..., 1:], X), ValueError, "accepted is [B, H, L, D] with an even D"),
        (lambda: compatibility.quantize_kv_int8(X, X[0]), ValueError, "value has shape [4, 9, 8]; accepted is"),
        (lambda: compatibility.quantize_kv_fp8(X, [1]), TypeError, "value is a list; accepted is a Tensor"),
        (
            lambda: compatibility.quantize_kv_nf4(X.clone().requires_grad_(), X),
            mps_flash_attn.UnsupportedError,
            "key requires grad and quantization has no gradient",
        ),
        (lambda: compatibility.convert_mask(torch.ones(2, dtype=torch.int32)), TypeError, "attn_mask has dtype"),
        (lambda: compatibility.convert_mask([True]), TypeError, "attn_mask is a list; accepted is a Tensor"),
    ],
)
def test_bad_arguments_are_named(
    call: Callable[[], object], error: type[Exception], words: str, assert_refused: Callable[..., None]
) -> None:
    assert_refused(call, error, words)
