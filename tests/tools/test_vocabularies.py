"""Synthetic vocabularies: whole, consistent, and of the size asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tools.vocabularies import (
    byte_alphabet,
    chatml_vocabulary,
    gemma_vocabulary,
    llama3_vocabulary,
    spm_vocabulary,
    wordpiece_vocabulary,
)

_Make = Callable[[int], dict[str, Any]]
_ALL: list[_Make] = [
    chatml_vocabulary,
    gemma_vocabulary,
    llama3_vocabulary,
    spm_vocabulary,
    wordpiece_vocabulary,
]


@pytest.mark.parametrize("num_tokens", [512, 3000])
@pytest.mark.parametrize("make", _ALL, ids=lambda f: f.__name__)
def test_tokens_are_distinct_and_as_many_as_asked_for(make: _Make, num_tokens: int) -> None:
    metadata = make(num_tokens)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == len(tokens) == num_tokens
    assert len(metadata["tokenizer.ggml.token_type"]) == num_tokens
    for key, value in metadata.items():
        assert not key.endswith("_token_id") or 0 <= value < num_tokens
    assert make(num_tokens)["tokenizer.ggml.tokens"] == tokens


@pytest.mark.parametrize("make", [chatml_vocabulary, llama3_vocabulary], ids=lambda f: f.__name__)
def test_every_merge_is_of_two_tokens_that_came_before_and_makes_a_token(make: _Make) -> None:
    metadata = make(2000)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert tokens[:256] == byte_alphabet()
    known = set(tokens[:256])
    for merge in metadata["tokenizer.ggml.merges"]:
        left, right = merge.split(" ")
        assert {left, right} <= known
        known.add(left + right)
    assert known == set(tokens) - {token for token in tokens if token.startswith("<|")}


@pytest.mark.parametrize(
    ("make", "key", "token"),
    [
        (llama3_vocabulary, "bos", "<|begin_of_text|>"),
        (llama3_vocabulary, "eos", "<|eot_id|>"),
        (chatml_vocabulary, "eos", "<|im_end|>"),
        (chatml_vocabulary, "padding", "<|endoftext|>"),
        (spm_vocabulary, "bos", "<s>"),
        (spm_vocabulary, "eos", "</s>"),
        (gemma_vocabulary, "bos", "<bos>"),
        (gemma_vocabulary, "eot", "<end_of_turn>"),
        (wordpiece_vocabulary, "bos", "[CLS]"),
        (wordpiece_vocabulary, "eos", "[SEP]"),
    ],
)
def test_special_tokens_are_where_the_metadata_says(make: _Make, key: str, token: str) -> None:
    metadata = make(600)
    index = metadata[f"tokenizer.ggml.{key}_token_id"]
    assert metadata["tokenizer.ggml.tokens"][index] == token
    assert metadata["tokenizer.ggml.token_type"][index] == 3


def test_a_vocabulary_too_small_for_its_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="of 100 tokens was asked for; this kind needs 261"):
        llama3_vocabulary(100)
