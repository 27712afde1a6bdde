"""Unigram language model: the best sum of scores, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from runner.tokenizer import Tokenizer, TokenizerError

Texts = Callable[..., list[str]]

USER_DEFINED = 4
SPECIAL = {"<pad>": 3, "</s>": 3, "<unk>": 2}


def build(scores: Mapping[str, float], types: Mapping[str, int] | None = None, **entries: object) -> Tokenizer:
    tokens = SPECIAL | dict.fromkeys(scores, 1) | dict(types or {})
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "t5",
            "tokenizer.ggml.tokens": list(tokens),
            "tokenizer.ggml.token_type": list(tokens.values()),
            "tokenizer.ggml.scores": [0.0] * 3 + [scores.get(token, 0.0) for token in list(tokens)[3:]],
        }
        | {f"tokenizer.ggml.{name}": value for name, value in entries.items()}
    )


def test_the_best_sum_wins_and_not_the_longest_token(texts: Texts) -> None:
    """▁ab + c = -3 - 2 = -5, ▁a + bc = -2 - 2 = -4."""
    tokenizer = build({"▁ab": -3.0, "c": -2.0, "▁a": -2.0, "bc": -2.0})
    assert texts(tokenizer, "abc") == [" a", "bc"]
    tokenizer = build({"▁ab": -1.0, "c": -2.0, "▁a": -2.0, "bc": -2.0})
    assert texts(tokenizer, "abc") == [" ab", "c"]


def test_a_run_of_unknown_letters_is_one_unknown_token(texts: Texts) -> None:
    tokenizer = build({"▁": -1.0, "a": -1.0})
    assert texts(tokenizer, "axyza") == [" ", "a", "<unk>", "a"]


def test_eos_is_added_at_the_end() -> None:
    tokenizer = build({"▁a": -1.0})
    assert tokenizer.encode("a", add_special=True, parse_special=True) == [3, 1]
    assert tokenizer.decode([3]) == "a"


def test_control_tokens_are_no_text(texts: Texts) -> None:
    tokenizer = build({"▁": -1.0, **dict.fromkeys("</s>", -2.0)})
    assert texts(tokenizer, "</s>") == [" ", "<", "/", "s", ">"]
    assert texts(tokenizer, "</s>", parse_special=True) == ["</s>"]


def test_extra_spaces_go_where_the_file_says_so(texts: Texts) -> None:
    tokenizer = build({"▁": -5.0, "▁a": -1.0}, remove_extra_whitespaces=True)
    assert texts(tokenizer, "  a   a ") == [" a", " a"]


@pytest.mark.parametrize("charsmap", [b"", b"\xff", b"\xff\xff\xff\xff", b"\x04\x00\x00\x00ab"])
def test_a_broken_normalisation_table_is_an_error_or_does_nothing(charsmap: bytes) -> None:
    try:
        tokenizer = build({"▁a": -1.0}, precompiled_charsmap=np.frombuffer(charsmap, np.uint8))
        ids = tokenizer.encode("a", add_special=False, parse_special=False)
    except TokenizerError:
        return
    assert ids == [3]


def test_scores_must_be_finite() -> None:
    with pytest.raises(TokenizerError, match="nan at token 3"):
        build({"▁a": float("nan")})
