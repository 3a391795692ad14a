"""Splits Metal text into tokens, losing nothing.

Kernels are rewritten at the level of tokens: deep enough to leave strings and comments alone, shallow
enough to need no parser. Joining the texts of all tokens gives the input back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

__all__ = ["Kind", "Token", "closing", "following", "preceding", "tokenize"]


class Kind(Enum):
    """What a token is."""

    SPACE = "space"  # blanks, tabs, and a backslash before the end of a line
    NEWLINE = "newline"
    COMMENT = "comment"
    STRING = "string"
    CHARACTER = "character"
    NUMBER = "number"
    NAME = "name"  # identifiers and keywords
    PUNCTUATION = "punctuation"


# Kinds that mean nothing to a compiler.
_BLANK = frozenset({Kind.SPACE, Kind.NEWLINE, Kind.COMMENT})


@dataclass(frozen=True)
class Token:
    """One token of a text.

    Attributes:
        kind: what it is.
        text: its characters, exactly as written.
        offset: characters of the text before it.
        line: its line in the text, from 1. ``#line`` directives are not followed.
    """

    kind: Kind
    text: str
    offset: int
    line: int

    @property
    def is_blank(self) -> bool:
        """Whether it is white space or a comment."""
        return self.kind in _BLANK


# Brackets, angle brackets included, stay single: '>>' may close two template lists and ']]' two subscripts.
_TOKEN = re.compile(
    r"""
    (?P<comment>//(?:\\\r?\n|[^\n])*|/\*.*?(?:\*/|\Z))
  | (?P<string>(?:u8|[uUL])?"(?:\\.|[^"\\\n])*"?)
  | (?P<character>(?:u8|[uUL])?'(?:\\.|[^'\\\n])*'?)
  | (?P<number>\.?[0-9](?:[eEpP][+-]|'[0-9A-Za-z_]|[0-9A-Za-z_.])*)
  | (?P<name>[^\W\d]\w*)
  | (?P<newline>\r?\n)
  | (?P<space>(?:[^\S\n]|\\[^\S\n]*\n)+)
  | (?P<punctuation>::|->|\.\.\.|\#\#|\+\+|--|&&|\|\||[-+*/%&|^=!]=|.)
    """,
    re.VERBOSE | re.DOTALL,
)

_KINDS = {kind.value: kind for kind in Kind}
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def tokenize(text: str) -> list[Token]:
    """Splits a text. A token that the text's end cuts short (a string, a comment) is kept as it stands."""
    tokens = []
    line = 1
    for match in _TOKEN.finditer(text):
        assert match.lastgroup is not None
        token = Token(_KINDS[match.lastgroup], match.group(), match.start(), line)
        tokens.append(token)
        line += token.text.count("\n")
    return tokens


def following(tokens: Sequence[Token], index: int) -> int:
    """The index of the first token after ``index`` that is not blank; ``len(tokens)`` where there is none."""
    index += 1
    while index < len(tokens) and tokens[index].is_blank:
        index += 1
    return index


def preceding(tokens: Sequence[Token], index: int) -> int:
    """The index of the last token before ``index`` that is not blank; -1 where there is none."""
    index -= 1
    while index >= 0 and tokens[index].is_blank:
        index -= 1
    return index


def closing(tokens: Sequence[Token], index: int) -> int:
    """The index of the bracket that closes the one at ``index``.

    Args:
        tokens: a text's tokens.
        index: of a ``(``, ``[`` or ``{``.

    Returns:
        The index of its partner; ``len(tokens)`` when the text ends before it.

    Raises:
        ValueError: the token is no opening bracket.
    """
    if tokens[index].text not in _PAIRS:
        raise ValueError(f"tokens[{index}] is {tokens[index].text!r}; accepted: one of ( [ {{")
    expected = []
    for position in range(index, len(tokens)):
        token = tokens[position]
        if token.kind is not Kind.PUNCTUATION:
            continue
        if token.text in _PAIRS:
            expected.append(_PAIRS[token.text])
        elif token.text == expected[-1]:
            expected.pop()
            if not expected:
                return position
    return len(tokens)
