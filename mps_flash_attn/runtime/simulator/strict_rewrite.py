"""Turns Metal text into text that clang reads as C++ for OpenCL, remembering where everything came from.

Most of Metal is a matter of declarations and macros (``csrc/strict/metal_declarations.h``). This module does what
those cannot: attributes, constructors of vectors, threadgroup variables, literals. No edit adds or removes a line.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from ..translation.tokens import Kind, Token, closing, following, preceding, tokenize

__all__ = [
    "PARAMETER_ATTRIBUTES",
    "THREADGROUP_VARIABLE_OUTSIDE_KERNEL",
    "VECTORS",
    "Edit",
    "Problem",
    "Rewriting",
    "Rewritten",
    "after_template_arguments",
    "apply",
    "construct",
    "rewrite",
    "vector_constructors",
]

NO_SUCH_HEADER = "is no header of Metal; a text's own headers are to be put in place first"
THREADGROUP_VARIABLE_OUTSIDE_KERNEL = (
    "variables in the threadgroup address space cannot be declared in a function that is no kernel; "
    "declare it in the kernel and pass a pointer"
)

_GRID_POSITIONS = (
    "thread_position_in_grid",
    "thread_position_in_threadgroup",
    "threadgroup_position_in_grid",
    "threadgroups_per_grid",
    "threads_per_grid",
    "threads_per_threadgroup",
    "dispatch_threads_per_threadgroup",
    "grid_origin",
    "grid_size",
)
_INDICES = (
    "dispatch_quadgroups_per_threadgroup",
    "dispatch_simdgroups_per_threadgroup",
    "quadgroup_index_in_threadgroup",
    "quadgroups_per_threadgroup",
    "simdgroup_index_in_threadgroup",
    "simdgroups_per_threadgroup",
    "thread_execution_width",
    "thread_index_in_quadgroup",
    "thread_index_in_simdgroup",
    "thread_index_in_threadgroup",
    "threads_per_simdgroup",
)
_BINDINGS = ("buffer", "sampler", "stage_in", "texture", "threadgroup")

PARAMETER_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_BINDINGS, ()),
    **dict.fromkeys(_GRID_POSITIONS, ("ushort", "uint", "ushort2", "uint2", "ushort3", "uint3")),
    **dict.fromkeys(_INDICES, ("ushort", "uint")),
}
"""The attributes of a kernel's parameters and the types that each takes; none means that the type has other rules."""

