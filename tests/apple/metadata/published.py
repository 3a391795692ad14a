"""What Apple publishes of Metal: selectors and types of its C++ headers, values of enumerations, protocols."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import protocols
from .wheels import unpacked

__all__ = [
    "Enumeration",
    "Method",
    "bases",
    "constants",
    "encodings",
    "enumerations",
    "methods",
    "names",
    "structures",
]

#: metal-cpp writes each method as one function that sends one message.
_METHOD = re.compile(
    r"_MTL_INLINE (?P<result>[\w:* ]+?) *MTL::(?P<owner>\w+)::\w+\((?P<parameters>[^{}]*)\)(?: const)?\s*"
    r"\{\s*(?:return )?(?:NS::)?Object::sendMessage(?:Safe)?<[^(]*>\("
    r"(?:this|_MTL_PRIVATE_CLS\(\w+\)), _MTL_PRIVATE_SEL\((?P<selector>\w+)\)"
)
_SELECTOR = re.compile(r'_MTL_PRIVATE_DEF_SEL\((\w+),\s*"([^"]+)"\)')
_CLASS = re.compile(r"class (\w+) : public NS::\w+<\w+(?:, (?:MTL::)?(\w+))?>")
_ENUMERATION = re.compile(r"_MTL_(?:ENUM|OPTIONS)\((?P<type>[\w:]+), (?P<name>\w+)\) \{(?P<body>[^}]*)\}")
_STRUCTURE = re.compile(r"^struct (\w+)\s*\{(.*?)^\} _MTL_PACKED;", re.DOTALL | re.MULTILINE)
_CONSTANT = re.compile(r"\$(\w+)@(-?\d+)(?=\$)")


@dataclass(frozen=True)
class Method:
    """One message: C++ types without ``const`` and ``MTL::``."""

    result: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Enumeration:
    """An enumeration: the C++ type of its values, and the values by their names in C without ``MTL``."""

    type: str
    values: dict[str, int]


@functools.cache
def _headers() -> str:
    folder = unpacked() / "mlx/include/metal_cpp/Metal"
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.hpp")))


@functools.cache
def methods() -> dict[tuple[str, str], Method]:
    """metal-cpp's methods by class, such as ``Device``, and selector."""
    selectors = dict(_SELECTOR.findall(_headers()))
    return {
        (match["owner"], selectors[match["selector"]]): Method(
            _type(match["result"]), tuple(_type(_without_name(x)) for x in _split(match["parameters"]))
        )
        for match in _METHOD.finditer(_headers())
    }


def bases(owner: str) -> Iterator[str]:
    """A class of metal-cpp and those it inherits from."""
    parents = dict(_CLASS.findall(_headers()))
    while owner:
        yield owner
        owner = parents.get(owner, "")


@functools.cache
def enumerations() -> dict[str, Enumeration]:
    """metal-cpp's enumerations by name, such as ``GPUFamily``."""
    found = {}
    for match in _ENUMERATION.finditer(_headers()):
        values: dict[str, int] = {}
        for entry in re.sub(r"//[^\n]*", "", match["body"]).split(","):
            name, equals, text = entry.partition("=")
            if equals:
                values[name.strip()] = _value(text, values)
        found[match["name"]] = Enumeration(match["type"], values)
    return found


@functools.cache
def structures() -> dict[str, tuple[tuple[str, str], ...]]:
    """Type and name of the fields of metal-cpp's structures, such as ``Size``."""
    return {
        name: tuple(re.findall(r"^\s*([\w:]+)\s+(\w+);", body, re.MULTILINE))
        for name, body in _STRUCTURE.findall(_headers())
    }


@functools.cache
def constants() -> dict[str, int]:
    """Values of enumerations by their names in C, as pyobjc lists them."""
    return {name: int(value) for name, value in _CONSTANT.findall(_pyobjc("_metadata.py").read_text(encoding="utf-8"))}


@functools.cache
def names() -> frozenset[str]:
    """The names in C of everything in pyobjc's lists."""
    return frozenset(re.findall(r"\w+", _pyobjc("_metadata.py").read_text(encoding="utf-8")))


@functools.cache
def encodings() -> dict[str, dict[str, str]]:
    """The type encoding of each method, by protocol and selector, of the protocols that pyobjc has compiled in."""
    return protocols.read(_pyobjc("_Metal.*.so"))


def _pyobjc(pattern: str) -> Path:
    return next((unpacked() / "Metal").glob(pattern))


def _value(text: str, values: dict[str, int]) -> int:
    """The value of an expression of numbers, earlier names, ``|``, ``<<`` and casts."""

    def compute(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            return int(node.value)
        if isinstance(node, ast.Name):
            return values[node.id]
        if isinstance(node, ast.UnaryOp):
            return -compute(node.operand)
        assert isinstance(node, ast.BinOp), ast.dump(node)
        left, right = compute(node.left), compute(node.right)
        return left << right if isinstance(node.op, ast.LShift) else left | right

    text = re.sub(r"\b(\d+|0x[0-9a-fA-F]+)[uUlL]+\b", r"\1", text.replace("NS::UIntegerMax", str(2**64 - 1)))
    return compute(ast.parse(text.strip(), mode="eval").body)


def _split(parameters: str) -> list[str]:
    return [x for x in (part.strip() for part in parameters.split(",")) if x]


def _without_name(parameter: str) -> str:
    return re.sub(r"\w+(\[\])?$", "", parameter)


def _type(text: str) -> str:
    return re.sub(r"\bconst\b|MTL::|\s", "", text)
