"""Quantized keys and values: nearest numbers, bounds of their error, PyTorch's own fp8, layouts, bad arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from mps_flash_attn import QuantizedKV, UnsupportedError, quantize_kv
from mps_flash_attn.ops.quantize import reference
from mps_flash_attn.ops.quantize.cases import Case
from mps_flash_attn.ops.quantize.formats import FORMATS
from mps_flash_attn.ops.quantize.function import dequantize, quantize
from mps_flash_attn.runtime import simulator
from tests.tolerance import assert_accurate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPSILON = torch.finfo(torch.float32).eps


def check(case: Case, dtype: torch.dtype) -> None:
    """Scales are those of the largest magnitudes, numbers the nearest ones, and values their products."""
    x, of, columns = case.input(dtype), case.of, case.columns
    stored, scale = quantize(x, case.format, case.group_size)
    assert stored.shape == (*case.shape, of.row_bytes(columns))
    exact = reference.quantize(x.double(), of, case.group_size)[1]
    assert scale.shape == exact.shape
    assert ((scale - exact).abs() <= 2 * EPSILON * exact).all()

    each = scale.double().repeat_interleave(case.group_size if of.in_groups else columns, -1)[..., :columns]
    codes = reference.unpack(stored, of, columns).long()
    over_scale, numbers = x.double() / each, reference.numbers(of)
    assert numbers[codes].isfinite().all()
    nearest = (over_scale.unsqueeze(-1) - numbers.nan_to_num(nan=torch.inf)).abs().amin(-1)
    assert ((over_scale - numbers[codes]).abs() <= nearest + 2 * EPSILON * over_scale.abs()).all()

    values = dequantize(stored, scale, case.format, case.group_size, columns, dtype)
    exact = reference.dequantize(stored, scale.double(), of, case.group_size, columns)
    assert_accurate(f"values of {case}", values, exact.to(dtype), exact)
    largest = each * of.largest
    assert ((x.double() - exact).abs() <= bound(case.format, x.double(), largest) + 4 * EPSILON * largest).all()


def bound(name: str, x: Tensor, largest: Tensor) -> Tensor:
    """The error that the README allows."""
    if name.startswith("fp8"):
        relative, absolute = {"fp8_e4m3": (16, 2**18), "fp8_e5m2": (8, 2**32)}[name]
        return torch.maximum(x.abs() / relative, largest / absolute)
    return largest * {"int8": 1 / 254, "int4": 1 / 14, "nf4": 0.152}[name]


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, seed: int) -> None:
    check(Case((3, 20), 48, name), torch.float16)
    check(Case((2, 2, 5), 17, name, 16, "sliced"), torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype, seed: int) -> None:
    for name in ("fp8_e4m3", "int4"):
        check(Case((7,), 48, name), dtype)


@given(
    st.builds(
        Case,
        shape=st.lists(st.integers(0, 5), max_size=4).map(tuple),
        columns=st.sampled_from((1, 17, 48)),
        format=st.sampled_from(("int8", "nf4")),
        group_size=st.just(16),
        layout=st.sampled_from(("contiguous", "transposed", "sliced", "expanded")),
    ).filter(lambda case: case.layout != "expanded" or (case.shape and case.shape[0])),
    st.integers(0, 2**31),
)
def test_combinations(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    check(case, torch.bfloat16)


@pytest.mark.parametrize(
    "case", [Case((3,), 1024, "int8"), Case((3,), 576, "int8"), Case((3,), 200, "int4", 128)], ids=str
)
def test_long_rows(case: Case, seed: int) -> None:
    check(case, torch.float32)


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_fp8_is_that_of_pytorch(name: str) -> None:
    """Every float16 that is no larger than the largest number, at the scale 1; and the way back of every byte."""
    of = FORMATS[name]
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    within = every[every.abs() <= of.largest]
    rows = torch.nn.functional.pad(within, (0, -len(within) % 47)).view(-1, 47)
    rows = torch.cat([torch.full_like(rows[:, :1], of.largest), rows], -1)
    stored, scale = quantize(rows, name, 32)
    assert (scale == 1).all()
    assert torch.equal(stored, rows.to(of.dtype).view(torch.uint8))
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256)
    values = dequantize(codes, torch.ones(1, 1), name, 32, 256, torch.float32)
    expected = codes.view(of.dtype).float()
    assert torch.equal(values.isnan(), expected.isnan())
    assert torch.equal(values.nan_to_num(7.0).view(torch.int32), expected.nan_to_num(7.0).view(torch.int32))


def test_nf4_numbers_are_quantiles_of_a_normal_distribution() -> None:
    """As section 3 of the paper makes them: eight above 0, seven below it and 0, over the largest."""
    offset = 1 - (1 / 32 + 1 / 30) / 2

    def quantiles(count: int) -> Tensor:
        return torch.special.ndtri(torch.linspace(offset, 0.5, count + 1, dtype=torch.float64))[:-1]

    numbers = torch.cat([quantiles(8), -quantiles(7), torch.zeros(1)]).sort().values
    numbers = numbers / numbers.max()
    assert (numbers - torch.tensor(reference.NF4, dtype=torch.float64)).abs().max() <= 1e-6


@pytest.mark.parametrize("name", FORMATS)
def test_rows_without_a_scale(name: str, seed: int) -> None:
    """Zeros and what is too small stay 0; what is no number is seen; neighbours are not touched."""
    x = torch.randn(6, 48)
    x[1] = 0
    x[2, 5] = torch.nan
    x[3, 40] = -torch.inf
    x[4] = 1e-38
    x[5] = 3.4e38
    stored, scale = quantize(x, name, 32)
    values = dequantize(stored, scale, name, 32, 48, torch.float32)
    whole = not FORMATS[name].in_groups
    assert (scale[1] == 0).all()
    assert (values[1] == 0).all()
    assert (reference.numbers(FORMATS[name])[reference.unpack(stored, FORMATS[name], 48)[1:2].long()] == 0).all()
    assert values[2, : 48 if whole else 32].isnan().all()
    assert values[3, 0 if whole else 32 :].isnan().all()
    assert whole or values[2, 32:].isfinite().all()
    assert whole or values[3, :32].isfinite().all()
    assert (values[4] - x[4]).abs().max() <= 1e-38
    assert (values[5] - x[5]).abs().max() <= 1e-5 * 3.4e38
    assert values[0].isfinite().all()


def test_rows_of_more_elements_than_32_bits_count(tmp_path: Path, seed: int) -> None:
    """4 GiB apart in a sparse file of which hardly any is touched."""
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=3 * 2**31, dtype=torch.half)
    x = torch.randn(3, 48).half()
    near = quantize(x, "int8", 32)
    for found, expected in zip(quantize(spread(memory, x), "int8", 32), near, strict=True):
        assert torch.equal(found, expected)
    far = spread(memory.view(torch.uint8)[2**30 :], near[0]), spread(memory.view(torch.float32), near[1])
    found, expected = (dequantize(*tensors, "int8", 32, 48, torch.float16) for tensors in (far, near))
    assert torch.equal(found, expected)


def spread(memory: Tensor, rows: Tensor) -> Tensor:
    """The rows far apart in that memory."""
    return memory.as_strided(rows.shape, (memory.numel() // 3, 1), memory.storage_offset()).copy_(rows)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_same_bits_for_every_layout(name: str, layout: Any, seed: int) -> None:
    x = Case((3, 4, 5), 48, name, 32, layout).input(torch.float16)
    for found, expected in zip(quantize(x, name, 32), quantize(x.contiguous(), name, 32), strict=True):
        assert torch.equal(found, expected)


def test_tokens_may_come_one_by_one(seed: int) -> None:
    """A cache that is filled and read in slices holds the same bits."""
    key, value = torch.randn(2, 3, 7, 48).half(), torch.randn(2, 3, 7, 17).half()
    whole = quantize_kv(key, value, "nf4", group_size=16)
    for i in range(7):
        one = quantize_kv(key[:, :, i : i + 1], value[:, :, i : i + 1], "nf4", group_size=16)
        for name in ("key", "value", "key_scale", "value_scale"):
            assert torch.equal(getattr(one, name), getattr(whole, name)[:, :, i : i + 1])
    part = dataclasses.replace(
        whole, **{name: getattr(whole, name)[:, 1:, 2:5] for name in ("key", "value", "key_scale", "value_scale")}
    )
    for found, expected in zip(part.dequantize(), whole.dequantize(), strict=True):
        assert torch.equal(found, expected[:, 1:, 2:5])


@pytest.mark.parametrize("name", FORMATS)
def test_faces(name: Any, seed: int) -> None:
    key, value = torch.randn(2, 3, 5, 48).half(), torch.randn(2, 3, 5, 17).half()
    quantized = quantize_kv(key, value, name, group_size=16)
    of = FORMATS[name]
    assert quantized.shape == (2, 3, 5, 48)
    assert quantized.key.dtype == quantized.value.dtype == of.dtype
    assert quantized.value_scale.shape == (2, 3, 5, of.groups(17, 16))
    found_key, found_value = quantized.dequantize()
    assert (found_key.shape, found_key.dtype) == (key.shape, key.dtype)
    assert (found_value.shape, found_value.dtype) == (value.shape, value.dtype)
    assert (found_key - key).abs().max() <= 0.16 * key.abs().max()
    with pytest.raises(dataclasses.FrozenInstanceError):
        quantized.key = key  # type: ignore[misc]


def test_bytes_stand_for_numbers_where_pytorch_has_no_float8(seed: int) -> None:
    key = torch.randn(1, 2, 3, 48)
    quantized = quantize_kv(key, key, "fp8_e4m3")
    as_bytes = dataclasses.replace(quantized, key=quantized.key.view(torch.uint8))
    assert torch.equal(as_bytes.dequantize()[0], quantized.dequantize()[0])
    on_gpu = {name: of.dtype_on(torch.device("mps")) for name, of in FORMATS.items()}
    assert on_gpu.pop("int8") == torch.int8
    assert set(on_gpu.values()) == {torch.uint8}


def test_empty_tensors() -> None:
    for shape in ((0, 3, 5, 8), (2, 3, 0, 8)):
        empty = torch.empty(shape)
        for found in quantize_kv(empty, empty[..., :3], "int4").dequantize():
            assert found.shape[:3] == shape[:3]


@pytest.mark.parametrize("name", ["fp8_e5m2", "nf4"])
def test_operators_keep_pytorchs_rules(name: str, seed: int) -> None:
    for layout in ("contiguous", "transposed"):
        x = Case((2, 3), 17, name, 16, layout).input(torch.float16)  # type: ignore[arg-type]
        torch.library.opcheck(torch.ops.mps_flash_attn.quantize.default, (x, name, 16))
    stored, scale = quantize(x, name, 16)
    torch.library.opcheck(torch.ops.mps_flash_attn.dequantize.default, (stored, scale, name, 16, 17, torch.float16))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool, seed: int) -> None:
    def cycle(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return quantize_kv(key, value, "fp8_e4m3").dequantize()

    compiled_cycle = torch.compile(cycle, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    compiled = torch.compile(quantize_kv, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (5, 9):
        key, value = torch.randn(2, 2, 3, length, 48).half().unbind()
        for found, expected in zip(compiled_cycle(key, value), cycle(key, value), strict=True):
            assert torch.equal(found, expected)
        quantized = compiled(key, value, "int8")
        assert isinstance(quantized, QuantizedKV)
        assert torch.equal(quantized.key, quantize_kv(key, value).key)


def test_vmap_is_one_launch_a_kernel(seed: int) -> None:
    key, value = torch.randn(3, 2, 3, 5, 48).half(), torch.randn(2, 3, 5, 17).half()

    def cycle(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return quantize_kv(key, value, "int8").dequantize()

    mapped = key, value[None].expand(3, *value.shape)
    with simulator.profile() as counts:
        found = torch.vmap(cycle, (0, None))(key, value)
    assert len(counts.launches) == 4
    for parts, whole in zip(zip(*map(cycle, *mapped), strict=True), found, strict=True):
        assert torch.equal(torch.stack(parts), whole)


def test_gradients_are_refused_not_lost(seed: int) -> None:
    key, value = torch.randn(2, 1, 2, 3, 8).unbind()
    for name in ("key", "value"):
        tensors = {"key": key, "value": value, name: torch.zeros(1, 2, 3, 8, requires_grad=True)}
        with pytest.raises(UnsupportedError, match=f"{name} requires grad and quantization has no gradient"):
            quantize_kv(**tensors)
        with torch.no_grad():
            quantize_kv(**tensors)
        with torch.inference_mode():
            quantize_kv(**tensors)
    with pytest.raises(UnsupportedError, match="forward-mode"), forward_ad.dual_level():
        quantize_kv(key, value)


X = torch.zeros(1, 2, 3, 8)
GOOD = QuantizedKV(X.to(torch.int8), X.to(torch.int8), X[..., :1], X[..., :1], "int8", 32, 8, 8, torch.float16)


def changed(**attributes: object) -> Callable[[], object]:
    return lambda: dataclasses.replace(GOOD, **attributes).dequantize()  # type: ignore[arg-type]


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "key type": (lambda: quantize_kv([0.0], X), TypeError, "key is a list; accepted is a Tensor"),  # type: ignore[arg-type]
    "key dtype": (lambda: quantize_kv(X.int(), X), TypeError, "key has dtype torch.int32; accepted are float32"),
    "key rank": (lambda: quantize_kv(X[0], X), ValueError, "key has shape (2, 3, 8); accepted are [B, Hkv, L, D]"),
    "no columns": (lambda: quantize_kv(X, X[..., :0]), ValueError, "value has shape (1, 2, 3, 0); accepted are"),
    "long rows": (
        lambda: quantize_kv(X, X[..., :1].expand(1, 2, 3, 1025)),
        UnsupportedError,
        "value has shape (1, 2, 3, 1025); accepted is D up to 1024",
    ),
    "value dtype": (lambda: quantize_kv(X, X.half()), TypeError, "value has dtype torch.float16 and key torch.float32"),
    "value device": (lambda: quantize_kv(X, X.to("meta")), ValueError, "value is on meta and key on cpu"),
    "value shape": (lambda: quantize_kv(X, X[:, :1]), ValueError, "value has shape (1, 1, 3, 8); accepted is [B, Hkv"),
    "format": (lambda: quantize_kv(X, X, "int3"), ValueError, "format is 'int3'; accepted are 'int8', 'fp8_e4m3'"),  # type: ignore[arg-type]
    "format type": (lambda: quantize_kv(X, X, 8), TypeError, "format is a int; accepted is a str"),  # type: ignore[arg-type]
    "group_size": (lambda: quantize_kv(X, X, group_size=48), ValueError, "group_size is 48; accepted are 16, 32, 64"),
    "group_size type": (lambda: quantize_kv(X, X, group_size=32.0), TypeError, "group_size is a float; accepted"),  # type: ignore[arg-type]
    "stored dtype": (
        changed(key=X.half()),
        TypeError,
        "key has dtype torch.float16; accepted are torch.int8 and uint8",
    ),
    "stored rank": (changed(key=X[0].to(torch.int8)), ValueError, "key has shape (2, 3, 8); accepted are four"),
    "stored shape": (changed(value_head_size=9), ValueError, "value has shape (1, 2, 3, 8); accepted is [B, Hkv, L]"),
    "stored device": (changed(value=GOOD.value.to("meta")), ValueError, "value is on meta and key on cpu"),
    "scale dtype": (changed(key_scale=X[..., :1].half()), TypeError, "key_scale has dtype torch.float16; accepted"),
    "scale shape": (changed(value_scale=X), ValueError, "value_scale has shape (1, 2, 3, 8); accepted is"),
    "its format": (changed(format="fp8"), ValueError, "format is 'fp8'; accepted are"),
    "its dtype": (changed(dtype=torch.int8), TypeError, "dtype is torch.int8; accepted are torch.float32"),
    "operator's input": (lambda: quantize(X[..., :0], "int8", 32), ValueError, "input has shape (1, 2, 3, 0)"),
    "operator's format": (lambda: quantize(X, "int3", 32), ValueError, "format is 'int3'; accepted are"),
    "operator's group": (lambda: quantize(X, "nf4", 24), ValueError, "group_size is 24; accepted are"),
    "operator's bytes": (
        lambda: dequantize(X.to(torch.uint8), X[..., :1], "int8", 32, 9, torch.float16),
        ValueError,
        "stored has shape (1, 2, 3, 8); accepted for 9 columns of int8 are [..., 9]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(assert_refused: Callable[..., None], name: str) -> None:
    assert_refused(*BAD[name])


@pytest.mark.parametrize("name", ["fp8_e4m3", "int4"])
def test_no_finding(name: str, seed: int) -> None:
    with simulator.check():
        check(Case((3, 7), 48, name), torch.float16)
        check(Case((2, 5), 17, name, 16, "sliced"), torch.float32)


def test_each_element_is_read_once(seed: int) -> None:
    x = torch.randn(20, 48).half()
    quantize(x, "int4", 32)
    with simulator.profile() as counts:
        quantize(x, "int4", 32)
    (record,) = counts.launches
    assert record.counters.device_bytes_read == 2 * x.numel()
    assert record.counters.device_bytes_written == x.numel() // 2 + 4 * 2 * 20


def test_a_scale_is_read_once_for_a_pack(seed: int) -> None:
    stored, scale = quantize(torch.randn(20, 48), "int8", 32)
    dequantize(stored, scale, "int8", 32, 48, torch.float16)
    with simulator.profile() as counts:
        dequantize(stored, scale, "int8", 32, 48, torch.float16)
    assert counts.launches[0].counters.device_bytes_read == stored.numel() + 4 * (stored.numel() // 8)
