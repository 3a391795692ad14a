"""A strict parse of Metal text: rejects what Apple's compiler rejects, without a Mac.

The simulator's own compilers erase address spaces and accept all of C++, so a kernel may run there and fail to
compile on a Mac. Here clang reads it in C++ for OpenCL 2021, where ``device``, ``threadgroup``, ``constant`` and
``thread`` are real and not convertible into each other, and its syntax tree is searched for the rest: pointers without
an address space, mutable globals, kernels' parameters. Needs libclang, the optional extra ``check``.

The language is Metal 3.1. In two points this is stricter than Apple's compiler, which has taken recursion in compute
kernels and pointers to functions for some versions: neither is accepted here. It knows no textures, no ray tracing and
no Metal 4 tensors, and does not know what is said of implicit conversions from float to bfloat.
"""

from __future__ import annotations

import atexit
import functools
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CompilerNotFoundError, KernelCompileError
from ..translation.preprocess import SOURCE_NAME
from ..translation.tokens import Kind, closing, following, preceding
from .strict_rewrite import (
    THREADGROUP_VARIABLE_OUTSIDE_KERNEL,
    VECTORS,
    Edit,
    Problem,
    Rewriting,
    after_template_arguments,
    apply,
    construct,
    rewrite,
    vector_constructors,
)

if TYPE_CHECKING:
    from . import strict_rules  # needs libclang

__all__ = ["Diagnostic", "check", "diagnose"]

_HEADER = Path(__file__).parent / "csrc" / "strict" / "metal_declarations.h"
_NO_LIBCLANG = "the strict parse of Metal text needs libclang: pip install mps-flash-attn[check]"

# Without these features of OpenCL 3.0: what has no counterpart in Metal. The generic address space stays, and stands
# for every pointer that names none, which `strict_rules` rejects; without it clang would take such a pointer to be
# the thread's, and refuse to copy a struct from device memory.
_FEATURES = ",".join(
    f"-{feature}" for feature in ("cl_khr_fp64", "__opencl_c_fp64", "__opencl_c_pipes", "__opencl_c_device_enqueue")
)
_ARGUMENTS = (
    "-x",
    "clcpp",
    "-cl-std=clc++2021",
    "-cl-no-stdinc",
    "-target",
    "x86_64-unknown-linux-gnu",
    "-ferror-limit=0",
    "-Wno-everything",
    "-Xclang",
    f"-cl-ext={_FEATURES}",
    "-ftemplate-backtrace-limit=0",
)
_MOST_REPAIRS = 3
_MOST_CANDIDATES = 2  # that a message tells the objections to

# clang's numbers
_ERROR = 3
_INCOMPLETE = 0x02
_SKIP_FUNCTION_BODIES = 0x40

_SEVERAL_ARGUMENTS = "excess elements in scalar initializer"
_VECTOR_CONVERSION = re.compile(
    r"from vector '.*?' \(vector of (?P<a>\d).*? to vector '.*?' \(vector of (?P<b>\d).*? of different size"
)
_COPY_FROM_CONSTANT = re.compile(
    r"\(the implicit copy (?:constructor|assignment operator)\) not viable: cannot bind reference in address space "
    r"'__constant'|no known conversion from '(?:const )?__constant (?P<a>[^']+)' to '(?:__private )?(?P<b>[^']+)'"
)
_CHOICE_OF_OBJECTS = re.compile(
    r"(?:incompatible operand types \(|conditional expression is ambiguous; )'(?P<a>[^'*&]+)' and '(?P<b>[^'*&]+)'"
)
_QUALIFIERS = re.compile(r"\b(?:const|volatile|__\w+) ")
_LIST_FOR_VECTOR = re.compile(r"cannot convert initializer list argument to '.*' \(vector of")
_NOT_CONSTANT = "must be initialized by a constant expression"
# What OpenCL forbids and Metal does not.
_OPENCL_ONLY = re.compile(
    "|".join(
        (
            "scalar operand type has greater rank than the type of the vector element",
            "bit-fields are not supported in OpenCL",
            "too few elements in vector initialization",
            r"static_cast from '[^']*\b(?:half|__bf16|bfloat)' to '(?:half|__bf16|bfloat)'.* is not allowed",
            # Apple's own headers are written in these.
            "use of undeclared identifier '__(?:metal|METAL)_",
            # To clang a temporary is nowhere; in Metal it is the thread's.
            "reference of type 'const __private .*' cannot bind to a temporary object",
            "binding reference of type 'const __private .*' to value of type '(?!.*__).*' changes address space",
        )
    )
)
_TEMPORARY = re.compile(
    "cannot bind reference in default address space to object in address space '__private'"
    "|cannot deduce a type for '.*' that would make '__private .*' equal '(?!.*__)"
)
_VECTOR_OF_BOOL = "invalid vector element type 'bool'"
_INCLUSION = "in file included from"
_STATIC_ASSERTION = re.compile(r"static assertion failed due to requirement '.*(?:__metal|is_same_v).*': ")
_CANDIDATE = re.compile(r"candidate (?:function|constructor|template)\b.* (?:not viable|ignored): .*")
_INSTANCE = "in instantiation of "
_CONTEXT = (_INSTANCE, _INCLUSION, "expanded from")
_BOOL_ARGUMENT = re.compile(r"<.*\bbool\b.*>")
_THREADGROUP_VARIABLE = "variable cannot be declared in local address space"
_UNSUPPORTED_TYPE = re.compile(r"use of type '(?P<type>[^']+)' requires .* support")
_WORDS = (
    (re.compile(r"\bunsigned (\w+) __attribute__\(\(ext_vector_type\((\d)\)\)\)"), r"u\1\2"),
    (re.compile(r"\b(\w+) __attribute__\(\(ext_vector_type\((\d)\)\)\)"), r"\1\2"),
    (re.compile(r"__global\b"), "device"),
    (re.compile(r"__local\b"), "threadgroup"),
    (re.compile(r"__constant\b"), "constant"),
    (re.compile(r"__private\b"), "thread"),
    (re.compile(r"__generic "), ""),
    (re.compile(r"__metal_name_"), ""),
    (re.compile(r"C\+\+ for OpenCL(?: version \d+)?|OpenCL(?: C(?: version [\d.]+)?)?"), "Metal"),
    (re.compile(r"__bf16\b"), "bfloat"),
)


