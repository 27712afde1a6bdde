"""SentencePiece with scores, worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.tokenizer import Tokenizer, TokenizerError
from runner.tokenizer.spm import Cuts

Build = Callable[..., Tokenizer]
Texts = Callable[..., list[str]]

ABC = {"▁": -9.0, "a": -9.0, "b": -9.0, "c": -9.0}


def test_the_best_score_is_joined_first(spm: Build, texts: Texts) -> None:
    tokenizer = spm(ABC | {"ab": -2.0, "bc": -1.0})
    assert texts(tokenizer, "abc") == [" ", "a", "bc"]
    tokenizer = spm(ABC | {"ab": -1.0, "bc": -2.0})
    assert texts(tokenizer, "abc") == [" ", "ab", "c"]


def test_a_token_is_reached_through_any_of_its_cuts(spm: Build, texts: Texts) -> None:
    """ "abc" is no union of "ab" here, only of "a" and "bc"."""
    tokenizer = spm(ABC | {"bc": -3.0, "abc": -4.0})
    assert texts(tokenizer, "abc") == [" ", "abc"]


def test_a_token_without_a_cut_is_not_reached(spm: Build, texts: Texts) -> None:
    tokenizer = spm(ABC | {"abc": 0.0})
    assert texts(tokenizer, "abc") == [" ", "a", "b", "c"]


def test_a_space_stands_before_every_text_and_is_taken_off_again(spm: Build) -> None:
    tokenizer = spm(ABC | {"▁a": -1.0})
    ids = tokenizer.encode("a a", add_special=False, parse_special=False)
    assert [tokenizer.token_text(i) for i in ids] == [" a", " a"]
    assert tokenizer.decode(ids) == "a a"


def test_no_space_where_the_file_says_so(spm: Build, texts: Texts) -> None:
    tokenizer = spm(ABC, add_space_prefix=False)
    assert texts(tokenizer, "ab") == ["a", "b"]
    assert tokenizer.decode(tokenizer.encode(" a", add_special=False, parse_special=False)) == " a"


def test_a_letter_without_a_token_becomes_bytes(spm: Build) -> None:
    tokenizer = spm(ABC)
    ids = tokenizer.encode("é", add_special=False, parse_special=False)
    assert [tokenizer.token_bytes(i) for i in ids] == [b" ", b"\xc3", b"\xa9"]
    assert ids[1:] == [3 + 0xC3, 3 + 0xA9]


def test_a_token_may_reach_across_a_space(spm: Build, texts: Texts) -> None:
    """Then the text must not be cut before spaces."""
    tokenizer = spm(ABC | {"a▁": -1.0, "a▁b": -2.0})
    assert texts(tokenizer, "a b") == [" ", "a b"]


def test_runs_of_spaces_stay_together(spm: Build, texts: Texts) -> None:
    tokenizer = spm(ABC | {"▁▁": -1.0, "▁▁▁▁": -2.0, "▁a": -3.0})
    assert texts(tokenizer, "a    a") == [" a", "    ", "a"]


def test_bos_is_added_but_not_doubled_in_a_prompt(spm: Build) -> None:
    tokenizer = spm(ABC)
    a = tokenizer.encode("a", add_special=False, parse_special=False)
    assert tokenizer.encode("a", add_special=True, parse_special=True) == [1, *a]
    assert tokenizer.encode("<s>a", add_special=True, parse_special=True) == [1, 1, *a]
    assert tokenizer.encode_prompt("<s>a") == tokenizer.encode_prompt("a") == [1, *a]
    assert tokenizer.encode("", add_special=True, parse_special=True) == [1]


def test_missing_scores_are_an_error() -> None:
    with pytest.raises(TokenizerError, match="scores is missing"):
        Tokenizer.from_metadata({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "a"]})


def slow_merges(tokens: list[str], scores: list[float], usable: list[bool]) -> list[tuple[str, str]]:
    """What ``Cuts.merges`` does, by looking at every cut."""
    known = set(tokens)
    rows = [
        (-scores[i], i, length, (token[:length], token[length:]))
        for i, token in enumerate(tokens)
        if usable[i]
        for length in range(1, len(token))
        if token[:length] in known and token[length:] in known
    ]
    return [pair for *_, pair in sorted(rows)]


def test_cuts_are_all_that_there_are() -> None:
    generator = random.Random(1)
    tokens = sorted({"".join(generator.choices("ab▁é😀", k=generator.randint(1, 6))) for _ in range(3000)})
    scores = [float(generator.randint(-50, 0)) for _ in tokens]
    usable = [generator.random() > 0.1 for _ in tokens]
    cuts = Cuts(tokens, np.array(scores), np.array(usable))
    merges = cuts.merges({token: i for i, token in enumerate(tokens)})
    assert len(merges) > 1000
    assert list(merges) == slow_merges(tokens, scores, usable)
    assert cuts.reach_across_spaces()


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    scores = ABC | {"▁a": -1.0, "▁▁": -2.0, "bc": -1.5, "th": -2.0, "t": -9.0, "h": -9.0}
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *bytes_, *scores],
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(scores),
            "tokenizer.ggml.scores": [0.0] * 259 + list(scores.values()),
        }
    )
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_letters_that_are_only_bytes_still_join_into_a_token() -> None:
    names = ["<unk>", "<s>", "</s>", "a", "\n\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3, 1, 1, *[6] * 256]
    scores = [0.0, 0.0, 0.0, -1.0, -2.0, *[0.0] * 256]
    tokenizer = Tokenizer.from_metadata(
        {
            "general.architecture": "llama",
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": names,
            "tokenizer.ggml.token_type": np.array(types, np.int32),
            "tokenizer.ggml.scores": np.array(scores, np.float32),
            "tokenizer.ggml.add_space_prefix": False,
        }
    )
    ids = tokenizer.encode("a\n\n\na", add_special=False, parse_special=False)
    assert [names[i] for i in ids] == ["a", "\n\n", "<0x0A>", "a"]
    assert tokenizer.decode(ids) == "a\n\n\na"
