"""Turns Metal text into C++ that compiles against the simulator's own ``metal_stdlib``.

The C preprocessor runs first; what it leaves is rewritten token by token. Nothing is moved to another line, so that
the C++ compiler's messages show lines of the Metal text.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import KernelCompileError
from .compiler import Compiler
from .tokens import Kind, Token, tokenize

__all__ = ["BufferInfo", "KernelInfo", "Translation", "translate"]

SOURCE_NAME = "kernel.metal"
"""What messages call a text that does not name itself with ``#line``."""

ConstantValue = bool | int | float

# Metal's own headers: all they declare is in the simulator's metal_stdlib, which every translated text includes.
_METAL_HEADERS = (
    "metal_array",
    "metal_assert",
    "metal_atomic",
    "metal_command_buffer",
    "metal_common",
    "metal_compute",
    "metal_config",
    "metal_extended_vector",
    "metal_geometric",
    "metal_graphics",
    "metal_integer",
    "metal_limits",
    "metal_logging",
    "metal_math",
    "metal_matrix",
    "metal_numeric",
    "metal_pack",
    "metal_packed_vector",
    "metal_quadgroup",
    "metal_relational",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_stdlib",
    "metal_texture",
    "metal_type_traits",
    "metal_types",
    "metal_uniform",
    "metal_utility",
    "metal_visible_function_table",
    "simd/simd.h",
)
_MACROS = {
    "__METAL__": "1",
    "__METAL_VERSION__": "310",
    "__METAL_MACOS__": "1",
    "__HAVE_BFLOAT__": "1",
    "__HAVE_SIMDGROUP_MATRIX__": "1",
    "__HAVE_SIMDGROUP_REDUCTION__": "1",
}

_ERASED_SPACES = frozenset({"device", "threadgroup", "thread", "threadgroup_imageblock", "ray_data", "object_data"})
_ADDRESS_SPACES = _ERASED_SPACES | {"constant"}
_SPECIFIERS = frozenset({"static", "const", "constexpr", "volatile", "inline", "extern"})
_ACCESS = frozenset({"public", "protected", "private"})
_QUALIFIERS = _ADDRESS_SPACES | {"const", "volatile", "typename", "class"}
_FUNDAMENTAL = frozenset(
    {"bool", "char", "short", "int", "long", "unsigned", "signed", "float", "double", "half", "void"}
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}

_MARKER = re.compile(r'#\s*(?:line\s+)?(\d+)(?:\s+"([^"]*)")?')
_SWIZZLE = re.compile(r"[xyzw]{2,4}|[rgba]{2,4}")
_COMPONENT = {name: index for letters in ("xyzw", "rgba") for index, name in enumerate(letters)}
_ASSIGNMENTS = frozenset({"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^="})
_FLOAT = re.compile(r"(?i)(?!0x)(\d[\d']*\.[\d']*(?:e[+-]?\d+)?|\.\d[\d']*(?:e[+-]?\d+)?|\d[\d']*e[+-]?\d+)(bf|[hf]?)")

# Parameters of a kernel that say where the thread is: each is a function of metal/kernel.h.
_POSITIONS = frozenset(
    {
        "dispatch_simdgroups_per_threadgroup",
        "dispatch_threads_per_threadgroup",
        "quadgroup_index_in_simdgroup",
        "quadgroup_index_in_threadgroup",
        "quadgroups_per_threadgroup",
        "simdgroup_index_in_threadgroup",
        "simdgroups_per_threadgroup",
        "thread_execution_width",
        "thread_index_in_quadgroup",
        "thread_index_in_simdgroup",
        "thread_index_in_threadgroup",
        "thread_position_in_grid",
        "thread_position_in_threadgroup",
        "threadgroup_position_in_grid",
        "threadgroups_per_grid",
        "threads_per_grid",
        "threads_per_simdgroup",
        "threads_per_threadgroup",
    }
)
_POSITION_SYNONYMS = {"thread_execution_width": "threads_per_simdgroup"}