@dataclass(frozen=True, order=True)
class Diagnostic:
    """One thing that Metal forbids.

    Attributes:
        file: the file, by the ``#line`` directives of the text; else ``program_source``, as Apple's compiler has it.
        line: from 1.
        column: from 1.
        message: what is wrong.
    """

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: error: {self.message}"


def check(source: str) -> None:
    """Passes a Metal text that Apple's compiler would accept, as far as is known here.

    Args:
        source: Metal 3.1. Includes other than those of Metal's own headers are resolved already.

    Raises:
        KernelCompileError: it is not; the message has every problem, each with its place.
        CompilerNotFoundError: libclang is not installed.
    """
    problems = diagnose(source)
    if problems:
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        raise KernelCompileError("\n".join((f"the text is not legal Metal: {count}", *map(str, problems))))


def diagnose(source: str) -> tuple[Diagnostic, ...]:
    """Everything that is wrong with a Metal text, in order of place.

    Args:
        source: Metal 3.1. Includes other than those of Metal's own headers are resolved already.

    Raises:
        CompilerNotFoundError: libclang is not installed.
    """
    clang = _clang()
    # clang counts bytes; what is not ASCII can only stand in comments and strings.
    text = source.encode("ascii", "replace").decode()
    rewriting = rewrite(text)
    parse = _Parse(text, rewriting, clang)
    found = {(problem.offset, problem.message) for problem in (*rewriting.problems, *parse.problems())}
    return tuple(_diagnostic(rewriting, Problem(*problem)) for problem in sorted(found))


class _Clang:
    """libclang with Metal's declarations at hand: read once, 0.1 s, and kept in a form that takes 10 ms."""

    def __init__(self) -> None:
        try:
            from clang import cindex  # type: ignore[import-untyped]
        except ImportError as error:
            raise CompilerNotFoundError(_NO_LIBCLANG) from error
        try:
            self._index = cindex.Index.create()
        except cindex.LibclangError as error:
            raise CompilerNotFoundError(f"{_NO_LIBCLANG} ({error})") from error
        self._folder = tempfile.TemporaryDirectory(prefix="mps-flash-attn-")
        declarations = str(Path(self._folder.name) / "metal_declarations.pch")
        self._index.parse(str(_HEADER), args=_ARGUMENTS, options=_INCOMPLETE).save(declarations)
        self._arguments = (*_ARGUMENTS, "-include-pch", declarations)
        atexit.register(_clang.cache_clear)  # while libclang can still be called

    def parse(self, text: str, *, skip_bodies: bool) -> Any:
        """The translation unit of a rewritten text."""
        options = _SKIP_FUNCTION_BODIES if skip_bodies else 0
        return self._index.parse(SOURCE_NAME, self._arguments, [(SOURCE_NAME, text)], options)


