"""Unigram language model (``tokenizer.ggml.model`` = t5): the cut of the text with the highest sum of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from tokenizers import Regex, models, normalizers, pre_tokenizers

from runner.tokenizer.backend import Backend, library_errors
from runner.tokenizer.errors import TokenizerError
from runner.tokenizer.model import SPACE_MARK, unescape_spaces
from runner.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, flag

_NEVER_IN_TEXT: Final = frozenset({TokenType.CONTROL, TokenType.BYTE, TokenType.UNKNOWN, TokenType.UNDEFINED})


class Unigram:
    """Viterbi search over all tokens that match; runs of letters without a token are one unknown token."""

    cleans_spaces = False

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, Any], unknown_id: int | None) -> None:
        """Raises TokenizerError where scores or the unknown token are missing, or what the library refuses."""
        if unknown_id is None:
            raise TokenizerError(f"{PREFIX}unknown_token_id is missing, and token 2 does not exist")
        self.strips_space = flag(metadata, "add_space_prefix", True)
        with library_errors("the vocabulary cannot be used for Unigram"):
            self._backend = Backend(
                models.Unigram(_scored(vocabulary, unknown_id), unk_id=unknown_id, byte_fallback=False),
                normalizer=_normalizer(metadata),
                pre_tokenizer=pre_tokenizers.Metaspace(
                    replacement=SPACE_MARK, prepend_scheme="always" if self.strips_space else "never", split=False
                ),
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._backend.encode(texts)

    def piece(self, token: str) -> bytes:
        return unescape_spaces(token)


def _scored(vocabulary: Vocabulary, unknown_id: int) -> list[tuple[str, float]]:
    """Tokens and scores; a token that text never becomes gets a text that does not occur."""
    rows = zip(vocabulary.speakable()[0], vocabulary.required_scores().tolist(), vocabulary.types.tolist(), strict=True)
    return [
        (
            token if kind not in _NEVER_IN_TEXT or i == unknown_id else f"\0{i}",
            # The highest score there is (scores are logarithms), so that what a user defined is not cut up.
            0.0 if kind == TokenType.USER_DEFINED else score,
        )
        for i, (token, score, kind) in enumerate(rows)
    ]


def _normalizer(metadata: Mapping[str, Any]) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    charsmap = metadata.get(PREFIX + "precompiled_charsmap")
    if charsmap is not None:
        array = np.asarray(charsmap)
        if array.ndim != 1 or array.dtype.itemsize != 1:
            raise TokenizerError(f"{PREFIX}precompiled_charsmap is no array of bytes")
        steps.append(normalizers.Precompiled(array.tobytes()))
    if flag(metadata, "remove_extra_whitespaces", False):
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    return normalizers.Sequence(steps)
