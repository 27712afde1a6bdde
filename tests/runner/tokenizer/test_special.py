"""Special tokens: where text is cut, and what ends a generation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.tokenizer import Tokenizer
from runner.tokenizer.special import Partition, Strip

Build = Callable[..., Tokenizer]
Texts = Callable[..., list[str]]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
LETTERS = list("<>/|abcdehilmnorstux_▁0")


def split(text: str, *tokens: str, **strip: frozenset[str]) -> list[str | int]:
    return Partition({token: i for i, token in enumerate(tokens)}, Strip(**strip)).split(text)


def test_text_is_cut_at_tokens() -> None:
    assert split("x<a>y<b>", "<a>", "<b>") == ["x", 0, "y", 1]
    assert split("plain", "<a>") == ["plain"]
    assert split("", "<a>") == []
    assert split("<a><a>", "<a>") == [0, 0]


def test_the_longer_token_wins() -> None:
    assert split("<ab>", "<a", "<ab>") == [1]
    assert split("x", "x", "xy") == [0]


def test_a_longer_token_wins_even_where_a_shorter_one_begins_before_it() -> None:
    """llama.cpp looks for the longest token in the whole text first."""
    assert split("ab<cd>", "b<c", "<cd>") == ["ab", 1]


def test_length_is_counted_in_bytes() -> None:
    assert split("xé", "x", "xé", "é") == [1]
    assert split("abéé", "ab", "béé") == ["a", 1]


def test_spaces_are_swallowed_where_a_token_does_so() -> None:
    assert split("a \n<m> b", "<m>", left=frozenset({"<m>"})) == ["a", 0, " b"]
    assert split("a <m> \n b", "<m>", right=frozenset({"<m>"})) == ["a ", 0, "b"]
    assert split(" <m>  ", "<m>", left=frozenset({"<m>"}), right=frozenset({"<m>"})) == [0]
    assert split("<m>\u00a0b", "<m>", right=frozenset({"<m>"})) == [0, "\u00a0b"]


@given(st.text("ab<>", max_size=12), st.lists(st.text("ab<>", min_size=1, max_size=4), unique=True, max_size=5))
def test_nothing_is_lost(text: str, tokens: list[str]) -> None:
    pieces = split(text, *tokens)
    assert "".join(tokens[piece] if isinstance(piece, int) else piece for piece in pieces) == text
    assert not any(token in piece for piece in pieces if isinstance(piece, str) for token in tokens)


def test_control_tokens_are_found_only_when_asked_for_and_user_defined_ones_always(bpe: Build, texts: Texts) -> None:
    tokens = dict.fromkeys(LETTERS, NORMAL) | {"<a>": CONTROL, "<b>": USER_DEFINED, "<u>": UNKNOWN}
    tokenizer = bpe(tokens)
    assert texts(tokenizer, "<a><b><u>") == ["<", "a", ">", "<b>", "<", "u", ">"]
    assert texts(tokenizer, "<a><b><u>", parse_special=True) == ["<a>", "<b>", "<u>"]


def test_a_token_that_looks_like_control_is_control(bpe: Build, texts: Texts) -> None:
    """Some files call <|im_end|> normal; its text decides."""
    tokenizer = bpe(dict.fromkeys([*LETTERS, "<|im_end|>", "<|fim_prefix|>"], NORMAL))
    assert texts(tokenizer, "a<|im_end|><|fim_prefix|>", parse_special=True) == ["a", "<|im_end|>", "<|fim_prefix|>"]
    assert len(texts(tokenizer, "<|im_end|>")) == len("<|im_end|>")


def end_tokens(tokenizer: Tokenizer) -> set[str]:
    return {tokenizer.token_text(i) for i in tokenizer.eog_ids}


def test_generation_ends_by_metadata_and_by_text(bpe: Build) -> None:
    tokens = ["a", "<|eot_id|>", "<stop>", "<message>", "<turn>", "<|file_sep|>"]
    tokenizer = bpe(tokens, eos_token_id=2, eot_token_id=4, eom_token_id=3)
    assert end_tokens(tokenizer) == {"<|eot_id|>", "<stop>", "<message>", "<turn>", "<|file_sep|>"}


def test_an_id_outside_of_the_vocabulary_is_no_end(bpe: Build) -> None:
    assert bpe(["a", "b"], eos_token_id=2, eot_token_id=99).eog_ids == frozenset()


def test_harmony_closes_every_message_with_end(bpe: Build, texts: Texts) -> None:
    """gpt-oss: <|end|> goes on, <|return|> and <|call|> stop, and the markers are ordinary text."""
    tokens = dict.fromkeys(["a", "<|end|>", "<|return|>", "<|call|>", "<|channel|>"], CONTROL)
    tokenizer = bpe(tokens, eos_token_id=2)
    assert end_tokens(tokenizer) == {"<|return|>", "<|call|>"}
    assert texts(tokenizer, "<|channel|><|end|>") == ["<|channel|>", "<|end|>"]
    assert end_tokens(bpe(["a", "<|end|>", "<|return|>"], eos_token_id=2)) == {"<|end|>", "<|return|>"}


def test_slash_s_is_html_for_gemma4(bpe: Build) -> None:
    assert end_tokens(bpe(["a", "</s>", "<|tool_response>"], eos_token_id=0)) == {"a", "<|tool_response>"}
    assert end_tokens(bpe(["a", "</s>"], eos_token_id=0)) == {"a", "</s>"}


@pytest.mark.parametrize(("name", "expected"), [("Phi-3 mini", ["<x>", "a"]), ("Phi-2", ["<x>", " ", "a"])])
def test_phi3_tokens_swallow_the_spaces_after_them(bpe: Build, texts: Texts, name: str, expected: list[str]) -> None:
    tokenizer = bpe({"a": NORMAL, "Ġ": NORMAL, "<x>": CONTROL}, general_dot_name=name)
    assert texts(tokenizer, "<x> a", parse_special=True) == expected


def test_the_mask_of_jina_swallows_the_spaces_before_it(bpe: Build, texts: Texts) -> None:
    tokenizer = bpe({"a": NORMAL, "Ġ": NORMAL, "<mask>": CONTROL}, pre="jina-v2-code")
    assert texts(tokenizer, "a <mask>", parse_special=True) == ["a", "<mask>"]
