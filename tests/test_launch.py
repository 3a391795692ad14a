"""The params struct: read from the header that declares it, packed to the byte."""

from __future__ import annotations

import struct

import pytest

from mps_flash_attn import source
from mps_flash_attn.launch import MAX_PARAM_BYTES, ParamStruct

HEADER, NAME = "ops/attention/args.h", "AttentionArgs"


def values(layout: ParamStruct) -> dict[str, object]:
    return {
        name: 0.375 if kind == "accum" else tuple(range(count)) if count > 1 else -5
        for name, kind, count in layout.fields
    }


def test_layout_is_the_headers() -> None:
    layout = ParamStruct.read(HEADER, NAME)
    assert layout.fields[0] == ("q_stride", "long", 3)
    assert layout.fields[-1] == ("scale", "accum", 1)
    assert ("mask_stride", "long", 4) in layout.fields
    assert layout.size <= MAX_PARAM_BYTES  # a static_assert in the header has compilers compare it


@pytest.mark.parametrize(("accumulator", "code"), [("float", "<f4x"), ("double", "<d")])
def test_pack(accumulator: str, code: str) -> None:
    layout = ParamStruct.read(HEADER, NAME)
    words = layout.pack(values(layout), accumulator)  # type: ignore[arg-type]
    packed = struct.pack(f"<{len(words)}q", *words)
    assert len(packed) == layout.size
    assert words[:3] == (0, 1, 2)
    assert packed[-8:] == struct.pack(code, 0.375)


def test_missing_and_unknown_fields_are_refused() -> None:
    layout = ParamStruct.read(HEADER, NAME)
    complete = values(layout)
    with pytest.raises(ValueError, match="the struct has"):
        layout.pack({**complete, "colour": 1}, "float")  # type: ignore[dict-item]
    complete.pop("scale")
    with pytest.raises(ValueError, match="the struct has"):
        layout.pack(complete, "float")  # type: ignore[arg-type]


def test_arrays_of_other_lengths_are_refused() -> None:
    layout = ParamStruct.read(HEADER, NAME)
    other = {**values(layout), "q_stride": (1, 2), "k_stride": (1, 2, 3, 4)}  # as many numbers in all
    with pytest.raises(ValueError, match="q_stride has 2 numbers, the struct's field 3"):
        layout.pack(other, "float")  # type: ignore[arg-type]


def test_a_field_that_is_not_8_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "flatten", lambda path: "struct Odd { long a; int b; };")
    with pytest.raises(ValueError, match="'int b' is not a field of 8 bytes"):
        ParamStruct.read("odd.h", "Odd")
    with pytest.raises(LookupError, match="declares no struct Even"):
        ParamStruct.read("odd.h", "Even")