@functools.cache
def _clang() -> _Clang:
    return _Clang()


class _Parse:
    """One text on its way through clang."""

    def __init__(self, text: str, rewriting: Rewriting, clang: _Clang) -> None:
        self._text = text
        self._rewriting = rewriting
        self._clang = clang
        self._edits = list(rewriting.edits)
        self._constructed: set[int] = set()  # offsets of the parentheses of vectors' constructors found by clang
        self._read = apply(text, self._edits)

    def problems(self) -> list[Problem]:
        """What clang and the rules object to."""
        from . import strict_rules

        # Member functions and names of vector types show only in the syntax tree, those of a function's body and
        # those that depend on a template's parameters only in clang's errors.
        outline = strict_rules.outline(self._parse(skip_bodies=True), self._is_own)
        self._edits += vector_constructors(self._rewriting, VECTORS | outline.vector_names)
        edits = [edit for cursor in outline.methods for edit in self._qualify(cursor)]
        edits += [edit for cursor in outline.constructors for edit in self._unqualify(cursor)]
        self._edits += edits
        unit = self._parse()
        for _ in range(_MOST_REPAIRS):
            edits = [edit for error in _errors(unit) for edit in self._construct(error)]
            if not edits:
                break
            self._edits += edits
            unit = self._parse()

        problems: list[Problem] = []

        def report(offset: int, message: str) -> None:
            problems.append(Problem(self._read.origin(offset), message))

        rules = strict_rules.Rules(report, self._is_threadgroup_variable, self._read.text)
        rules.walk(unit, self._is_own)
        return [*problems, *self._objections(unit, rules, {problem.offset for problem in problems})]

    def _objections(self, unit: Any, rules: strict_rules.Rules, objected: set[int]) -> Iterator[Problem]:
        """What clang objects to, but for the places in ``objected``."""
        errors = _errors(unit)
        makes_vectors_of_bool = any(_VECTOR_OF_BOOL in error.spelling for error in errors)
        is_for_bool = False
        for error in errors:
            # clang names the template's instance with the first of several errors in it
            is_for_bool = _is_for_bool(error, otherwise=is_for_bool)
            if makes_vectors_of_bool and (_VECTOR_OF_BOOL in error.spelling or is_for_bool):
                continue  # OpenCL has no vectors of bool; a template that makes some cannot be read to its end
            offset = self._place(error)
            message = _message(error)
            if message is None or (_THREADGROUP_VARIABLE in error.spelling and rules.is_in_kernel(offset)):
                continue
            origin = self._read.origin(offset)
            if origin not in objected:  # one for each place: a template is read once for each set of arguments
                objected.add(origin)
                yield Problem(origin, message)

    def _parse(self, *, skip_bodies: bool = False) -> Any:
        """Reads the text with the edits so far."""
        self._read = apply(self._text, self._edits)
        return self._clang.parse(self._read.text, skip_bodies=skip_bodies)

    def _is_own(self, cursor: Any) -> bool:
        file = cursor.location.file
        return file is not None and file.name == SOURCE_NAME

    def _is_threadgroup_variable(self, offset: int) -> bool:
        return self._read.origin(offset) in self._rewriting.threadgroup_variables

    def _place(self, error: Any) -> int:
        """Where in the text an error is; of one in the declarations, where the text gave rise to it."""
        for diagnostic in (error, *error.children):
            file = diagnostic.location.file
            if file is not None and file.name == SOURCE_NAME and _INCLUSION not in diagnostic.spelling:
                return int(diagnostic.location.offset)
        return 0

    def _qualify(self, method: Any) -> list[Edit]:
        """Makes a member function one of objects of the thread, as Metal has it."""
        end = self._end_of_parameters(method)
        if end is None:
            return []
        place = self._rewriting.tokens[end].offset + 1
        return [Edit(place, place, " __private ")]

    def _unqualify(self, constructor: Any) -> list[Edit]:
        """Lets a constructor of objects of the thread make temporary ones too, which are nowhere to clang."""
        end = self._end_of_parameters(constructor)
        if end is None:
            return []
        after = following(self._rewriting.tokens, end)
        token = self._rewriting.tokens[after] if after < len(self._rewriting.tokens) else None
        if token is None or token.text != "thread":
            return []
        return [Edit(token.offset, token.offset + len(token.text), " " * len(token.text))]

    def _end_of_parameters(self, function: Any) -> int | None:
        """The index of the ``)`` of a member function's parameters; None when it comes out of a macro."""
        tokens = self._rewriting.tokens
        index = self._rewriting.index_at(self._read.origin(function.location.offset))
        parenthesis = following(tokens, index)
        if tokens[index].text == "operator":
            # operator()(...), operator[](...), operator T(...)
            while parenthesis < len(tokens) and tokens[parenthesis].text != "(":
                parenthesis = following(tokens, parenthesis)
            after = following(tokens, parenthesis)
            if tokens[preceding(tokens, parenthesis)].text == "operator" and tokens[after].text == ")":
                parenthesis = following(tokens, after)
        is_macro = tokens[index].text in self._rewriting.macros
        if is_macro or parenthesis >= len(tokens) or tokens[parenthesis].text != "(":
            return None
        end = closing(tokens, parenthesis)
        return end if end < len(tokens) else None

    def _construct(self, error: Any) -> list[Edit]:
        """Rewrites the constructor of a vector that an error is about."""
        vectors = _VECTOR_CONVERSION.search(error.spelling)
        if _SEVERAL_ARGUMENTS not in error.spelling and not (vectors and vectors["a"] == vectors["b"]):
            return []
        parenthesis = self._constructor(error)
        if parenthesis is None or parenthesis in self._constructed:
            return []
        self._constructed.add(parenthesis)
        return construct(self._rewriting.tokens, parenthesis)

    def _constructor(self, error: Any) -> int | None:
        """The index of the ``(`` of a constructor or a declaration that an error points to the type or name of."""
        tokens = self._rewriting.tokens
        index = self._rewriting.index_at(self._read.origin(self._place(error)))
        if tokens[index].text in self._rewriting.macros or tokens[index].text.endswith("_cast"):
            return None
        while index < len(tokens) and (tokens[index].kind is Kind.NAME or tokens[index].text == "::"):
            index = following(tokens, index)
            if index < len(tokens) and tokens[index].text == "<":
                index = after_template_arguments(tokens, index)
        return index if index < len(tokens) and tokens[index].text == "(" else None


