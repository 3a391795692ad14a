"""Preprocessed Metal text as a sequence of words that can be navigated and edited in place."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from ...errors import KernelCompileError
from .preprocess import SOURCE_NAME
from .tokens import Kind, Token, tokenize

__all__ = ["MetalText"]

_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_MARKER = re.compile(r'#\s*(?:line\s+)?(\d+)(?:\s+"([^"]*)")?')


class MetalText:
    """A text whose tokens, but for blanks and directives, are addressed by their index.

    Edits change what ``text`` returns and nothing else; they keep all line breaks.

    Args:
        text: what the C preprocessor left.

    Attributes:
        words: the tokens.
        kinds: what they are.
        closing: for each opening bracket, the bracket that closes it; ``<`` counts as none.
        opening: the reverse.

    Raises:
        KernelCompileError: brackets do not match.
    """

    def __init__(self, text: str) -> None:
        self._tokens = _join_directives(tokenize(text))
        self._places = [place for place, token in enumerate(self._tokens) if not token.is_blank]
        self._edited = [token.text for token in self._tokens]
        self.words = [self._tokens[place].text for place in self._places]
        self.kinds = [self._tokens[place].kind for place in self._places]
        self._marker_places, self._marker_positions = self._find_markers()
        self.closing = self._match_brackets()
        self.opening = {closing: opening for opening, closing in self.closing.items()}

    def is_name(self, index: int) -> bool:
        """Whether a token is an identifier or a keyword."""
        return self.kinds[index] is Kind.NAME

    # Places

    def position(self, index: int) -> tuple[str, int]:
        """File and line of a token, as ``#line`` directives say."""
        place = self._places[index]
        file, difference = self._marker_positions[bisect_right(self._marker_places, place) - 1]
        return file, self._tokens[place].line + difference

    def error(self, index: int, message: str) -> KernelCompileError:
        """An error that names a token's place."""
        file, line = self.position(min(index, len(self.words) - 1))
        return KernelCompileError(f"{file}:{line}: error: {message}")

    def line_directive(self, index: int) -> str:
        """A directive after which a text is on a token's line."""
        file, line = self.position(index)
        return f'#line {line} "{file}"\n'

    def _find_markers(self) -> tuple[list[int], list[tuple[str, int]]]:
        """Where ``#line`` directives are: their places, and the file and the line less the text's own after each."""
        places, positions = [-1], [(SOURCE_NAME, 0)]
        for place, token in enumerate(self._tokens):
            marker = _MARKER.match(token.text) if token.text.startswith("#") else None
            if marker is not None:
                places.append(place)
                positions.append((marker.group(2) or positions[-1][0], int(marker.group(1)) - token.line - 1))
        return places, positions

    # Structure

    def _match_brackets(self) -> dict[int, int]:
        pairs: dict[int, int] = {}
        open_ones: list[int] = []
        for index, word in enumerate(self.words):
            if self.kinds[index] is not Kind.PUNCTUATION:
                continue
            if word in _BRACKETS:
                open_ones.append(index)
            elif word in _BRACKETS.values():
                if not open_ones or _BRACKETS[self.words[open_ones[-1]]] != word:
                    raise self.error(index, f"{word!r} closes nothing")
                pairs[open_ones.pop()] = index
        if open_ones:
            raise self.error(open_ones[-1], f"{self.words[open_ones[-1]]!r} is never closed")
        return pairs

    def template_list_end(self, index: int, end: int) -> int:
        """The index of the ">" that closes the "<" at ``index``, or ``index`` if no template list starts there."""
        if not self.is_name(index - 1):
            return index
        depth = 0
        position = index
        while position < end and self.words[position] != ";":
            word = self.words[position]
            depth += {"<": 1, ">": -1}.get(word, 0)
            if depth == 0:
                return position
            position = self.closing.get(position, position) + 1
        return index

    def split(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Splits tokens ``first`` to ``last - 1`` at the commas outside of all brackets."""
        index = start = first
        while index < last:
            if self.words[index] == ",":
                yield start, index
                start = index + 1
            if self.words[index] == "<":
                index = self.template_list_end(index, last)
            index = self.closing.get(index, index) + 1
        if start < last:
            yield start, last

    def is_attribute(self, index: int) -> bool:
        """Whether ``[[`` starts at a token."""
        return self.words[index : index + 2] == ["[", "["] and self.closing[index + 1] == self.closing[index] - 1

    def attributes(self, first: int, last: int) -> dict[str, str]:
        """Attributes among tokens ``first`` to ``last - 1``: name -> argument, ``""`` without one."""
        found: dict[str, str] = {}
        index = first
        while index < last:
            if self.is_attribute(index):
                for start, end in self.split(index + 2, self.closing[index] - 1):
                    found[self.words[start]] = "".join(self.words[start + 2 : end - 1])
                index = self.closing[index]
            index += 1
        return found

    def without_attributes(self, first: int, last: int) -> list[str]:
        """Tokens ``first`` to ``last - 1`` but for attributes."""
        kept: list[str] = []
        index = first
        while index < last:
            if self.is_attribute(index):
                index = self.closing[index]
            else:
                kept.append(self.words[index])
            index += 1
        return kept

    # Edits

    def text(self) -> str:
        """The text with all edits."""
        return "".join(self._edited)

    def edited(self, index: int) -> str:
        """What a token has become."""
        return self._edited[self._places[index]]

    def is_edited(self, index: int) -> bool:
        """Whether a token is no longer what it was."""
        return self.edited(index) != self.words[index]

    def replace(self, index: int, text: str) -> None:
        """Puts other text in a token's place."""
        self._edited[self._places[index]] = text

    def erase(self, first: int, last: int) -> None:
        """Erases tokens ``first`` to ``last``."""
        for index in range(first, last + 1):
            self.replace(index, "")

    def insert_after(self, index: int, text: str) -> None:
        """Inserts text behind a token."""
        self._edited[self._places[index]] += text


def _join_directives(tokens: Sequence[Token]) -> list[Token]:
    """Makes each line that is left to the C++ compiler's preprocessor one token that is blank to everybody else."""
    result: list[Token] = []
    at_line_start = True
    index = 0
    while index < len(tokens):
        token = tokens[index]
        if at_line_start and token.text == "#":
            stop = index
            while stop < len(tokens) and tokens[stop].kind is not Kind.NEWLINE:
                stop += 1
            directive = "".join(part.text for part in tokens[index:stop])
            result.append(Token(Kind.COMMENT, directive, token.offset, token.line))
            index = stop
            continue
        at_line_start = token.kind is Kind.NEWLINE or (at_line_start and token.is_blank)
        result.append(token)
        index += 1
    return result
