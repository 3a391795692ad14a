"""Compares the stand-in's declarations with what Apple publishes.

The names that Swift gives to Metal's methods are published nowhere in a form that a program can read: `SELECTORS` pairs
them by hand with the messages that they send. That those exist, with the same types, is what is compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import published
from .declared import Declarations, Enumeration, Function, Property

__all__ = ["SELECTORS", "mismatches"]

#: The selector of each method whose Swift name is not the selector with its colons in other places.
SELECTORS = {
    "MTLDevice.makeCommandQueue()": "newCommandQueue",
    "MTLDevice.makeBuffer(length:options:)": "newBufferWithLength:options:",
    "MTLDevice.makeLibrary(source:options:)": "newLibraryWithSource:options:error:",
    "MTLDevice.makeBinaryArchive(descriptor:)": "newBinaryArchiveWithDescriptor:error:",
    "MTLDevice.makeComputePipelineState(descriptor:options:reflection:)": (
        "newComputePipelineStateWithDescriptor:options:reflection:error:"
    ),
    "MTLLibrary.makeFunction(name:)": "newFunctionWithName:",
    "MTLBinaryArchive.addComputePipelineFunctions(descriptor:)": "addComputePipelineFunctionsWithDescriptor:error:",
    "MTLBinaryArchive.serialize(to:)": "serializeToURL:error:",
    "MTLCommandQueue.makeCommandBuffer()": "commandBuffer",
    "MTLCommandBuffer.makeComputeCommandEncoder(dispatchType:)": "computeCommandEncoderWithDispatchType:",
    "MTLComputeCommandEncoder.setBuffer(_:offset:index:)": "setBuffer:offset:atIndex:",
    "MTLComputeCommandEncoder.setBytes(_:length:index:)": "setBytes:length:atIndex:",
    "MTLComputeCommandEncoder.setThreadgroupMemoryLength(_:index:)": "setThreadgroupMemoryLength:atIndex:",
    "MTLComputeCommandEncoder.memoryBarrier(scope:)": "memoryBarrierWithScope:",
}

#: Types of Swift: the C++ types of metal-cpp and the type encodings that are the same.
_TYPES = {
    "Void": ({"void"}, {"v"}),
    "Bool": ({"bool"}, {"B", "c"}),  # c is what BOOL is on x86-64
    "Int": ({"NS::UInteger", "NS::Integer"}, {"Q", "q"}),
    "UInt64": ({"uint64_t"}, {"Q"}),
    "String": ({"NS::String*"}, {"@"}),
    "URL": ({"NS::URL*"}, {"@"}),
    "Error": ({"NS::Error*"}, {"@"}),
    "UnsafeRawPointer": ({"void*"}, {"^v"}),
    # Also what the runtime passes nil for: a place for a pipeline's reflection.
    "UnsafeMutableRawPointer": ({"void*", "AutoreleasedComputePipelineReflection*"}, {"^v", "^@"}),
}
_RAW_TYPES = {"Int": ("NS::Integer", "q"), "UInt": ("NS::UInteger", "Q")}
#: What a method that throws takes last.
_ERROR_PARAMETER = ("NS::Error**", "^@")

#: Qualifiers, a type and an offset; structures are nested at most twice.
_ENCODED = re.compile(r"([rnNoORV]*)(\^*(?:\{(?:[^{}]|\{[^{}]*\})*\}|@\?|[^{}\d]))(\d*)")


def mismatches(declarations: Declarations) -> list[str]:
    """What the stand-in declares otherwise than Apple, one text each."""
    comparison = _Comparison(declarations)
    return [
        *(text for function in declarations.functions for text in comparison.function(function)),
        *(text for property_ in declarations.properties for text in comparison.property(property_)),
        *(text for enumeration in declarations.enumerations for text in _enumeration(enumeration)),
        *(text for name, fields in declarations.structures.items() for text in _structure(name, fields)),
        *(text for name in declarations.constants for text in _constant(name)),
    ]


class _Comparison:
    def __init__(self, declarations: Declarations) -> None:
        self._raw_types = {x.name: x.raw_type for x in declarations.enumerations}
        self._structures = declarations.structures

    def function(self, function: Function) -> Iterator[str]:
        labels = "".join(":" if label == "_" else f"{label}:" for label in function.labels)
        selector = SELECTORS.get(function.full_name, function.name + labels)
        # Swift turns a result that only says whether an error was set into nothing.
        result = "Bool" if function.throws and function.result == "Void" else function.result
        yield from self._message(function.owner, function.full_name, selector, result, function.types, function.throws)

    def property(self, property_: Property) -> Iterator[str]:
        owner, name, kind = property_.owner, property_.name, property_.type
        yield from self._message(owner, property_.full_name, name, kind, ())
        if property_.settable:
            setter = f"set{name[0].upper()}{name[1:]}:"
            yield from self._message(owner, property_.full_name, setter, "Void", (kind,))

    def _message(
        self, owner: str, name: str, selector: str, result: str, types: tuple[str, ...], throws: bool = False
    ) -> Iterator[str]:
        """What differs in one message, in metal-cpp and, where it has the protocol, in pyobjc."""
        classes = tuple(published.bases(owner.removeprefix("MTL")))
        method = next((found for x in classes if (found := published.methods().get((x, selector)))), None)
        if method is None:
            yield f"{name}: no message {selector} to {owner}"
            return
        found = (method.result, *method.parameters)
        yield from self._compare(name, selector, found, (result, *types), throws, place=0)

        encodings = published.encodings()
        if owner not in encodings:
            return
        protocols = [encodings.get(f"MTL{x}", {}) for x in classes]
        encoding = next((protocol[selector] for protocol in protocols if selector in protocol), None)
        if encoding is None:
            yield f"{name}: protocol {owner} has no method {selector}"
            return
        kind, receiver, sent, *parameters = _split_encoding(encoding)
        assert (receiver, sent) == ("@", ":"), f"{selector} is encoded as {encoding}"
        yield from self._compare(name, selector, (kind, *parameters), (result, *types), throws, place=1)

    def _compare(
        self, name: str, selector: str, found: tuple[str, ...], types: tuple[str, ...], throws: bool, *, place: int
    ) -> Iterator[str]:
        accepted = [self._accepted(x)[place] for x in types] + [{_ERROR_PARAMETER[place]}] * throws
        if len(found) != len(accepted) or any(x not in kinds for x, kinds in zip(found, accepted, strict=True)):
            wanted = ", ".join("|".join(sorted(kinds)) for kinds in accepted)
            yield f"{name}: {selector} has the types {', '.join(found)}; declared here: {wanted}"

    def _accepted(self, type_: str) -> tuple[set[str], set[str]]:
        """The C++ types and the encodings that a Swift type stands for."""
        plain = re.sub(r"^\((.*)\)$", r"\1", type_.removesuffix("?")).removeprefix("any ")
        if plain in _TYPES:
            return _TYPES[plain]
        if plain.startswith("["):
            return {"NS::Array*"}, {"@"}
        short = plain.removeprefix("MTL")
        if plain in self._raw_types:
            return {short}, {_RAW_TYPES[self._raw_types[plain]][1]}
        if plain in self._structures:
            fields = "Q" * len(self._structures[plain])
            return {short}, {f"{{?={fields}}}", f"{{{plain}={fields}}}"}
        return {f"{short}*"}, {"@"}


def _enumeration(enumeration: Enumeration) -> Iterator[str]:
    short = enumeration.name.removeprefix("MTL")
    found = published.enumerations().get(short)
    if found is None:
        yield f"{enumeration.name}: no such enumeration"
        return
    if found.type != _RAW_TYPES[enumeration.raw_type][0]:
        yield f"{enumeration.name}: its values are {found.type}; declared here: {enumeration.raw_type}"
    for case, value in enumeration.values.items():
        name = next((x for x in _names(short, case) if x in found.values), None)
        if name is None:
            yield f"{enumeration.name}.{case}: no such value"
        elif value != found.values[name]:
            yield f"{enumeration.name}.{case}: is {found.values[name]}; declared here: {value}"
        elif value != (listed := published.constants().get(f"MTL{name}", value)):
            yield f"{enumeration.name}.{case}: pyobjc has {listed}; declared here: {value}"


def _names(enumeration: str, case: str) -> Iterator[str]:
    """What a case may be called in C: Swift drops what it shares with the enumeration's name."""
    capital = case[0].upper() + case[1:]
    yield enumeration + capital
    yield enumeration.removesuffix("Options") + capital
    yield enumeration + case.removeprefix("version")


def _structure(name: str, fields: tuple[tuple[str, str], ...]) -> Iterator[str]:
    found = published.structures().get(name.removeprefix("MTL"), ())
    if [field for _, field in found] != [field for field, _ in fields]:
        yield f"{name}: its fields are {found}; declared here: {fields}"
    for (field, declared), (kind, _) in zip(fields, found, strict=False):
        if kind not in _TYPES[declared][0]:
            yield f"{name}.{field}: is {kind}; declared here: {declared}"


def _constant(name: str) -> Iterator[str]:
    if name not in published.names():
        yield f"{name}: no such constant"


def _split_encoding(encoding: str) -> list[str]:
    """The types in a method's encoding, without qualifiers such as ``r`` for const, and without offsets."""
    types = _ENCODED.findall(encoding)
    assert "".join(f"{qualifiers}{kind}{offset}" for qualifiers, kind, offset in types) == encoding, encoding
    return [kind for _, kind, _ in types]
