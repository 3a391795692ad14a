"""The extension of the runtime ``metal`` against PyTorch's own headers and libraries for macOS."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import link_proof

RELEASES = (link_proof.OLDEST, link_proof.NEWEST)


@pytest.mark.parametrize("version", RELEASES)
def test_every_symbol_is_in_pytorchs_libraries(version: str, tmp_path: Path) -> None:
    made = link_proof.compile_source(link_proof.SOURCE, version, tmp_path)
    assert link_proof.unresolved(made, version) == set()
    bundle = tmp_path / "_metal.so"
    link_proof.link(made, version, bundle)
    assert bundle.read_bytes()[:4] == b"\xcf\xfa\xed\xfe"  # a 64-bit Mach-O file


def test_a_symbol_that_pytorch_lacks_is_found(tmp_path: Path) -> None:
    source = tmp_path / "planted.mm"
    source.write_text(
        """
#include <ATen/mps/MPSStream.h>
#include <Foundation/Foundation.h>
namespace at::mps { MPSStream* getPlantedStream(); }
extern "C" void mfa_planted();
extern "C" void planted(id object) {
    at::mps::getPlantedStream()->commandEncoder();
    at::mps::getCurrentMPSStream()->commandEncoder();
    mfa_planted();
    [static_cast<id<MTLCommandQueue>>(object) device];
}
"""
    )
    made = link_proof.compile_source(source, link_proof.NEWEST, tmp_path)
    missing = link_proof.unresolved(made, link_proof.NEWEST)
    assert missing == {"__ZN2at3mps16getPlantedStreamEv", "_mfa_planted", "_objc_msgSend"}