def _errors(unit: Any) -> list[Any]:
    return [diagnostic for diagnostic in unit.diagnostics if diagnostic.severity >= _ERROR]


def _is_for_bool(error: Any, *, otherwise: bool) -> bool:
    """Whether an error arose in a template's instance for bool; ``otherwise`` when it names no instance."""
    instances = [note.spelling for note in error.children if note.spelling.startswith(_INSTANCE)]
    return any(_BOOL_ARGUMENT.search(instance) for instance in instances) if instances else otherwise


def _is_of_spaces_alone(words: str, notes: Any) -> bool:
    """Whether clang alone refuses an object because of where it lies, or a list because it is one."""
    objects = _CHOICE_OF_OBJECTS.match(words)
    if objects and _QUALIFIERS.sub("", objects["a"]) == _QUALIFIERS.sub("", objects["b"]):
        return True
    for note in notes:
        copy = _COPY_FROM_CONSTANT.search(note.spelling)
        if copy and copy["a"] == copy["b"]:
            return True
        if _TEMPORARY.search(note.spelling) or _LIST_FOR_VECTOR.search(note.spelling):
            return True
    # Of an initialiser with such a copy in it, clang says no more than that; else it gives the reason.
    return _NOT_CONSTANT in words and all(note.spelling.startswith(_CONTEXT) for note in notes)


def _message(error: Any) -> str | None:
    """An error of clang in the words of Metal; None when Metal does not share it."""
    words: str = error.spelling.strip()
    if _OPENCL_ONLY.search(words):
        return None
    if _is_of_spaces_alone(words, error.children):
        return None
    vectors = _VECTOR_CONVERSION.search(words)
    if vectors:
        if vectors["a"] == vectors["b"]:
            return None
        words = f"invalid conversion {words}"
    if _THREADGROUP_VARIABLE in words:
        return THREADGROUP_VARIABLE_OUTSIDE_KERNEL
    unsupported = _UNSUPPORTED_TYPE.search(words)
    if unsupported:
        return f"'{unsupported['type']}' is not supported in Metal"
    words = _STATIC_ASSERTION.sub("", words)
    candidates = [note.spelling for note in error.children if _CANDIDATE.match(note.spelling)]
    return "; ".join((words, *candidates)) if len(candidates) <= _MOST_CANDIDATES else words


def _diagnostic(rewriting: Rewriting, problem: Problem) -> Diagnostic:
    file, line, column = rewriting.position(problem.offset, SOURCE_NAME)
    message = problem.message
    for pattern, replacement in _WORDS:
        message = pattern.sub(replacement, message)
    return Diagnostic(file, line, column, message)
