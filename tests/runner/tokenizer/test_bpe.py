"""Byte-pair encoding, with merges worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.tokenizer import Tokenizer, TokenizerError
from runner.tokenizer.bpe import LETTER_OF_BYTE

Build = Callable[..., Tokenizer]
Texts = Callable[..., list[str]]

ALL_BYTES = list(LETTER_OF_BYTE.values())


def test_the_most_important_merge_comes_first(bpe: Build, texts: Texts) -> None:
    """ "abc": b+c is merged before a+b could be, so a stays alone."""
    tokenizer = bpe(["a", "b", "c", "ab", "bc"], ["b c", "a b"])
    assert texts(tokenizer, "abc") == ["a", "bc"]


def test_the_order_of_merges_decides(bpe: Build, texts: Texts) -> None:
    tokenizer = bpe(["a", "b", "c", "ab", "bc"], ["a b", "b c"])
    assert texts(tokenizer, "abc") == ["ab", "c"]


def test_merges_build_on_merges(bpe: Build, texts: Texts) -> None:
    tokenizer = bpe(["a", "b", "ab", "abab"], ["a b", "ab ab"])
    assert texts(tokenizer, "ababab") == ["abab", "ab"]


def test_a_space_belongs_to_the_word_after_it(bpe: Build, texts: Texts) -> None:
    """GPT-2 writes the byte 0x20 as "Ġ"; merges do not cross from one word into the next."""
    tokenizer = bpe(["a", "b", "Ġ", "Ġb", "aĠ"], ["a Ġ", "Ġ b"])
    assert texts(tokenizer, "a b") == ["a", " b"]


def test_letters_are_bytes(bpe: Build) -> None:
    tokenizer = bpe(ALL_BYTES)
    ids = tokenizer.encode("é\n", add_special=False, parse_special=False)
    assert [tokenizer.token_bytes(i) for i in ids] == [b"\xc3", b"\xa9", b"\n"]


def test_every_byte_has_one_letter() -> None:
    assert len(set(ALL_BYTES)) == 256
    assert [LETTER_OF_BYTE[byte] for byte in b"A \n\xad\xff"] == ["A", "Ġ", "Ċ", "Ń", "ÿ"]


def test_whole_word_wins_over_merges_where_the_pre_tokenizer_says_so(bpe: Build, texts: Texts) -> None:
    tokens, merges = ["a", "b", "c", "ab", "abc"], ["a b"]
    assert texts(bpe(tokens, merges, pre="gpt-2"), "abc") == ["ab", "c"]
    assert texts(bpe(tokens, merges, pre="glm4"), "abc") == ["abc"]


def test_a_merge_of_unknown_tokens_is_passed_over(bpe: Build, texts: Texts) -> None:
    """Neither "x" nor the union "bc" is a token; the other merge still works."""
    tokenizer = bpe(["a", "b", "c", "ab"], ["x a", "b c", "a b"])
    assert texts(tokenizer, "abc") == ["ab", "c"]


@pytest.mark.parametrize("broken", ["ab", "", " ", "a ", " b", "a b c"])
def test_an_entry_that_is_no_pair_is_passed_over(bpe: Build, texts: Texts, broken: str) -> None:
    tokenizer = bpe(["a", "b", "ab"], [broken, "a b"])
    assert texts(tokenizer, "ab") == ["ab"]


def test_missing_merges_are_an_error() -> None:
    metadata: dict[str, Any] = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"]}
    with pytest.raises(TokenizerError, match="merges is missing"):
        Tokenizer.from_metadata(metadata)


def test_a_token_that_is_no_utf8_keeps_its_bytes(bpe: Build) -> None:
    """Such a token is never the result of a text, but its id may come from a model."""
    token = b"\xff\xfe".decode("utf-8", "surrogateescape")
    tokenizer = bpe(["a", token])
    assert tokenizer.encode("aa", add_special=False, parse_special=False) == [0, 0]
    assert tokenizer.token_bytes(1) == b"\xff\xfe"


def test_gemma4_marks_spaces_and_falls_back_to_bytes(texts: Texts) -> None:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["a", "b", "▁", "▁b", "\n", *bytes_]
    tokenizer = Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * 5 + [6] * 256,
            "tokenizer.ggml.merges": ["▁ b"],
            "tokenizer.ggml.bos_token_id": 0,
        }
    )
    assert texts(tokenizer, "a b\n") == ["a", " b", "\n"]
    ids = tokenizer.encode("é", add_special=False, parse_special=False)
    assert [tokenizer.token_bytes(i) for i in ids] == [b"\xc3", b"\xa9"]
    assert tokenizer.add_bos  # whatever the file says


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    merges = ["Ġ a", "t h", "th e", "Ã ©", "Ġa n"]
    tokens = [*ALL_BYTES, "Ġa", "th", "the", "Ã©", "Ġan"]
    tokenizer = Tokenizer.from_metadata(
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges}
    )
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    assert tokenizer.decode(ids) == text