@dataclass(frozen=True)
class BufferInfo:
    """One buffer that a kernel takes.

    Attributes:
        name: the parameter's name.
        index: n of ``[[buffer(n)]]``.
        address_space: ``"device"`` or ``"constant"``.
        type: the parameter's type as written, without its address space.
        is_const: whether the kernel can only read it.
    """

    name: str
    index: int
    address_space: str
    type: str
    is_const: bool


@dataclass(frozen=True)
class KernelInfo:
    """One kernel of a text.

    Attributes:
        name: the host name.
        index: i of the C++ function ``simt_kernel_<i>`` that runs one thread of it.
        buffers: what it takes, by index.
    """

    name: str
    index: int
    buffers: tuple[BufferInfo, ...]


@dataclass(frozen=True)
class Translation:
    """A text in C++.

    Attributes:
        text: complete C++ whose ``#line`` directives point into the Metal text.
        kernels: what it defines; the i-th has the index i.
    """

    text: str
    kernels: tuple[KernelInfo, ...]

    def only(self, index: int) -> str:
        """The text with one of its kernels alone, so that the templates of the others are not instantiated."""
        return f"#define SIMT_ONLY {index}\n{self.text}"


def translate(
    source: str,
    *,
    compiler: Compiler,
    function_constants: Mapping[int | str, ConstantValue] | None = None,
) -> Translation:
    """Translates Metal text to C++.

    Args:
        source: text in the Metal Shading Language. ``#include`` finds Metal's own headers and those in PyTorch's wheel.
        compiler: provides the C preprocessor.
        function_constants: values of ``[[function_constant(i)]]`` by index or by name; the others are undefined.

    Returns:
        The C++ text and its kernels.

    Raises:
        KernelCompileError: naming the line of the Metal text, or with the preprocessor's own words.
    """
    return _Translator(_preprocess(source, compiler), function_constants or {}).run()


def _preprocess(source: str, compiler: Compiler) -> str:
    torch = importlib.util.find_spec("torch")
    torch_folders = torch.submodule_search_locations if torch and torch.submodule_search_locations else ()
    with tempfile.TemporaryDirectory(prefix="mps-flash-attn-") as folder:
        for name in _METAL_HEADERS:
            header = Path(folder) / name
            header.parent.mkdir(exist_ok=True)
            header.touch()
        arguments = ["-E", "-x", "c++", "-std=c++17", "-nostdinc", "-undef", "-w", f"-I{folder}"]
        arguments += [f"-I{Path(path) / 'include'}" for path in torch_folders]
        arguments += [f"-D{name}={value}" for name, value in _MACROS.items()]
        result = compiler.run([*arguments, "-"], text=f'#line 1 "{SOURCE_NAME}"\n{source}')
    if result.returncode != 0:
        raise KernelCompileError(f"the Metal text could not be preprocessed:\n{result.stderr.strip()}")
    return result.stdout


@dataclass(frozen=True)
class _Parameter:
    name: str
    words: tuple[str, ...]  # tokens of its declaration, but for attributes and default
    attributes: Mapping[str, str]  # name -> argument


@dataclass(frozen=True)
class _Function:
    name: str
    parameters: tuple[_Parameter, ...]
    is_template: bool


