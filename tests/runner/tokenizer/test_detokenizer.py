"""Back to text, all at once and token by token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.tokenizer import StreamDetokenizer, Tokenizer, TokenizerError
from runner.tokenizer.bpe import LETTER_OF_BYTE
from runner.tokenizer.detokenizer import clean_spaces

Build = Callable[..., Tokenizer]


def stream(pieces: list[bytes], *, strip_space: bool = False) -> list[str]:
    detokenizer = StreamDetokenizer(pieces.__getitem__, strip_space=strip_space)
    return [*(detokenizer.push(i) for i in range(len(pieces))), detokenizer.flush()]


def test_a_character_comes_when_it_is_whole() -> None:
    emoji = "😀".encode()
    assert stream([b"a" + emoji[:1], emoji[1:3], emoji[3:] + b"b"]) == ["a", "", "😀b", ""]


def test_bytes_that_are_no_character_become_one_replacement() -> None:
    assert stream([b"\xf0\x9f", b"a", b"\xff"]) == ["", "\ufffda", "\ufffd", ""]
    assert stream([b"\xf0\x9f"]) == ["", "\ufffd"]


def test_a_space_is_taken_off_once_and_only_at_the_start() -> None:
    assert stream([b"  a", b" b"], strip_space=True) == [" a", " b", ""]
    assert stream([b" a", b" b"]) == [" a", " b", ""]


def test_a_model_that_puts_a_space_first_takes_it_off_at_the_start_of_a_text(spm: Build) -> None:
    tokenizer = spm({"▁": -1.0, "a": -1.0, "▁a": -0.5})
    ids = tokenizer.encode("a a", add_special=False, parse_special=False)
    at_start, continued = tokenizer.detokenizer(at_start=True), tokenizer.detokenizer()
    assert "".join(map(at_start.push, ids)) == "a a"
    assert "".join(map(continued.push, ids)) == " a a"


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_a_stream_says_what_the_whole_says(pieces: list[bytes]) -> None:
    assert "".join(stream(pieces)) == b"".join(pieces).decode("utf-8", "replace")


@given(st.text(), st.data())
def test_no_piece_of_a_stream_breaks_a_character(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert "".join(stream(pieces)) == text


@pytest.mark.parametrize("token_id", [-1, 256, 10**9])
def test_an_id_that_does_not_exist_is_an_error(bpe: Build, token_id: int) -> None:
    tokenizer = bpe(list(LETTER_OF_BYTE.values()))
    for use in (tokenizer.token_bytes, tokenizer.token_text, tokenizer.detokenizer().push):
        with pytest.raises(TokenizerError, match=f"no token {token_id}: ids are 0 to 255"):
            use(token_id)
    with pytest.raises(TokenizerError, match=f"no token {token_id}"):
        tokenizer.decode([1, token_id])


def test_an_incomplete_character_has_a_text_for_people(bpe: Build) -> None:
    tokenizer = bpe(list(LETTER_OF_BYTE.values()))
    (first, _) = tokenizer.encode("é", add_special=False, parse_special=False)
    assert tokenizer.token_bytes(first) == b"\xc3"
    assert tokenizer.token_text(first) == "\ufffd"


@pytest.mark.parametrize(
    ("given_text", "cleaned"),
    [
        ("a , b . c ! d ?", "a, b. c! d?"),
        ("don ' t", "don't"),
        ("it 's we 're you 've i 'm", "it's we're you've i'm"),
        ("he 'll she 'd", "he 'll she 'd"),
        ("3 . 5", "3. 5"),
    ],
)
def test_spaces_before_punctuation_go(given_text: str, cleaned: str) -> None:
    assert clean_spaces(given_text) == cleaned
