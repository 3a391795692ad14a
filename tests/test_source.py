"""Kernel text: includes in place once each, defines in front, lines of the files kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from mps_flash_attn import source


def test_every_include_once() -> None:
    for path in source.kernel_files():
        text = source.flatten(path)
        assert '#include "' not in text
        assert text.count("constant constexpr short TILE = ") <= 1
        assert text.count("#include <metal_stdlib>") == 1


def test_lines_name_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_PACKAGE", tmp_path)
    (tmp_path / "a.h").write_text("#pragma once\nint a;\n")
    (tmp_path / "k.metal").write_text('// one\n#include "a.h"\nint k;\n#include "a.h"\nint last;\n')
    lines = source.flatten.__wrapped__("k.metal").splitlines()
    assert lines == [
        '#line 1 "k.metal"', "// one", '#line 1 "a.h"', "", "int a;", '#line 3 "k.metal"', "int k;", "", "int last;",
    ]  # fmt: skip


def test_defines_come_first() -> None:
    path = source.kernel_files()[0]
    assert source.specialise(path, (("BQ", 64), ("ELEMENT", "half"))).startswith(
        "#define BQ 64\n#define ELEMENT half\n#line 1"
    )
