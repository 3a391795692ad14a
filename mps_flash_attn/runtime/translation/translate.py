"""Turns Metal text into C++ that compiles against a runtime's own ``metal_stdlib``.

The C preprocessor runs first; what it leaves is rewritten token by token. Nothing is moved to another line, so that
the C++ compiler's messages show lines of the Metal text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .host_compiler import Compiler
from .kernel_signature import ADDRESS_SPACES, BufferInfo, KernelInfo, Parameter, UnsupportedParameterError, bind
from .metal_text import MetalText
from .preprocess import SOURCE_NAME, preprocess
from .target import Target, ThreadgroupVariable
from .tokens import Kind

__all__ = ["SOURCE_NAME", "BufferInfo", "KernelInfo", "Translation", "translate"]

ConstantValue = bool | int | float

# Of address spaces, `constant` becomes `const`; the others leave no trace.
_ERASED_SPACES = ADDRESS_SPACES - {"constant"}
_SPECIFIERS = frozenset({"const", "constexpr", "extern", "inline", "static", "volatile"})
_CLASS_KEYS = frozenset({"class", "struct", "union"})
_ACCESS = frozenset({"private", "protected", "public"})
_QUALIFIERS = ADDRESS_SPACES | {"class", "const", "typename", "volatile"}
_FUNDAMENTAL = frozenset(
    {"bool", "char", "double", "float", "half", "int", "long", "short", "signed", "unsigned", "void"}
)
# Words before a "(" that starts no parameters.
_NO_FUNCTIONS = frozenset({"_Pragma", "__attribute__", "alignas", "decltype", "static_assert"})

_SWIZZLE = re.compile(r"[xyzw]{2,4}|[rgba]{2,4}")
_COMPONENT = {name: index for letters in ("xyzw", "rgba") for index, name in enumerate(letters)}
_ASSIGNMENTS = frozenset({"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^="})
_FLOAT = re.compile(r"(?i)(?!0x)(\d[\d']*\.[\d']*(?:e[+-]?\d+)?|\.\d[\d']*(?:e[+-]?\d+)?|\d[\d']*e[+-]?\d+)(bf|[hf]?)")


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
    target: Target,
    compiler: Compiler,
    function_constants: Mapping[int | str, ConstantValue] | None = None,
) -> Translation:
    """Translates Metal text to C++.

    Args:
        source: text in the Metal Shading Language. ``#include`` finds Metal's own headers and those in PyTorch's wheel.
        target: what C++ is wanted.
        compiler: provides the C preprocessor.
        function_constants: values of ``[[function_constant(i)]]`` by index or by name; the others are undefined.

    Returns:
        The C++ text and its kernels.

    Raises:
        KernelCompileError: naming the line of the Metal text, or with the preprocessor's own words.
    """
    return _Translator(MetalText(preprocess(source, compiler, target.macros)), target, function_constants or {}).run()


@dataclass(frozen=True)
class _Function:
    """A kernel template."""

    name: str
    parameters: tuple[Parameter, ...]


@dataclass
class _Scope:
    """A file, a namespace or a class whose declarations are gone through.

    Attributes:
        class_name: ``""`` outside of classes.
        address_spaces: of the definitions so far, those in the header; by what remains of the header in C++.
    """

    class_name: str = ""
    address_spaces: dict[str, tuple[str, ...]] = field(default_factory=dict)


class _Translator:
    """One translation. Numbers called ``begin``, ``index``, ... are indices into ``text.words``."""

    def __init__(self, text: MetalText, target: Target, constants: Mapping[int | str, ConstantValue]) -> None:
        self._text = text
        self._target = target
        self._words = text.words
        self._constants = constants
        self._defined_constants: set[str] = set()
        self._kernels: list[KernelInfo] = []
        self._templates: dict[str, list[_Function]] = {}
        self._instantiations: list[tuple[int, int]] = []
        self._members: set[str] = set()  # of the text's own classes, as far as they look like swizzles
        self._before: str | None = None  # the last threadgroup variable in the body of the kernel
        self._is_single_precision = "double" not in self._words

    def run(self) -> Translation:
        self._declarations(0, len(self._words), _Scope())
        for begin, stop in self._instantiations:  # last, as kernels may be declared before they are defined
            self._instantiate(begin, stop)
        self._rewrite_words()
        for index, word in enumerate(self._words):
            if word == "[" and self._text.is_attribute(index):
                self._text.erase(index, self._text.closing[index])
        return Translation(self._target.whole(self._text.text(), self._text), tuple(self._kernels))

    # Declarations

    def _declarations(self, begin: int, end: int, scope: _Scope) -> None:
        index = begin
        while index < end:
            if scope.class_name and self._words[index] in _ACCESS and self._words[index + 1] == ":":
                index += 2
            else:
                index = self._declaration(index, end, scope)

    def _declaration(self, begin: int, end: int, scope: _Scope) -> int:
        """Goes through one declaration and returns the index behind it."""
        words, closing = self._words, self._text.closing
        kind = ""
        name = ""  # of a class
        body = parameters = None  # of a class; of a function: the index of its "("
        index = begin
        while index < end and words[index] != ";":
            word = words[index]
            if word == "operator":
                index = self._operator_parameters(index) - 1
            elif word == "<":
                index = self._text.template_list_end(index, end)
            elif word == "[":
                index = closing[index]
            elif word == "=" and not kind:
                kind = "variable"
            elif not kind and (word in _CLASS_KEYS or word in ("enum", "namespace")):
                kind = word
            elif word == "extern" and self._text.kinds[index + 1] is Kind.STRING:
                kind = "namespace"
            elif kind in _CLASS_KEYS and not name and self._text.is_name(index) and word != "alignas":
                name = word
            elif word == "(":
                if parameters is None and words[index - 1] not in _NO_FUNCTIONS and kind in ("", *_CLASS_KEYS):
                    kind, parameters = "function", index
                index = closing[index]
            elif word == "{":
                close = closing[index]
                if kind == "namespace":
                    self._declarations(index + 1, close, _Scope())
                    return close + 1
                if kind in _CLASS_KEYS:
                    self._declarations(index + 1, close, _Scope(name or "(unnamed)"))
                    body = index
                elif parameters is not None and not self._is_member_initialiser(index, parameters):
                    self._function(begin, parameters, index, scope)
                    return close + 1
                index = close
            index += 1

        stop = min(index, end - 1)
        if words[begin] == "template" and self._host_name(begin, stop) is not None:
            self._instantiations.append((begin, stop))
        elif body is not None:
            self._drop_twin(begin, body, stop, scope)
        elif parameters is not None:
            self._erase_kernel(begin, parameters)
        elif scope.class_name:
            self._members.update(word for word in words[begin:stop] if _SWIZZLE.fullmatch(word))
        else:
            self._define_constant(begin, stop)
        return index + 1

    def _operator_parameters(self, index: int) -> int:
        """The index of the "(" before the parameters of the operator that ``index`` introduces."""
        index = self._words.index("(", index)
        is_call = self._words[index - 1] == "operator"
        return self._text.closing[index] + 1 if is_call else index

    def _is_member_initialiser(self, brace: int, parameters: int) -> bool:
        """Whether "{" belongs to ``Tile() : member{...} {}`` rather than starting a function's body."""
        after = self._words[self._text.closing[parameters] + 1 : brace]
        return ":" in after and self._text.is_name(brace - 1) and after[-1] not in _QUALIFIERS

    def _host_name(self, first: int, last: int) -> str | None:
        name = self._text.attributes(first, last).get("host_name")
        return None if name is None else "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', name))

    # Functions and kernels

    def _function(self, begin: int, parameters: int, brace: int, scope: _Scope) -> None:
        close, after_parameters = self._text.closing[brace], self._text.closing[parameters] + 1
        is_kernel = "kernel" in self._words[begin:parameters]
        self._before = None
        blocks: list[int] = []  # where those end that the index is in
        for index in range(brace + 1, close):
            blocks = [end for end in blocks if end > index]
            if self._words[index] == "{":
                blocks.append(self._text.closing[index])
            elif self._words[index] == "threadgroup":
                self._threadgroup_variables(index, is_outermost=is_kernel and not blocks)
        if is_kernel:
            self._kernel(begin, parameters, close)
        if scope.class_name:
            self._member_function(begin, parameters, after_parameters, scope.class_name)
        initialisers = (index for index in range(after_parameters, brace) if self._words[index] == ":")
        self._drop_twin(begin, next(initialisers, brace), close, scope)

    def _kernel(self, begin: int, parameters: int, close: int) -> None:
        self._erase_kernel(begin, parameters)
        start, name = self._function_name(begin, parameters)
        declared = tuple(
            Parameter.parse(words[: words.index("=")] if "=" in words else words, self._text.attributes(first, last))
            for first, last in self._text.split(parameters + 1, self._text.closing[parameters])
            if (words := self._text.without_attributes(first, last)) != ["void"]
        )
        if self._words[begin] == "template" and self._words[begin + 1 : begin + 3] != ["<", ">"]:
            self._templates.setdefault(name, []).append(_Function(name, declared))
            return
        host_name = self._host_name(begin, parameters) or name
        runner = self._runner(host_name, declared, self._cpp(start, parameters), parameters)
        self._text.insert_after(close, runner + self._text.line_directive(close))

    def _erase_kernel(self, begin: int, parameters: int) -> None:
        """Erases the word ``kernel`` before a function's parameters; the attribute goes with all others."""
        for index in range(begin, parameters):
            if self._words[index] == "kernel" and self._words[index - 1] not in ("[", ","):
                self._text.erase(index, index)

    def _member_function(self, begin: int, parameters: int, after_parameters: int, class_name: str) -> None:
        """Rewrites what a member function's header may say in Metal and not in every C++.

        A specialisation inside the class becomes an overload; a constructor names no address space.
        """
        if self._words[begin : begin + 3] == ["template", "<", ">"]:
            self._text.erase(begin, begin + 2)
        if self._words[parameters - 1] == class_name:
            while self._words[after_parameters] in ADDRESS_SPACES:
                self._text.erase(after_parameters, after_parameters)
                after_parameters += 1

    def _function_name(self, begin: int, parameters: int) -> tuple[int, str]:
        """Where the qualified name before "(" starts, template arguments included, and its last part."""
        index = parameters - 1
        depth = 0
        while index > begin:
            depth += {">": 1, "<": -1}.get(self._words[index], 0)
            if depth == 0 and self._words[index] != "<":
                break
            index -= 1
        name = self._words[index]
        while index - 1 > begin and self._words[index - 1] == "::":
            is_qualified = self._text.is_name(index - 2) and self._words[index - 2] not in ("kernel", "void")
            index -= 2 if is_qualified else 1
        return index, name

    def _instantiate(self, begin: int, stop: int) -> None:
        """``template [[host_name("x")]] ... f<...>(...);`` becomes a function that runs one thread of it."""
        host_name = self._host_name(begin, stop)
        assert host_name is not None
        has_parameters = self._words[stop - 1] == ")"
        declarator = self._text.opening[stop - 1] if has_parameters else stop
        start, name = self._function_name(begin, declarator)
        callee = self._cpp(start, declarator)
        candidates = self._templates.get(name, [])
        if has_parameters:
            types = [self._parameter_type(*part) for part in self._text.split(declarator + 1, stop - 1)]
            candidates = [function for function in candidates if len(function.parameters) == len(types)]
            callee = f"static_cast<void (*)({', '.join(types)})>({callee})"
        if not candidates:
            raise self._text.error(begin, f"no kernel template {name!r} is known that {host_name!r} could instantiate")
        self._text.erase(begin, stop)
        runner = self._runner(host_name, candidates[-1].parameters, callee, begin)
        self._text.insert_after(stop, runner + self._text.line_directive(stop))

    def _parameter_type(self, first: int, last: int) -> str:
        """A parameter's type, and its name if it has one, in C++."""
        words = self._text.without_attributes(first, last)
        constant = "" if "const" in words else "const"
        return " ".join(constant if word == "constant" else word for word in words if word not in _ERASED_SPACES)

    def _runner(self, host_name: str, parameters: tuple[Parameter, ...], callee: str, index: int) -> str:
        """The target's function that runs one thread of a kernel, which is noted."""
        try:
            arguments, buffers = bind(parameters)
        except UnsupportedParameterError as error:
            raise self._text.error(index, f"kernel {host_name!r}: parameter {error}") from None
        kernel = KernelInfo(host_name, len(self._kernels), buffers)
        self._kernels.append(kernel)
        return (
            f"\n#if !defined(SIMT_ONLY) || SIMT_ONLY == {kernel.index}\n"
            f"{self._text.line_directive(index)}"
            f"{self._target.runner(kernel, callee, arguments)}\n#endif\n"
        )

    def _cpp(self, first: int, last: int) -> str:
        """Tokens ``first`` to ``last - 1`` in C++, on one line."""
        return " ".join(
            "const" if self._words[index] == "constant" else self._text.edited(index)
            for index in range(first, last)
            if self._words[index] not in _ERASED_SPACES
        )

    # Variables

    def _threadgroup_variables(self, keyword: int, *, is_outermost: bool) -> None:
        """Inside a function, ``threadgroup T x[N];`` becomes what the target has for it.

        An initialiser is dropped: no thread could run it without racing with the others.
        """
        begin = keyword
        while self._words[begin - 1] in _SPECIFIERS:
            begin -= 1
        if self._words[begin - 1] not in (";", "{", "}", ":", ")"):
            return
        stop = keyword
        while self._words[stop] != ";":
            stop = self._text.closing.get(stop, stop) + 1
        declarators = list(self._text.split(keyword + 1, stop))
        first, last = declarators[0]
        name = self._declared_name(first, last)
        if name is None:
            return
        declarators[0] = name, last
        alignment = ""
        if self._words[first] == "alignas":
            close = self._text.closing[first + 1]
            alignment = self._cpp(first + 1, close + 1)
            first = close + 1
        kind = self._cpp(first, name)
        _, line = self._text.position(keyword)
        statements = []
        for declarator, end in declarators:
            variable = self._words[declarator]
            extent = declarator + 1
            while extent < end and self._words[extent] == "[":
                extent = self._text.closing[extent] + 1
            extents = self._cpp(declarator + 1, extent)
            statements.append(
                self._target.threadgroup_variable(
                    ThreadgroupVariable(variable, kind, extents, alignment, line, self._before, is_outermost)
                )
            )
            if is_outermost:
                self._before = variable
        self._text.erase(begin, stop - 1)
        self._text.replace(begin, "; ".join(statements))

    def _declared_name(self, first: int, last: int) -> int | None:
        """The index of a variable's name; None for a pointer or a reference, which are the thread's own."""
        index = first
        while index < last and self._words[index] not in ("*", "&"):
            if self._text.is_name(index) and (index + 1 == last or self._words[index + 1] in ("[", "=", "{")):
                return index
            if self._words[index] == "<":
                index = self._text.template_list_end(index, last)
            index = self._text.closing.get(index, index) + 1
        return None

    def _define_constant(self, begin: int, stop: int) -> None:
        """``constant T x [[function_constant(i)]];`` becomes the constant that was asked for."""
        number = self._text.attributes(begin, stop).get("function_constant")
        if number is None:
            return
        *declaration, name = self._text.without_attributes(begin, stop)
        kind = " ".join(word for word in declaration if word not in ADDRESS_SPACES | _SPECIFIERS)
        value = self._constants.get(name)
        if value is None and number.isdecimal():
            value = self._constants.get(int(number))
        if value is not None:
            self._defined_constants.add(name)
        literal = str(value or 0).lower() if isinstance(value, bool) or value is None else repr(value)
        self._text.erase(begin, stop - 1)
        self._text.replace(begin, f"static constexpr {kind} {name} = {kind}({literal})")

    # Words

    def _rewrite_words(self) -> None:
        is_const = False  # whether the specifiers before this word say const
        for index, word in enumerate(self._words):
            if self._text.kinds[index] is Kind.NUMBER:
                self._text.replace(index, self._number(self._text.edited(index)))
            if not self._text.is_name(index):
                is_const = False
            elif self._text.is_edited(index):
                continue
            elif word in _ERASED_SPACES:
                self._text.erase(index, index)
            elif word == "for" and self._words[index + 1 : index + 3] == ["(", "short"]:
                self._text.replace(index, self._target.short_loop)
            elif word in ("constant", "const"):
                is_repeated = is_const or (word == "constant" and self._has_const_after(index))
                self._text.replace(index, "" if is_repeated else "const")
                is_const = is_const or not is_repeated
            elif word not in _SPECIFIERS:
                is_const = False
                if word == "is_function_constant_defined":
                    self._text.erase(index + 1, self._text.closing[index + 1])
                    self._text.replace(index, str(self._words[index + 2] in self._defined_constants).lower())
                elif self._words[index - 1] in (".", "->") and _SWIZZLE.fullmatch(word) and word not in self._members:
                    self._swizzle(index)

    def _has_const_after(self, index: int) -> bool:
        """Whether ``constant T const`` says const twice."""
        index += 1
        while index < len(self._words) and (self._text.is_name(index) or self._words[index] in ("::", "<")):
            if self._words[index] == "const":
                return True
            if self._words[index] == "<":
                index = self._text.template_list_end(index, len(self._words))
            index += 1
        return False

    def _swizzle(self, index: int) -> None:
        following = self._words[index + 1] if index + 1 < len(self._words) else ""
        if following == "(":
            return
        components = ", ".join(str(_COMPONENT[letter]) for letter in self._words[index])
        function = "swizzle_target" if following in _ASSIGNMENTS else "swizzle"
        self._text.replace(index, f"template {function}<{components}>()")

    def _number(self, text: str) -> str:
        """A literal in C++: single precision where it has no suffix, unless the text uses double precision."""
        match = _FLOAT.fullmatch(text)
        if match is None:
            return text
        digits, suffix = match.group(1), match.group(2).lower()
        if suffix in ("h", "bf"):
            return f"{'half' if suffix == 'h' else 'bfloat'}({digits}f)"
        return text + "f" if not suffix and self._is_single_precision else text

    # Twins

    def _drop_twin(self, begin: int, header_end: int, close: int, scope: _Scope) -> None:
        """Drops a definition that only address spaces tell from an earlier one."""
        spaces = tuple(word for word in self._words[begin:header_end] if word in ADDRESS_SPACES)
        signature = " ".join(self._signature(begin, header_end))
        if scope.address_spaces.setdefault(signature, spaces) != spaces:
            self._text.erase(begin, close)

    def _signature(self, begin: int, end: int) -> Iterator[str]:
        """The words of a definition's header that C++ compares: no address spaces, no names of parameters."""
        previous = ""
        for index in range(begin, end):
            word = "const" if self._words[index] == "constant" else self._words[index]
            is_parameter = (
                self._text.is_name(index)
                and self._words[index + 1] in (",", ")", "=")
                and (self._words[index - 1] in ("*", "&", ">") or self._text.is_name(index - 1))
                and self._words[index - 1] not in _QUALIFIERS
                and word not in _FUNDAMENTAL
            )
            if self._text.edited(index) and not is_parameter and word not in _ERASED_SPACES and word != previous:
                yield word
                previous = word
