"""Items of the demo model: sentences out of docstrings."""

from __future__ import annotations

import re
import textwrap

import pytest

from demo.data import Item, belongs_to, first_sentence, import_quietly, members, signature_of


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("Return the sum of the values. More text.", "Return the sum of the values."),
        ("Spread over\n    two lines. Rest.", "Spread over two lines."),
        ("f(x, y) -> int\n\nAdd the two numbers given. Rest.", "Add the two numbers given."),
        ("f(x) -- Double the number given. Rest.", "Double the number given."),
        ("Too short. So it goes on. Rest.", "Too short. So it goes on."),
        ("No full stop at the end of this\n\nSecond paragraph.", "No full stop at the end of this"),
        (None, ""),
        ("", ""),
    ],
)
def test_first_sentence(doc: str | None, sentence: str) -> None:
    assert first_sentence(doc) == sentence


def test_a_sentence_is_never_longer_than_its_limit() -> None:
    assert len(first_sentence("word " * 200)) <= 220


def test_a_function_has_its_signature_and_sentence() -> None:
    found = dict(members("textwrap", textwrap))
    assert found["textwrap.dedent"] == Item("function", first_sentence(textwrap.dedent.__doc__), "(text)")
    assert found["textwrap.TextWrapper"].kind == "class"
    assert found["textwrap.TextWrapper.wrap"].kind == "method"


def test_imported_names_are_left_to_their_own_module() -> None:
    assert not belongs_to(re.compile, "textwrap")
    assert belongs_to(textwrap.wrap, "textwrap")


def test_a_signature_that_names_an_address_is_left_out() -> None:
    def function(default: object = object()) -> None: ...

    assert signature_of(function) == ""


def test_a_module_that_is_not_there_is_none() -> None:
    assert import_quietly("no_module_of_this_name") is None
