"""What the stand-in for Metal declares in Swift: protocols, classes, structures, enumerations and constants.

Reads the few forms that the stand-in is written in, and refuses what it does not know, so that nothing goes unchecked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SOURCES", "Declarations", "Enumeration", "Function", "Property", "parse", "read"]

#: The files that declare what Apple declares; the others implement it.
SOURCES = tuple(Path(__file__).parents[1] / "metal/Sources/Metal" / name for name in ("Protocols.swift", "Types.swift"))

_BLOCK = re.compile(r"^public (protocol|enum|struct|final class) (\w+)(?:: ([\w, ]+))? \{(.*?)^\}", re.DOTALL | re.M)
_NESTED = re.compile(r"public enum (\w+): (\w+) \{(.*?)^    \}", re.DOTALL | re.MULTILINE)
_FUNCTION = re.compile(r"func (\w+)\(([^{}]*?)\)( throws)?(?: -> ([^\n{]+))?$", re.MULTILINE)
_PROTOCOL_PROPERTY = re.compile(r"^var (\w+): ([^{\n]+) \{ get( set)? \}$", re.MULTILINE)
_CLASS_PROPERTY = re.compile(r"^public var (\w+)(?:: ([^=\n]+?))?(?: = ([^\n]+))?$", re.MULTILINE)
_CASE = re.compile(r"^case `?(\w+)`? = (\w+)$", re.MULTILINE)
_OPTION = re.compile(r"^public static let (\w+)(?:: \w+)? = (?:\w+\(rawValue: (\w+)\)|\[\])$", re.MULTILINE)
_CONSTANT = re.compile(r'^public let (\w+) = "\w+"$', re.MULTILINE)
#: Lines that declare nothing of Apple's beyond a name: initialisers, global functions, raw values and braces.
_OTHER = re.compile(
    r"import \w+|(public )?func .*|NSError\(.*|public let rawValue: \w+|public init\([^)]*\) \{.*|self\.\w+ = \w+|\}|"
)


@dataclass(frozen=True)
class Function:
    owner: str
    name: str
    labels: tuple[str, ...]
    types: tuple[str, ...]
    result: str
    throws: bool

    @property
    def full_name(self) -> str:
        return f"{self.owner}.{self.name}({''.join(f'{label}:' for label in self.labels)})"


@dataclass(frozen=True)
class Property:
    owner: str
    name: str
    type: str
    settable: bool

    @property
    def full_name(self) -> str:
        return f"{self.owner}.{self.name}"


@dataclass(frozen=True)
class Enumeration:
    """An enumeration or a set of options; ``name`` is Apple's in C."""

    name: str
    raw_type: str
    values: dict[str, int]


@dataclass(frozen=True)
class Declarations:
    functions: tuple[Function, ...]
    properties: tuple[Property, ...]
    enumerations: tuple[Enumeration, ...]
    structures: dict[str, tuple[tuple[str, str], ...]]
    constants: tuple[str, ...]


def read() -> str:
    """The stand-in's declarations as they are written."""
    return "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)


def parse(text: str) -> Declarations:
    """The declarations in Swift text.

    Raises:
        ValueError: a line that is in no form known here.
    """
    text = re.sub(r"^\s*//[^\n]*", "", text, flags=re.MULTILINE)
    functions: list[Function] = []
    properties: list[Property] = []
    enumerations: list[Enumeration] = []
    structures: dict[str, tuple[tuple[str, str], ...]] = {}
    rest = [_BLOCK.sub("", text)]
    for kind, owner, inherited, block in _BLOCK.findall(text):
        body = "\n".join(line.strip() for line in _NESTED.sub("", block).splitlines())
        if kind == "protocol":
            joined = re.sub(r"\(\n([^()]*?)\n\)", lambda m: f"({m[1]})".replace("\n", " "), body)
            functions += [_function(owner, *found) for found in _FUNCTION.findall(joined)]
            found_properties = _PROTOCOL_PROPERTY.findall(joined)
            properties += [Property(owner, name, kind.strip(), bool(set_)) for name, kind, set_ in found_properties]
            rest.append(_PROTOCOL_PROPERTY.sub("", _FUNCTION.sub("", joined)))
        elif kind == "enum":
            enumerations.append(Enumeration(owner, inherited, _values(_CASE, body)))
            rest.append(_CASE.sub("", body))
        elif inherited == "OptionSet":
            raw_type = re.search(r"let rawValue: (\w+)", body)
            enumerations.append(Enumeration(owner, raw_type[1] if raw_type else "", _values(_OPTION, body)))
            rest.append(_OPTION.sub("", body))
        else:
            for _, raw_type_name, cases in _NESTED.findall(block):
                lines = "\n".join(line.strip() for line in cases.splitlines())
                enumerations.append(Enumeration(owner, raw_type_name, _values(_CASE, lines)))
                rest.append(_CASE.sub("", lines))
            fields = [(name, kind or _kind(value)) for name, kind, value in _CLASS_PROPERTY.findall(body)]
            if kind == "struct" and fields:
                structures[owner] = tuple(fields)
            properties += [Property(owner, *field, True) for field in fields if kind == "final class"]
            rest.append(_CLASS_PROPERTY.sub("", body))
    constants = tuple(_CONSTANT.findall(rest[0]))
    rest[0] = _CONSTANT.sub("", rest[0])
    for line in "\n".join(rest).splitlines():
        if not _OTHER.fullmatch(line.strip()):
            raise ValueError(f"{line.strip()!r} is in no form that is read here")
    return Declarations(tuple(functions), tuple(properties), tuple(enumerations), structures, constants)


def _function(owner: str, name: str, parameters: str, throws: str, result: str) -> Function:
    found = re.findall(r"(\w+)(?: \w+)?: ([^,]+)", parameters)
    labels, types = tuple(label for label, _ in found), tuple(kind.strip() for _, kind in found)
    return Function(owner, name, labels, types, result.strip() or "Void", bool(throws))


def _values(form: re.Pattern[str], body: str) -> dict[str, int]:
    return {name: int(value or "0", 0) for name, value in form.findall(body)}


def _kind(value: str) -> str:
    """The type of a value that is written out."""
    return "Bool" if value in ("true", "false") else value.partition(".")[0]
