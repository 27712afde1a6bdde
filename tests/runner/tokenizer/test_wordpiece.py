"""WordPiece, worked out by hand."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from runner.tokenizer import Tokenizer, TokenizerError

Texts = Callable[..., list[str]]

CONTROL = 3
TOKENS = {"[PAD]": CONTROL, "[UNK]": CONTROL, "[CLS]": CONTROL, "[SEP]": CONTROL} | dict.fromkeys(
    ["▁un", "▁unaff", "aff", "able", "a", "▁a", "▁,", "▁!", "▁漢", "▁hello", "▁ᄒ"], 1
)


def build(**entries: object) -> Tokenizer:
    ids = {"unknown_token_id": 1, "bos_token_id": 2, "seperator_token_id": 3}
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": list(TOKENS),
            "tokenizer.ggml.token_type": list(TOKENS.values()),
        }
        | {f"tokenizer.ggml.{name}": value for name, value in (ids | entries).items()}
    )


def test_the_longest_token_wins(texts: Texts) -> None:
    """Greedy from the left: "unaff" is taken although "un" + "aff" would also do."""
    assert texts(build(), "unaffable") == [" unaff", "able"]


def test_a_word_that_cannot_be_spelt_is_unknown_as_a_whole(texts: Texts) -> None:
    assert texts(build(), "unx hello") == ["[UNK]", " hello"]


def test_punctuation_and_han_letters_are_words(texts: Texts) -> None:
    assert texts(build(), "hello,a!漢漢") == [" hello", " ,", " a", " !", " 漢", " 漢"]


def test_case_and_accents_are_dropped(texts: Texts) -> None:
    assert texts(build(), "HÉLLÓ Ä") == [" hello", " a"]


def test_accents_stay_where_the_file_says_so(texts: Texts) -> None:
    tokenizer = build(**{"normalizer.lowercase": False})
    assert texts(tokenizer, "ä hello HELLO") == ["[UNK]", " hello", "[UNK]"]


def test_a_hangul_syllable_is_reduced_to_its_first_letter(texts: Texts) -> None:
    assert texts(build(), "한") == [" ᄒ"]


def test_cls_and_sep_stand_around_every_text() -> None:
    tokenizer = build()
    ids = tokenizer.encode("hello", add_special=True, parse_special=True)
    assert [tokenizer.token_text(i) for i in ids] == ["[CLS]", " hello", "[SEP]"]


def test_decoded_text_loses_the_spaces_before_punctuation() -> None:
    tokenizer = build()
    ids = tokenizer.encode("hello, a!", add_special=False, parse_special=False)
    assert tokenizer.decode(ids) == " hello, a!"


@pytest.mark.parametrize("length", [100, 199, 200, 201, 900])
def test_words_of_any_length_are_spelt(texts: Texts, length: int) -> None:
    assert texts(build(), "a" * length) == [" a"] + ["a"] * (length - 1)
    assert texts(build(), "a" * length + "x") == ["[UNK]"]


def test_a_very_long_word_takes_linear_time() -> None:
    """The library alone would need hours for this."""
    start = time.process_time()
    ids = build().encode("a" * 100_000, add_special=False, parse_special=False)
    assert len(ids) == 100_000
    assert time.process_time() - start < 5


def test_an_unknown_token_is_needed() -> None:
    with pytest.raises(TokenizerError, match="unknown_token_id is missing"):
        Tokenizer.from_metadata({"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["▁a", "b"]})
