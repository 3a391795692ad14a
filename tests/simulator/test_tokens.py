"""The tokenizer loses nothing and knows what is text, what is comment and which bracket closes which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mps_flash_attn.runtime.translation.tokens import Kind, closing, following, preceding, tokenize


@given(st.text(alphabet="ab1.'\"/*\\\n \t()[]{}<>=+-#é", max_size=60))
def test_tokens_join_to_the_text(text: str) -> None:
    tokens = tokenize(text)
    assert "".join(token.text for token in tokens) == text
    for token in tokens:
        assert text.startswith(token.text, token.offset)
        assert token.line == text.count("\n", 0, token.offset) + 1


def test_kinds() -> None:
    text = 'x[[a(0)]] /* "c" */ "s // \\" t" \'c\' 0.5h 1e-3f 0x1p-3f .5 1\'000 a>>=b \\\n// end'
    found = [(token.kind, token.text) for token in tokenize(text) if token.kind != Kind.SPACE]
    punctuation = [text for kind, text in found if kind is Kind.PUNCTUATION]
    assert punctuation == [*"[[()]]", ">", ">", "="]
    assert [text for kind, text in found if kind is Kind.NUMBER] == ["0", "0.5h", "1e-3f", "0x1p-3f", ".5", "1'000"]
    assert [text for kind, text in found if kind is Kind.COMMENT] == ['/* "c" */', "// end"]
    assert [text for kind, text in found if kind is Kind.STRING] == ['"s // \\" t"']
    assert [text for kind, text in found if kind is Kind.CHARACTER] == ["'c'"]


def test_brackets_and_neighbours() -> None:
    tokens = tokenize("f ( a[ (1) ], '(' ) /* ) */ ;")
    opening = following(tokens, 0)
    end = closing(tokens, opening)
    assert tokens[opening].text == "("
    assert tokens[end].text == ")"
    assert tokens[following(tokens, end)].text == ";"
    assert tokens[preceding(tokens, following(tokens, end))] is tokens[end]
    assert closing(tokenize("((a)"), 0) == len(tokenize("((a)"))
    assert preceding(tokens, 0) == -1
    with pytest.raises(ValueError, match="'f'"):
        closing(tokens, 0)
