"""WordPiece (``tokenizer.ggml.model`` = bert).

GGUF files write a token that begins a word with "▁" in front and one that continues it without; the original
vocabularies write "##" before the latter. Text is prepared as llama.cpp does it: every letter is reduced to the
first code point of its canonical decomposition, and marks are dropped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tokenizers import models, normalizers, pre_tokenizers

from runner.tokenizer.backend import Backend, library_errors
from runner.tokenizer.errors import TokenizerError
from runner.tokenizer.model import SPACE_MARK, unescape_spaces
from runner.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, flag

_CONTINUED: Final = "##"
_MAX_FAST_WORD: Final = 200
"""Letters of a word up to which the library matches: its time grows with the cube of a word's length."""

# Nothing in here ends a word for certain, so a run of this length may be a word that is too long.
_LONG_RUN: Final = re.compile(
    rf"[^ \t\n\r!-/:-@\[-`{{-~\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]{{{_MAX_FAST_WORD + 1},}}"
)


class WordPiece:
    """Longest token first, word by word; a word that cannot be spelt is one unknown token."""

    strips_space = False
    cleans_spaces = True

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, Any], unknown_id: int | None) -> None:
        """Raises TokenizerError where there is no unknown token, or what the library refuses."""
        if unknown_id is None:
            raise TokenizerError(f"{PREFIX}unknown_token_id is missing, and token 100 does not exist")
        lowercase = flag(metadata, "normalizer.lowercase", True)
        strip_accents = flag(metadata, "normalizer.strip_accents", lowercase)
        self._letters = _FirstOfDecomposition() if strip_accents else None
        self._unknown = unknown_id
        self._spelling = _spelling(vocabulary)
        self._longest = max(map(len, self._spelling))
        self._normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=lowercase
        )
        self._pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        unknown = _spell(vocabulary.speakable()[0][unknown_id], int(vocabulary.types[unknown_id]))
        self._spelling[unknown] = unknown_id
        with library_errors("the vocabulary cannot be used for WordPiece"):
            self._backend = Backend(
                models.WordPiece(
                    self._spelling,
                    unk_token=unknown,
                    # Lower case may be longer than upper case, by a factor below 4.
                    max_input_chars_per_word=4 * _MAX_FAST_WORD,
                ),
                normalizer=self._normalizer,
                pre_tokenizer=self._pre_tokenizer,
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self._letters is not None:
            texts = [text if text.isascii() else text.translate(self._letters) for text in texts]
        if not any(_LONG_RUN.search(text) for text in texts):
            return self._backend.encode(texts)
        return [self._encode_long(text) for text in texts]

    def piece(self, token: str) -> bytes:
        return unescape_spaces(token)

    def _encode_long(self, text: str) -> list[int]:
        """The same for words of any length, in time that grows with the length."""
        ids: list[int] = []
        with library_errors("a text could not be cut into words"):
            words = self._pre_tokenizer.pre_tokenize_str(self._normalizer.normalize_str(text))
        for word, _ in words:
            ids += self._match(word) or [self._unknown]
        return ids

    def _match(self, word: str) -> list[int] | None:
        ids = []
        start = 0
        while start < len(word):
            prefix = _CONTINUED if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                if (found := self._spelling.get(prefix + word[start:end])) is not None:
                    ids.append(found)
                    start = end
                    break
            else:
                return None
        return ids


class _FirstOfDecomposition(dict[int, int | None]):
    """For ``str.translate``: the first code point of a letter's decomposition, None for a mark. Grows as needed."""

    def __missing__(self, letter: int) -> int | None:
        first = unicodedata.normalize("NFD", chr(letter))[0]
        self[letter] = None if unicodedata.category(first)[0] == "M" else ord(first)
        return self[letter]


def _spelling(vocabulary: Vocabulary) -> dict[str, int]:
    """Token ids by their original spelling."""
    tokens = vocabulary.speakable()[0]
    return {
        _spell(token, kind): i for i, (token, kind) in enumerate(zip(tokens, vocabulary.types.tolist(), strict=True))
    }


def _spell(token: str, kind: int) -> str:
    """ "▁hello" → "hello", "ing" → "##ing", "[CLS]" as it is."""
    if kind == TokenType.CONTROL:
        return token
    return token[len(SPACE_MARK) :] if token.startswith(SPACE_MARK) else _CONTINUED + token
