"""From token ids back to text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable


class StreamDetokenizer:
    """Turns a stream of token ids into text, character by character.

    A token may end inside of a UTF-8 character; its bytes are held back until the character is whole. Bytes
    that can no longer become one give U+FFFD.
    """

    def __init__(self, piece: Callable[[int], bytes], *, strip_space: bool) -> None:
        """``piece``: the bytes of a token. ``strip_space``: the first token loses one leading space."""
        self._piece = piece
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token; "" while a character is incomplete."""
        piece = self._piece(token_id)
        if self._strip_space:
            piece = piece.removeprefix(b" ")
            self._strip_space = False
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What remains at the end: U+FFFD for an incomplete character, else "". The next push starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


_SPACE_BEFORE_PUNCTUATION = re.compile(" (?=[?!.,])")
_APOSTROPHE_BETWEEN_SPACES = re.compile(" ' ")
_SPACE_BEFORE_CONTRACTION = re.compile(" (?='(?:s|m|re|ve))")


def clean_spaces(text: str) -> str:
    """Removes the spaces that stand where a word list had none: before punctuation and English contractions."""
    text = _SPACE_BEFORE_PUNCTUATION.sub("", text)
    text = _APOSTROPHE_BETWEEN_SPACES.sub("'", text)
    return _SPACE_BEFORE_CONTRACTION.sub("", text)
