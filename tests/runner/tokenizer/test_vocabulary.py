"""What is wrong with a file is said, and nothing else happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.tokenizer import Tokenizer, TokenizerError

GOOD: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "▁a"],
    "tokenizer.ggml.token_type": np.array([2, 3, 3, 1, 1, 1], np.int32),
    "tokenizer.ggml.scores": np.array([0, 0, 0, -3, -2, -1], np.float32),
}


def test_the_good_one_is_good() -> None:
    tokenizer = Tokenizer.from_metadata(GOOD)
    assert tokenizer.encode("a", add_special=True, parse_special=True) == [1, 5]
    assert (tokenizer.num_tokens, tokenizer.bos_id, tokenizer.eos_id) == (6, 1, 2)
    assert (tokenizer.add_bos, tokenizer.add_eos) == (True, False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "rwkv", r"model is 'rwkv', known are: bert, gemma4, gpt2, llama, t5"),
        ("model", 3, "model is 3"),
        ("tokens", None, "tokens is missing"),
        ("tokens", [], "tokens is empty"),
        ("tokens", "abc", "tokens is a str"),
        ("tokens", np.arange(6), "tokens is a ndarray"),
        ("tokens", ["a", "b", "c", "d", "e", "a"], "'a' twice, as 0 and as 5"),
        ("token_type", np.array([1, 2], np.int32), "token_type has 2 entries, but there are 6 tokens"),
        ("token_type", np.zeros((2, 3), np.int32), "not an array of numbers"),
        ("scores", np.zeros(7, np.float32), "scores has 7 entries, but there are 6 tokens"),
        ("scores", np.array([0, 0, 0, 0, np.inf, 0]), "inf at token 4"),
        ("scores", ["a"] * 6, "not an array of numbers"),
        ("scores", [[1], [1, 2]], "not an array of numbers"),
        ("bos_token_id", "one", "bos_token_id is 'one'"),
        ("add_bos_token", 1, "add_bos_token is 1: true or false is needed"),
        ("add_eos_token", "yes", "add_eos_token is 'yes'"),
    ],
)
def test_what_is_wrong_is_said(key: str, value: object, message: str) -> None:
    metadata = GOOD | {f"tokenizer.ggml.{key}": value}
    if value is None:
        del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_metadata(metadata)


def test_a_token_to_add_must_exist() -> None:
    tokens = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.merges": []}
    with pytest.raises(TokenizerError, match="the file has no bos token"):
        Tokenizer.from_metadata(tokens | {"tokenizer.ggml.add_bos_token": True})


def test_an_id_outside_of_the_vocabulary_counts_as_absent() -> None:
    tokenizer = Tokenizer.from_metadata(GOOD | {"tokenizer.ggml.bos_token_id": 6, "tokenizer.ggml.eos_token_id": -1})
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


def test_the_file_decides_what_is_added() -> None:
    choice = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
    assert Tokenizer.from_metadata(GOOD | choice).encode("a", add_special=True, parse_special=True) == [5, 2]


def test_empty_tokens_get_a_name() -> None:
    tokens = ["<unk>", "<s>", "</s>", "", "a", ""]
    tokenizer = Tokenizer.from_metadata(GOOD | {"tokenizer.ggml.tokens": tokens})
    assert tokenizer.token_text(3) == "[EMPTY_3]"


@pytest.mark.parametrize("model", [None, "no_vocab", "none"])
def test_without_a_vocabulary_only_ids_work(model: str | None) -> None:
    metadata = {"general.architecture": "llama", "llama.vocab_size": 100}
    metadata |= {} if model is None else {"tokenizer.ggml.model": model}
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.num_tokens == 100
    assert Tokenizer.from_metadata(metadata, num_tokens=7).num_tokens == 7
    assert (tokenizer.decode([1, 2]), tokenizer.token_bytes(5), tokenizer.detokenizer().push(3)) == ("", b"", "")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eog_ids) == (None, None, frozenset())
    with pytest.raises(TokenizerError, match="no vocabulary"):
        tokenizer.encode("a", add_special=False, parse_special=False)


@pytest.mark.parametrize("text", ["ab\ud800", "\udc80", "a" * 5000 + "\udfff"])
def test_a_lone_surrogate_is_an_error_with_its_position(text: str) -> None:
    position = len(text) - 1
    with pytest.raises(TokenizerError, match=rf"U\+{ord(text[-1]):04X}, at position {position}"):
        Tokenizer.from_metadata(GOOD).encode(text, add_special=False, parse_special=True)


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.text("a▁<>\n\udc80é ", max_size=3), max_size=8),
    st.lists(st.integers(-2, 9), max_size=8).map(lambda numbers: np.array(numbers, np.int32)),
    st.lists(st.floats(width=32), max_size=8).map(lambda numbers: np.array(numbers, np.float32)),
)
_NAMES = [
    "tokens",
    "token_type",
    "scores",
    "merges",
    "pre",
    "bos_token_id",
    "eos_token_id",
    "unknown_token_id",
    "add_bos_token",
    "add_space_prefix",
    "precompiled_charsmap",
    "normalizer.lowercase",
]


@given(
    st.sampled_from(["llama", "gpt2", "gemma4", "bert", "t5"]),
    st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=4),
    st.text(max_size=8),
)
def test_any_metadata_gives_a_tokenizer_or_the_one_error(model: str, entries: dict[str, object], text: str) -> None:
    metadata = GOOD | {"tokenizer.ggml.model": model, "tokenizer.ggml.merges": ["▁ a"]}
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in entries.items()}
    try:
        tokenizer = Tokenizer.from_metadata(metadata)
        ids = tokenizer.encode(text, add_special=True, parse_special=True)
    except TokenizerError:
        return
    assert all(0 <= i < tokenizer.num_tokens for i in ids)
    tokenizer.decode(range(tokenizer.num_tokens))