class _Translator:
    """One translation. Tokens are addressed by their index among those that are not blank."""

    def __init__(self, text: str, constants: Mapping[int | str, ConstantValue]) -> None:
        self._all = _join_directives(tokenize(text))
        self._places = [index for index, token in enumerate(self._all) if not token.is_blank]
        self._tokens = [self._all[place] for place in self._places]
        self._words = [token.text for token in self._tokens]
        self._names = [token.kind is Kind.NAME for token in self._tokens]
        self._markers = self._find_markers()
        self._closing = self._match_brackets()
        self._out = [token.text for token in self._all]
        self._constants = constants
        self._constant_names: set[str] = set()
        self._kernels: list[KernelInfo] = []
        self._functions: dict[str, list[_Function]] = {}
        self._instantiations: list[tuple[int, int]] = []
        self._members: set[str] = set()
        self._single_precision = "double" not in self._words

    def run(self) -> Translation:
        self._scope(0, len(self._words), class_name="")
        for begin, stop in self._instantiations:  # last, as kernels may be declared before they are defined
            self._instantiation(begin, stop)
        self._rewrite_words()
        self._strip_attributes()
        prologue = '#pragma GCC visibility push(hidden)\n#include "metal_stdlib"\n'
        epilogue = (
            "\n#pragma GCC visibility pop\n"
            'extern "C" __attribute__((visibility("default"))) const uint32_t simt_abi = simt::kAbiVersion;\n'
        )
        return Translation(prologue + "".join(self._out) + epilogue, tuple(self._kernels))

    # Places and messages

    def _match_brackets(self) -> dict[int, int]:
        pairs: dict[int, int] = {}
        stack: list[int] = []
        for index, word in enumerate(self._words):
            if word in _CLOSING and self._tokens[index].kind is Kind.PUNCTUATION:
                stack.append(index)
            elif word in (")", "]", "}") and self._tokens[index].kind is Kind.PUNCTUATION:
                if not stack or _CLOSING[self._words[stack[-1]]] != word:
                    raise self._error(index, f"{word!r} closes nothing")
                pairs[stack.pop()] = index
        if stack:
            raise self._error(stack[-1], f"{self._words[stack[-1]]!r} is never closed")
        return pairs

    def _find_markers(self) -> tuple[list[int], list[tuple[str, int]]]:
        """Where ``#line`` directives are: their places, and the file and the line less the text's own after each."""
        places, positions = [-1], [(SOURCE_NAME, 0)]
        for place, token in enumerate(self._all):
            marker = _MARKER.match(token.text) if token.text.startswith("#") else None
            if marker is not None:
                places.append(place)
                positions.append((marker.group(2) or positions[-1][0], int(marker.group(1)) - token.line - 1))
        return places, positions

    def _position(self, index: int) -> tuple[str, int]:
        """File and line of a token in the Metal text."""
        places, positions = self._markers
        file, difference = positions[bisect_right(places, self._places[index]) - 1]
        return file, self._tokens[index].line + difference

    def _error(self, index: int, message: str) -> KernelCompileError:
        file, line = self._position(min(index, len(self._tokens) - 1))
        return KernelCompileError(f"{file}:{line}: error: {message}")

    # Edits

    def _erase(self, first: int, last: int) -> None:
        """Erases tokens first ... last, but for line breaks and directives."""
        for place in range(self._places[first], self._places[last] + 1):
            if not self._all[place].is_blank:
                self._out[place] = ""

    def _replace(self, first: int, last: int, text: str) -> None:
        self._erase(first, last)
        self._out[self._places[first]] = text

    def _insert_after(self, index: int, text: str) -> None:
        self._out[self._places[index]] += text

    def _rendered(self, first: int, last: int) -> str:
        """Tokens first ... last - 1 as C++, on one line."""
        words = (
            "const" if self._words[index] == "constant" else self._out[self._places[index]]
            for index in range(first, last)
            if self._words[index] not in _ERASED_SPACES
        )
        return " ".join(words)

    # Declarations

    def _scope(self, begin: int, end: int, *, class_name: str) -> None:
        """Goes through the declarations of a file, a namespace or the class of that name."""
        seen: dict[str, tuple[str, ...]] = {}
        index = begin
        while index < end:
            if class_name and self._words[index] in _ACCESS and self._words[index + 1] == ":":
                index += 2
                continue
            index = self._declaration(index, end, seen, class_name=class_name)

    def _declaration(self, begin: int, end: int, seen: dict[str, tuple[str, ...]], *, class_name: str) -> int:
        """Goes through one declaration and returns the index behind it."""
        words = self._words
        index = begin
        parameters = None  # of a function: the index of its "("
        body = None
        kind = ""
        name = ""  # of a class
        while index < end and words[index] != ";":
            word = words[index]
            if word == "operator":
                index = self._operator_parameters(index) - 1
            elif word == "<" and index > begin and self._names[index - 1]:
                index = self._angle_end(index, end)
            elif word == "[":
                index = self._closing[index]
            elif word == "=" and not kind:
                kind = "variable"
            elif word in ("struct", "class", "union", "enum", "namespace") and not kind:
                kind = word
            elif kind and not name and self._names[index] and word != "alignas":
                name = word
            elif word == "extern" and index + 1 < end and self._tokens[index + 1].kind is Kind.STRING:
                kind = "namespace"
            elif word == "(":
                is_alignment = words[index - 1] in ("alignas", "__attribute__", "decltype", "static_assert", "_Pragma")
                if parameters is None and not is_alignment and kind in ("", "struct"):
                    parameters = index
                    kind = "function"
                index = self._closing[index]
            elif word == "{":
                close = self._closing[index]
                if kind == "namespace":
                    self._scope(index + 1, close, class_name="")
                    return close + 1
                if kind in ("struct", "class", "union"):
                    self._scope(index + 1, close, class_name=name or "(unnamed)")
                    body = index
                elif parameters is not None and not self._is_member_initialiser(index, parameters):
                    self._function(begin, parameters, index, close)
                    self._member_function(begin, parameters, index, class_name)
                    self._deduplicate(begin, index, close, seen, after_parameters=self._closing[parameters] + 1)
                    return close + 1
                index = close
            index += 1
        stop = min(index, end - 1)
        if words[begin] == "template" and self._host_name(begin, stop) is not None:
            self._instantiations.append((begin, stop))
        elif body is not None:
            self._deduplicate(begin, body, stop, seen)
        elif parameters is not None:
            self._erase_kernel(begin, parameters)
        else:
            self._variable(begin, stop, inside_class=bool(class_name))
        return index + 1

    def _operator_parameters(self, index: int) -> int:
        """The index of the "(" before the parameters of the operator that ``index`` introduces."""
        index = self._words.index("(", index)
        is_call = self._words[index - 1] == "operator"
        return self._closing[index] + 1 if is_call else index

    def _is_member_initialiser(self, brace: int, parameters: int) -> bool:
        """Whether "{" belongs to ``Tile() : member{...} {}`` rather than starting a function's body."""
        after = self._closing[parameters] + 1
        return (
            self._names[brace - 1]
            and ":" in self._words[after:brace]
            and self._words[brace - 1]
            not in ("const", "thread", "device", "constant", "threadgroup", "noexcept", "override")
        )

    def _angle_end(self, index: int, end: int) -> int:
        """The index of the ">" that closes the template list opened at ``index``; ``index`` if it is no such list."""
        depth = 0
        position = index
        while position < end:
            word = self._words[position]
            if word == "<":
                depth += 1
            elif word == ">":
                depth -= 1
                if depth == 0:
                    return position
            elif word in _CLOSING:
                position = self._closing[position]
            elif word == ";":
                return index
            position += 1
        return index

    def _attributes(self, first: int, last: int) -> dict[str, str]:
        """Attributes among tokens first ... last - 1: name -> argument, ``""`` without one."""
        found: dict[str, str] = {}
        index = first
        while index < last:
            if self._is_attribute(index):
                close = self._closing[index]
                inner = index + 2
                while inner < close - 1:
                    name = self._words[inner]
                    argument = ""
                    if self._words[inner + 1] == "(":
                        stop = self._closing[inner + 1]
                        argument = "".join(self._words[inner + 2 : stop])
                        inner = stop
                    found[name] = argument
                    inner += 2
                index = close
            index += 1
        return found

    def _is_attribute(self, index: int) -> bool:
        if self._words[index : index + 2] != ["[", "["]:
            return False
        return self._closing[index + 1] == self._closing[index] - 1

    def _host_name(self, first: int, last: int) -> str | None:
        name = self._attributes(first, last).get("host_name")
        return None if name is None else "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', name))

    # Functions and kernels

    def _function(self, begin: int, parameters: int, brace: int, close: int) -> None:
        self._threadgroup_variables(brace, close)
        header = self._words[begin:parameters]
        if "kernel" not in header:
            return
        self._erase_kernel(begin, parameters)
        is_specialisation = header[:3] == ["template", "<", ">"]
        is_template = header[0] == "template" and not is_specialisation
        name_start, name = self._function_name(begin, parameters)
        function = _Function(name, self._parameters(parameters), is_template)
        self._functions.setdefault(name, []).append(function)
        if not is_template:
            host_name = self._host_name(begin, parameters)
            callee = self._rendered(name_start, parameters)
            thunk = self._thunk(host_name or name, function, callee, parameters)
            self._insert_after(close, thunk + self._resume(close))

    def _member_function(self, begin: int, parameters: int, brace: int, class_name: str) -> None:
        """Rewrites what a member function's header may say in Metal and not in every C++.

        A specialisation inside the class becomes an overload; a constructor names no address space.
        """
        if class_name and self._words[begin : begin + 3] == ["template", "<", ">"]:
            self._erase(begin, begin + 2)
        if self._words[parameters - 1] != class_name:
            return
        index = self._closing[parameters] + 1
        while index < brace and self._names[index]:
            if self._words[index] in _ADDRESS_SPACES:
                self._erase(index, index)
            index += 1

    def _erase_kernel(self, begin: int, parameters: int) -> None:
        """Erases the word ``kernel`` before a function's parameters; the attribute goes with all others."""
        for index in range(begin, parameters):
            if self._words[index] == "kernel" and self._words[index - 1] not in ("[", ","):
                self._erase(index, index)

    def _function_name(self, begin: int, parameters: int) -> tuple[int, str]:
        """Where the possibly qualified name before "(" starts, template arguments included, and its last part."""
        index = parameters - 1
        if self._words[index] == ">":
            depth = 0
            while index > begin:
                depth += {">": 1, "<": -1}.get(self._words[index], 0)
                index -= 1
                if depth == 0:
                    break
        name = self._words[index]
        while index - 1 > begin and self._words[index - 1] == "::":
            index -= 2 if self._names[index - 2] and self._words[index - 2] not in ("void", "kernel") else 1
        return index, name

    def _parameters(self, parenthesis: int) -> tuple[_Parameter, ...]:
        result = []
        for first, last in self._split(parenthesis + 1, self._closing[parenthesis]):
            words: list[str] = []
            index = first
            while index < last and self._words[index] != "=":
                if self._is_attribute(index):
                    index = self._closing[index]
                else:
                    words.append(self._words[index])
                index += 1
            if words == ["void"]:
                continue
            if words[-1] == "]":  # an array is passed as a pointer
                words[words.index("[") :] = []
                words.insert(-1, "*")
            result.append(_Parameter(words[-1], tuple(words), self._attributes(first, last)))
        return tuple(result)

    def _split(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Splits tokens first ... last - 1 at commas outside of all brackets."""
        index = start = first
        while index < last:
            word = self._words[index]
            if word in _CLOSING:
                index = self._closing[index]
            elif word == "<" and self._names[index - 1]:
                index = self._angle_end(index, last)
            elif word == ",":
                yield start, index
                start = index + 1
            index += 1
        if start < last:
            yield start, last

    def _instantiation(self, begin: int, stop: int) -> None:
        """``template [[host_name("x")]] ... f<...>(...);`` becomes a function that runs a thread of it."""
        name = self._host_name(begin, stop)
        assert name is not None
        declarator = stop
        if self._words[stop - 1] == ")":
            declarator = next(open_ for open_, close in self._closing.items() if close == stop - 1)
        start, function_name = self._function_name(begin, declarator)
        candidates = [function for function in self._functions.get(function_name, ()) if function.is_template]
        callee = self._rendered(start, declarator)
        if declarator < stop:
            wanted = len(list(self._split(declarator + 1, stop - 1)))
            candidates = [function for function in candidates if len(function.parameters) == wanted]
        if not candidates:
            raise self._error(begin, f"no kernel template {function_name!r} is known that {name!r} could instantiate")
        thunk = self._thunk(name, candidates[-1], callee, begin)
        if declarator < stop:
            types = ", ".join(self._declaration_text(*part) for part in self._split(declarator + 1, stop - 1))
            thunk = thunk.replace(f" {callee}(", f" static_cast<void (*)({types})>({callee})(", 1)
        self._erase(begin, stop)
        self._insert_after(stop, thunk + self._resume(stop))

    def _declaration_text(self, first: int, last: int) -> str:
        """A parameter's type and name in C++."""
        parts: list[str] = []
        index = first
        while index < last:
            if self._is_attribute(index):
                index = self._closing[index]
            elif self._words[index] == "constant":
                if "const" not in self._words[first:last]:
                    parts.append("const")
            elif self._words[index] not in _ERASED_SPACES:
                parts.append(self._words[index])
            index += 1
        return " ".join(parts)

    def _thunk(self, name: str, function: _Function, callee: str, index: int) -> str:
        """C++ that calls ``callee`` with the arguments of one thread."""
        buffers: list[BufferInfo] = []
        arguments = []
        free = 0
        for parameter in function.parameters:
            words = parameter.words
            spaces = [word for word in words if word in _ADDRESS_SPACES]
            positions = [attribute for attribute in parameter.attributes if attribute in _POSITIONS]
            if positions:
                arguments.append(f"::simt::{_POSITION_SYNONYMS.get(positions[0], positions[0])}()")
            elif spaces and spaces[0] in ("device", "constant") and ("*" in words or "&" in words):
                number = parameter.attributes.get("buffer", "")
                if number and not number.isdecimal():
                    raise self._error(index, f"parameter {parameter.name!r}: [[buffer({number})]] is no number")
                slot = int(number) if number else free
                free = slot + 1
                wrapper = "BufferReference" if "&" in words else "BufferPointer"
                arguments.append(f"::simt::{wrapper}{{buffers[{slot}]}}")
                kind = " ".join(word for word in words[:-1] if word not in _ADDRESS_SPACES)
                is_const = spaces[0] == "constant" or "const" in words
                buffers.append(BufferInfo(parameter.name, slot, spaces[0], kind, is_const))
            else:
                text = " ".join(words)
                attributes = ", ".join(parameter.attributes) or "none"
                raise self._error(
                    index,
                    f"parameter {text!r} of kernel {function.name!r} is not supported (attributes: {attributes}); "
                    "accepted are device and constant buffers, and positions of the thread",
                )
        slots = [buffer.index for buffer in buffers]
        if len(set(slots)) != len(slots):
            raise self._error(index, f"kernel {function.name!r} uses a buffer index twice: {slots}")
        kernel = KernelInfo(name, len(self._kernels), tuple(sorted(buffers, key=lambda buffer: buffer.index)))
        self._kernels.append(kernel)
        file, line = self._position(index)
        return (
            f"\n#if !defined(SIMT_ONLY) || SIMT_ONLY == {kernel.index}\n"
            f'#line {line} "{file}"\n'
            f'extern "C" __attribute__((visibility("default"))) void simt_kernel_{kernel.index}(void* const* buffers) '
            f"{{ (void)buffers; ::simt::start_log(::simt::self()); {callee}({', '.join(arguments)}); }}\n#endif\n"
        )

    def _resume(self, index: int) -> str:
        """A directive after which what follows token ``index`` is on its line again."""
        file, line = self._position(index)
        return f'#line {line} "{file}"\n'

    # Variables

    def _threadgroup_variables(self, brace: int, close: int) -> None:
        """Inside a function, ``threadgroup T x[N];`` becomes a reference into the threadgroup's memory."""
        for index in range(brace + 1, close):
            if self._words[index] != "threadgroup":
                continue
            start = index
            while self._words[start - 1] in _SPECIFIERS:
                start -= 1
            if self._words[start - 1] not in (";", "{", "}", ":", ")"):
                continue
            stop = index
            while self._words[stop] != ";":
                stop = self._closing.get(stop, stop) + 1
            self._threadgroup_variable(start, index, stop)

    def _threadgroup_variable(self, start: int, keyword: int, stop: int) -> None:
        """Rewrites the declaration of tokens start ... stop - 1, whose ";" is at ``stop``.

        An initialiser is dropped: no thread could run it without racing with the others.
        """
        parts = list(self._split(keyword + 1, stop))
        first, last = parts[0]
        name = first
        while name < last:
            word = self._words[name]
            if word in ("*", "&"):
                return  # a pointer to threadgroup memory, which is the thread's own
            if word == "<":
                name = self._angle_end(name, last)
            elif word == "(":
                name = self._closing[name]
            elif self._names[name] and (name + 1 == last or self._words[name + 1] in ("[", "=", "{")):
                break
            name += 1
        if name >= last:
            return
        alignment = ""
        if self._words[first] == "alignas":
            stop_alignment = self._closing[first + 1] + 1
            alignment = f", {self._rendered(first + 1, stop_alignment)}"
            first = stop_alignment
        kind = self._rendered(first, name)
        _, line = self._position(keyword)
        text = []
        for position, (declarator, end) in enumerate(parts):
            declarator = name if position == 0 else declarator
            extent = declarator + 1
            while extent < end and self._words[extent] == "[":
                extent = self._closing[extent] + 1
            variable = self._words[declarator]
            text.append(
                f"typedef {kind} simt_type_of_{variable}{self._rendered(declarator + 1, extent)}; "
                f"simt_type_of_{variable}& {variable} = "
                f'::simt::threadgroup_variable<simt_type_of_{variable}{alignment}>("{variable}", {line})'
            )
        self._replace(start, stop - 1, "; ".join(text))

    def _variable(self, begin: int, stop: int, *, inside_class: bool) -> None:
        """A declaration outside of functions that is neither a function nor a class."""
        words = self._words[begin:stop]
        if inside_class:
            self._members.update(word for word in words if _SWIZZLE.fullmatch(word))
            return
        attributes = self._attributes(begin, stop)
        if "function_constant" not in attributes:
            return
        bracket = begin + words.index("[")
        name = self._words[bracket - 1]
        dropped = _ADDRESS_SPACES | _SPECIFIERS
        kind = " ".join(word for word in self._words[begin : bracket - 1] if word not in dropped)
        number = attributes["function_constant"]
        value = self._constants.get(name)
        if value is None and number.isdecimal():
            value = self._constants.get(int(number))
        if value is not None:
            self._constant_names.add(name)
        literal = "0" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
        self._replace(begin, stop - 1, f"static constexpr {kind} {name} = {kind}({literal})")

    # Words

    def _rewrite_words(self) -> None:
        const_run = False  # whether the specifiers before this word have a const
        for index, word in enumerate(self._words):
            place = self._places[index]
            if not self._names[index]:
                if self._tokens[index].kind is Kind.NUMBER:
                    self._out[place] = self._number(self._out[place])
                const_run = False
            elif not self._out[place]:
                continue
            elif word in _ERASED_SPACES:
                if self._out[place] == word:
                    self._out[place] = ""
            elif word in ("constant", "const"):
                if self._out[place] == word:
                    repeated = const_run or self._has_const_after(index)
                    self._out[place] = "" if repeated else "const"
                    const_run = const_run or not repeated
            elif word == "is_function_constant_defined" and self._words[index + 1] == "(":
                known = self._words[index + 2] in self._constant_names
                self._replace(index, self._closing[index + 1], "true" if known else "false")
            elif word in _SPECIFIERS:
                continue
            else:
                const_run = False
                if self._words[index - 1] in (".", "->") and _SWIZZLE.fullmatch(word) and word not in self._members:
                    self._swizzle(index)

    def _has_const_after(self, index: int) -> bool:
        """Whether ``constant T const`` says const twice."""
        if self._words[index] != "constant":
            return False
        position = index + 1
        while position < len(self._words) and (self._names[position] or self._words[position] in ("::", "<")):
            if self._words[position] == "const":
                return True
            if self._words[position] == "<":
                position = self._angle_end(position, len(self._words))
            position += 1
        return False

    def _swizzle(self, index: int) -> None:
        if index + 1 < len(self._words) and self._words[index + 1] == "(":
            return
        components = ", ".join(str(_COMPONENT[letter]) for letter in self._words[index])
        is_target = index + 1 < len(self._words) and self._words[index + 1] in _ASSIGNMENTS
        self._out[self._places[index]] = f"template swizzle{'_target' if is_target else ''}<{components}>()"

    def _number(self, text: str) -> str:
        match = _FLOAT.fullmatch(text)
        if match is None:
            return text
        digits, suffix = match.group(1), match.group(2).lower()
        if suffix in ("h", "bf"):
            return f"{'half' if suffix == 'h' else 'bfloat'}({digits}f)"
        return text + "f" if not suffix and self._single_precision else text

    def _strip_attributes(self) -> None:
        for index in range(len(self._words) - 1):
            if self._words[index] == "[" and self._out[self._places[index]] and self._is_attribute(index):
                self._erase(index, self._closing[index])

    # Twins

    def _deduplicate(
        self, begin: int, brace: int, close: int, seen: dict[str, tuple[str, ...]], after_parameters: int | None = None
    ) -> None:
        """Drops a definition that only address spaces tell from an earlier one."""
        stop = brace
        if after_parameters is not None:  # without what a constructor initialises
            stop = next((index for index in range(after_parameters, brace) if self._words[index] == ":"), brace)
        spaces = tuple(word for word in self._words[begin:stop] if word in _ADDRESS_SPACES)
        earlier = seen.setdefault(self._signature(begin, stop), spaces)
        if earlier != spaces:
            self._erase(begin, close)

    def _signature(self, begin: int, brace: int) -> str:
        """A definition's header as C++ compares it: without address spaces and names of parameters."""
        kept: list[str] = []
        for index in range(begin, brace):
            if not self._out[self._places[index]]:
                continue
            word = "const" if self._words[index] == "constant" else self._words[index]
            is_parameter = (
                self._names[index]
                and self._words[index + 1] in (",", ")", "=")
                and (self._words[index - 1] in ("*", "&", ">") or self._names[index - 1])
                and self._words[index - 1] not in _QUALIFIERS
                and word not in _FUNDAMENTAL
            )
            if not is_parameter and word not in _ERASED_SPACES and kept[-1:] != [word]:
                kept.append(word)
        return " ".join(kept)


def _join_directives(tokens: Sequence[Token]) -> list[Token]:
    """Makes each line that is left to the C++ compiler's preprocessor one token that is blank to everybody else."""
    result: list[Token] = []
    line_start = True
    index = 0
    while index < len(tokens):
        token = tokens[index]
        if line_start and token.text == "#":
            stop = index
            while stop < len(tokens) and tokens[stop].kind is not Kind.NEWLINE:
                stop += 1
            directive = "".join(part.text for part in tokens[index:stop])
            result.append(Token(Kind.COMMENT, directive, token.offset, token.line))
            index = stop
            continue
        line_start = token.kind is Kind.NEWLINE or (line_start and token.is_blank)
        result.append(token)
        index += 1
    return result
