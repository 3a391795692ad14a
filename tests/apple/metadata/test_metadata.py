"""The stand-in for Metal declares what Apple declares; each kind of difference is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import comparison, declared, published

RUNTIME = Path(__file__).parents[3] / "swift/Sources/MetalRuntime"

#: A change of the stand-in's text, and what has to be said about it.
PLANTED = {
    "name": ("func endEncoding()", "func endCoding()", "no message endCoding to MTLComputeCommandEncoder"),
    "order": ("length: Int, index: Int)", "index: Int, length: Int)", "no message setBytes:index:length:"),
    "argument's type": (
        "dispatchThreads(_ threadsPerGrid: MTLSize",
        "dispatchThreads(_ threadsPerGrid: Int",
        "MTLComputeCommandEncoder.dispatchThreads(_:threadsPerThreadgroup:): dispatchThreads:threadsPerThreadgroup: "
        "has the types void, Size, Size",
    ),
    "result's type": (
        "-> UnsafeMutableRawPointer\n",
        "-> Int\n",
        "MTLBuffer.contents(): contents has the types void*",
    ),
    "property's type": ("maxBufferLength: Int", "maxBufferLength: Bool", "maxBufferLength has the types NS::UInteger"),
    "error": (
        "options: MTLCompileOptions?) throws ->",
        "options: MTLCompileOptions?) ->",
        "newLibraryWithSource:options:error: has the types Library*, NS::String*, CompileOptions*, NS::Error**",
    ),
    "setter": ("var label: String? { get }", "var label: String? { get set }", "no message setLabel: to MTLComputeP"),
    "value": ("(rawValue: 4)", "(rawValue: 8)", "MTLPipelineOption.failOnBinaryArchiveMiss: is 4; declared here: 8"),
    "case": ("case apple9 =", "case appel9 =", "MTLGPUFamily.appel9: no such value"),
    "raw type": ("MTLGPUFamily: Int {", "MTLGPUFamily: UInt {", "MTLGPUFamily: its values are NS::Integer"),
    "enumeration": ("enum MTLMathMode:", "enum MTLMathsMode:", "MTLMathsMode: no such enumeration"),
    "field": (
        "public var width: Int\n    public var height: Int",
        "public var height: Int\n    public var width: Int",
        "MTLSize: its fields are",
    ),
    "field's type": ("public var depth: Int", "public var depth: Bool", "MTLSize.depth: is NS::UInteger"),
    "constant": ("let MTLLibraryErrorDomain", "let MTLLibraryErrorRealm", "MTLLibraryErrorRealm: no such constant"),
}


def mismatches(text: str) -> list[str]:
    return comparison.mismatches(declared.parse(text))


def test_apples_declarations_are_read_whole() -> None:
    assert len(published.methods()) > 1500
    assert len(published.enumerations()) > 100
    assert len(published.constants()) > 900
    assert len(published.encodings()) == 58
    assert sum(map(len, published.encodings().values())) == 661


def test_the_stand_in_declares_what_apple_declares() -> None:
    declarations = declared.parse(declared.read())
    assert len(declarations.functions) > 20
    assert len(declarations.properties) > 20
    assert len(declarations.enumerations) > 10
    assert comparison.mismatches(declarations) == []


@pytest.mark.parametrize(("old", "new", "complaint"), PLANTED.values(), ids=PLANTED.keys())
def test_a_difference_is_found(old: str, new: str, complaint: str) -> None:
    text = declared.read()
    assert text.count(old) >= 1
    assert any(complaint in found for found in mismatches(text.replace(old, new))), mismatches(text.replace(old, new))


def test_a_difference_from_the_compiled_protocols_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    selector = "setBytes:length:atIndex:"
    encodings = published.encodings()
    encoder = encodings["MTLComputeCommandEncoder"]
    assert encoder[selector] == "v40@0:8r^v16Q24Q32"
    changed = {**encodings, "MTLComputeCommandEncoder": {**encoder, selector: "v40@0:8r^v16Q24i32"}}
    monkeypatch.setattr(published, "encodings", lambda: changed)
    (found,) = mismatches(declared.read())
    assert f"{selector} has the types v, ^v, Q, i" in found


def test_a_form_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'subscript.*' is in no form that is read here"):
        declared.parse(declared.read().replace("func endEncoding()", "subscript(index: Int) -> Int { get }"))


def test_every_pair_of_names_is_in_use() -> None:
    functions = {function.full_name for function in declared.parse(declared.read()).functions}
    assert comparison.SELECTORS.keys() <= functions


def test_the_runtime_calls_nothing_behind_the_stand_ins_back() -> None:
    """All that the Swift runtime takes from Apple is compiled here: the one condition that it has holds here too."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(RUNTIME.glob("*.swift")))
    assert set(re.findall(r"^import (\w+)", text, re.MULTILINE)) <= {"CMFA", "Foundation", "IOKit", "Metal"}
    assert set(re.findall(r"#(?:if|else) ?(\S*)", text)) == {"compiler(>=6.0)"}
