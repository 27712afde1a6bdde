"""Vocabularies small enough to work out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from runner.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

Build = Callable[..., Tokenizer]


def metadata_of(model: str, tokens: Mapping[str, int] | Sequence[str], **entries: Any) -> dict[str, Any]:
    """``tokens``: texts, or texts and their types."""
    types = list(tokens.values()) if isinstance(tokens, Mapping) else [NORMAL] * len(tokens)
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        **{
            f"tokenizer.ggml.{name}" if "_dot_" not in name else name.replace("_dot_", "."): value
            for name, value in entries.items()
        },
    }


@pytest.fixture
def bpe() -> Build:
    """A GPT-2 vocabulary of tokens and merges; nothing is added to a text unless it is asked for."""

    def build(tokens: Mapping[str, int] | Sequence[str], merges: Sequence[str] = (), **entries: Any) -> Tokenizer:
        return Tokenizer.from_metadata(metadata_of("gpt2", tokens, merges=list(merges), **{"pre": "gpt-2"} | entries))

    return build


@pytest.fixture
def spm() -> Build:
    """A SentencePiece vocabulary of tokens and scores, behind <unk>, <s>, </s> and the 256 bytes (ids 3 to 258)."""

    def build(scores: Mapping[str, float], types: Mapping[str, int] | None = None, **entries: Any) -> Tokenizer:
        tokens = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
        tokens |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
        tokens |= dict.fromkeys(scores, NORMAL) | dict(types or {})
        all_scores = np.array([scores.get(token, 0.0) for token in tokens], np.float32)
        return Tokenizer.from_metadata(metadata_of("llama", tokens, scores=all_scores, **entries))

    return build


@pytest.fixture
def texts() -> Callable[[Tokenizer, str], list[str]]:
    """The texts of the tokens of a plain text: easier to read than ids."""

    def tokens_of(tokenizer: Tokenizer, text: str, **options: bool) -> list[str]:
        ids = tokenizer.encode(text, **{"add_special": False, "parse_special": False} | options)
        return [tokenizer.token_text(i) for i in ids]

    return tokens_of