_ELEMENTS = ("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "half", "bfloat", "float")
VECTORS = frozenset(f"{element}{n}" for element in _ELEMENTS for n in (2, 3, 4))

_INCLUDE = re.compile(r'#\s*include\s*(?P<header><[^>\n]*>|"[^"\n]*")?')
_METAL_HEADER = re.compile(r"<(metal_\w+|simd/\w+\.h|metal/\w+)>")
_BFLOAT_LITERAL = re.compile(r"(?!0[xX])(?P<digits>[0-9.]+(?:[eE][+-]?[0-9]+)?)(?:bf|BF)")
_LONG_FLOAT_LITERAL = re.compile(r"(?!0[xX])[0-9]*(?:\.[0-9]*|[0-9](?=[eE]))(?:[eE][+-]?[0-9]+)?[lL]")
_LONG_LONG_LITERAL = re.compile(r"[0-9][0-9a-fA-FxX']*(?:[uU]?(?:ll|LL)|(?:ll|LL)[uU])")
_LINE = re.compile(r'#\s*(?:line\s+)?(?P<line>[0-9]+)(?:\s+"(?P<file>[^"]*)")?')
_DEFINE = re.compile(r"#\s*define\s+(?P<name>\w+)")
_SPECIFIERS = frozenset({"const", "constexpr", "static", "volatile"})


@dataclass(frozen=True)
class Edit:
    """Characters ``start`` to ``end`` of the Metal text become ``text``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Problem:
    """Something that Metal forbids, ``offset`` characters into the Metal text."""

    offset: int
    message: str


@dataclass
class Rewriting:
    """What ``rewrite`` found.

    Attributes:
        tokens: of the Metal text.
        edits: what to change.
        problems: what needs no parser to be rejected.
        threadgroup_variables: offsets of the names of variables in threadgroup memory.
        macros: the names that the text defines as macros.
        erased: what of the text clang is not to read.
    """

    tokens: list[Token]
    edits: list[Edit] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    threadgroup_variables: set[int] = field(default_factory=set)
    macros: set[str] = field(default_factory=set)
    erased: list[range] = field(default_factory=list)
    _lines: list[tuple[int, int, str | None]] = field(default_factory=list)  # #line: where, which line, which file

    def position(self, offset: int, file: str) -> tuple[str, int, int]:
        """File, line and column of an offset of the Metal text; ``file`` where no ``#line`` directive names one."""
        token = self.tokens[self.index_at(offset)]
        before = "".join(t.text for t in self.tokens if t.line == token.line and t.offset < token.offset)
        within = token.text[: offset - token.offset]
        physical = line = token.line + within.count("\n")
        column = len((before + within).rpartition("\n")[2]) + 1
        for directive, number, name in self._lines:
            if directive >= physical:
                break
            line = number + physical - directive - 1
            file = name if name is not None else file
        return file, line, column

    def index_at(self, offset: int) -> int:
        """The index of the token that covers an offset of the Metal text."""
        return bisect_right(self.tokens, offset, key=lambda token: token.offset) - 1


@dataclass(frozen=True)
class Rewritten:
    """A text after edits.

    Attributes:
        text: what clang reads.
    """

    text: str
    _starts: tuple[int, ...]  # of the pieces, in `text`
    _origins: tuple[tuple[int, bool], ...]  # where each piece begins in the Metal text; whether it was copied

    def origin(self, offset: int) -> int:
        """The offset in the Metal text of what stands at ``offset``; of an edit, where it was made."""
        piece = bisect_right(self._starts, offset) - 1
        origin, copied = self._origins[piece]
        return origin + (offset - self._starts[piece] if copied else 0)


def apply(text: str, edits: Iterable[Edit]) -> Rewritten:
    """Makes edits that do not overlap; those at one place, in the order given."""
    pieces: list[str] = []
    starts: list[int] = []
    origins: list[tuple[int, bool]] = []
    length = position = 0

    def append(piece: str, origin: int, copied: bool) -> None:
        nonlocal length
        if piece:
            pieces.append(piece)
            starts.append(length)
            origins.append((origin, copied))
            length += len(piece)

    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        append(text[position : edit.start], position, True)
        append(edit.text, edit.start, False)
        position = edit.end
    append(text[position:], position, True)
    append("\n", len(text), False)  # so that no offset is past the last piece
    return Rewritten("".join(pieces), tuple(starts), tuple(origins))


def rewrite(text: str) -> Rewriting:
    """Finds what to change in a Metal text before clang reads it.

    Args:
        text: Metal, ASCII, of the same length as the original.
    """
    rewriting = Rewriting(tokenize(text))
    directives = _directives(rewriting.tokens)
    _preprocessor(rewriting, directives)
    _attributes(rewriting)
    _numbers(rewriting)
    _threadgroup_variables(rewriting, directives)
    return rewriting


def construct(tokens: Sequence[Token], parenthesis: int) -> list[Edit]:
    """Makes one argument of those of a vector's constructor.

    Args:
        tokens: of the Metal text.
        parenthesis: the index of the ``(``.
    """
    end = closing(tokens, parenthesis)
    if end == len(tokens) or following(tokens, parenthesis) == end:
        return []
    inside = tokens[parenthesis].offset + 1
    return [Edit(inside, inside, "__metal_construct("), Edit(tokens[end].offset, tokens[end].offset, ")")]


def _blank(tokens: Sequence[Token]) -> list[Edit]:
    """Replaces tokens by spaces."""
    return [Edit(t.offset, t.offset + len(t.text), " " * len(t.text)) for t in tokens if not t.is_blank]


def _directives(tokens: Sequence[Token]) -> list[range]:
    """The indices of the tokens of each preprocessor directive."""
    directives = []
    index = 0
    while index < len(tokens):
        before = index - 1
        while before >= 0 and tokens[before].is_blank and tokens[before].kind is not Kind.NEWLINE:
            before -= 1
        if tokens[index].text == "#" and (before < 0 or tokens[before].kind is Kind.NEWLINE):
            end = index
            while end < len(tokens) and tokens[end].kind is not Kind.NEWLINE:
                end += 1
            directives.append(range(index, end))
            index = end
        index += 1
    return directives


def _preprocessor(rewriting: Rewriting, directives: Sequence[range]) -> None:
    for directive in directives:
        tokens = rewriting.tokens[directive.start : directive.stop]
        written = "".join(token.text for token in tokens)
        if define := _DEFINE.match(written):
            rewriting.macros.add(define["name"])
        if line := _LINE.match(written):
            rewriting._lines.append((tokens[0].line, int(line["line"]), line["file"]))
        include = _INCLUDE.match(written)
        if include is None:
            continue
        rewriting.edits += _blank(tokens)
        if not _METAL_HEADER.fullmatch(include["header"] or ""):
            # An error where the preprocessor gets to it; a missing file would be the last thing that clang reads.
            words = f"#error {include['header']} {NO_SUCH_HEADER}"
            rewriting.edits.append(Edit(tokens[0].offset, tokens[0].offset, words))


def _attributes(rewriting: Rewriting) -> None:
    tokens = rewriting.tokens
    for index in range(len(tokens) - 1):
        if tokens[index].text != "[" or tokens[index + 1].text != "[":
            continue
        end = closing(tokens, index)
        inner = closing(tokens, index + 1)
        if end == len(tokens) or following(tokens, inner) != end:
            continue
        place = tokens[index].offset
        names = {token.text for token in tokens[index + 2 : inner]}
        binding = next((n for n in range(index + 2, inner) if tokens[n].text in PARAMETER_ATTRIBUTES), None)
        rewriting.edits += _blank(tokens[index : end + 1])
        if "kernel" in names:
            rewriting.edits.append(Edit(place, place, "__METAL_KERNEL "))
        elif binding is not None:
            after = following(tokens, binding)
            last = closing(tokens, after) if tokens[after].text == "(" else binding
            written = "".join(token.text for token in tokens[binding : last + 1] if not token.is_blank)
            rewriting.edits.append(Edit(place, place, f"__METAL_ATTRIBUTE({written}) "))
        elif "function_constant" in names:
            rewriting.edits.append(Edit(place, place, "= {} "))


def _numbers(rewriting: Rewriting) -> None:
    tokens = rewriting.tokens
    for index, token in enumerate(tokens):
        if token.kind is Kind.NUMBER:
            end = token.offset + len(token.text)
            if bfloat := _BFLOAT_LITERAL.fullmatch(token.text):
                rewriting.edits.append(Edit(token.offset, end, f"bfloat({float(bfloat['digits'])!r}f)"))
            elif _LONG_FLOAT_LITERAL.fullmatch(token.text):
                rewriting.edits.append(Edit(end - 1, end, "f"))
                rewriting.problems.append(Problem(token.offset, "'long double' is not supported in Metal"))
            elif _LONG_LONG_LITERAL.fullmatch(token.text):
                rewriting.problems.append(Problem(token.offset, "'long long' is not supported in Metal"))
        elif token.text == "long":
            after = following(tokens, index)
            if after < len(tokens) and tokens[after].text == "long":
                rewriting.problems.append(Problem(token.offset, "'long long' is not supported in Metal"))


def vector_constructors(rewriting: Rewriting, names: Collection[str]) -> list[Edit]:
    """Makes one argument of those of each constructor of a vector whose type goes by one of ``names``."""
    tokens = rewriting.tokens
    edits: list[Edit] = []
    for index, token in enumerate(tokens):
        if token.kind is not Kind.NAME or not (token.text in names or token.text == "vec"):
            continue
        before = preceding(tokens, index)
        if before >= 0 and tokens[before].text == "operator":
            continue
        if any(token.offset in erased for erased in rewriting.erased):
            continue
        parenthesis = following(tokens, index)
        if token.text == "vec":
            parenthesis = after_template_arguments(tokens, parenthesis)
        if parenthesis < len(tokens) and tokens[parenthesis].text == "(" and _has_comma(tokens, parenthesis):
            edits += construct(tokens, parenthesis)
    return edits


def after_template_arguments(tokens: Sequence[Token], index: int) -> int:
    """The index of the first token after ``<...>``, which begins at ``index``; ``len(tokens)`` when it does not."""
    if index == len(tokens) or tokens[index].text != "<":
        return len(tokens)
    depth = 0
    while index < len(tokens):
        text = tokens[index].text
        if text in "([{":
            index = closing(tokens, index)
        elif text == "<":
            depth += 1
        elif text == ">":
            depth -= 1
            if depth == 0:
                return following(tokens, index)
        elif text == ";":
            return len(tokens)
        index += 1
    return len(tokens)


def _has_comma(tokens: Sequence[Token], parenthesis: int) -> bool:
    """Whether a comma stands in the parentheses themselves, not in brackets within."""
    end = closing(tokens, parenthesis)
    index = parenthesis + 1
    while index < end:
        if tokens[index].text in "([{" and tokens[index].kind is Kind.PUNCTUATION:
            index = closing(tokens, index)
        elif tokens[index].text == ",":
            return True
        index += 1
    return False


def _threadgroup_variables(rewriting: Rewriting, directives: Sequence[range]) -> None:
    """Makes ``threadgroup T x[N];`` in a function a reference, which clang does not confine to OpenCL's kernels."""
    tokens = rewriting.tokens
    skipped = {index for directive in directives for index in directive}
    open_brackets: list[str] = []  # '(', '[', or for '{' what it holds: 'function', 'class' or 'other'
    head = 0  # where the declaration or statement begins
    index = -1
    while (index := following(tokens, index)) < len(tokens):
        if index in skipped:
            continue
        token = tokens[index]
        if token.text == "template":
            after = after_template_arguments(tokens, following(tokens, index))
            if after < len(tokens):
                index = head = preceding(tokens, after)
        elif token.kind is Kind.PUNCTUATION and token.text in "([":
            open_brackets.append(token.text)
        elif token.text == "{":
            open_brackets.append(_brace(tokens[head:index], open_brackets))
            head = index + 1
        elif token.kind is Kind.PUNCTUATION and token.text in ")]}":
            if open_brackets:
                open_brackets.pop()
            if token.text == "}":
                head = index + 1
        elif token.text == ";" and (not open_brackets or open_brackets[-1] not in "(["):
            head = index + 1
        elif token.text == "threadgroup" and open_brackets and open_brackets[-1] == "function":
            before = preceding(tokens, index)
            while before >= 0 and tokens[before].text in _SPECIFIERS:
                before = preceding(tokens, before)
            if before < 0 or tokens[before].text in ";{})":
                index = _threadgroup_declaration(rewriting, index)
                head = index + 1


def _brace(head: Sequence[Token], open_brackets: Sequence[str]) -> str:
    """What a ``{`` holds, from the tokens of its declaration before it."""
    words = [token.text for token in head if not token.is_blank]
    if not {"struct", "class", "union", "enum"}.isdisjoint(words) and words[-1] != ")":
        return "class"
    if "function" in open_brackets[-1:] or ("(" in words and "=" not in words and "namespace" not in words):
        return "function"
    return "other"


def _threadgroup_declaration(rewriting: Rewriting, index: int) -> int:
    """Rewrites the declaration whose ``threadgroup`` is at ``index``; returns the index of its ``;``."""
    tokens = rewriting.tokens
    start = index
    edits: list[Edit] = []
    names: list[Token] = []
    name: Token | None = None
    initialiser: int | None = None
    depth = 0
    while (index := following(tokens, index)) < len(tokens):
        token = tokens[index]
        if depth == 0 and token.text in (",", ";"):
            if name is None:
                return start
            if initialiser is not None:
                begin = tokens[initialiser].offset
                rewriting.edits = [edit for edit in rewriting.edits if not begin <= edit.start < token.offset]
                rewriting.erased.append(range(begin, token.offset))
                edits += _blank(tokens[initialiser:index])
            names.append(name)
            end = name.offset + len(name.text)
            edits.append(Edit(name.offset, name.offset, "(&"))
            edits.append(Edit(end, end, ")"))
            edits.append(Edit(token.offset, token.offset, " = __metal_allocate()"))
            if token.text == ";":
                rewriting.edits += edits
                rewriting.threadgroup_variables |= {name.offset for name in names}
                return index
            name = initialiser = None
        elif initialiser is None and depth == 0 and token.kind is Kind.NAME:
            name = token
        elif initialiser is None and depth == 0 and token.text in ("*", "&", "&&"):
            return start
        elif initialiser is None and depth == 0 and (token.text == "=" or token.text in "({"):
            initialiser = index
        if token.kind is Kind.PUNCTUATION and token.text in "([{":
            index = closing(tokens, index)
        elif initialiser is None and token.text in "<>":
            depth += 1 if token.text == "<" else -1
    return start
