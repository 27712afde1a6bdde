"""What the four algorithms have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

SPACE_MARK: Final = "▁"
"""How SentencePiece writes a space inside of a token."""


class Model(Protocol):
    """One algorithm over one vocabulary. It knows plain text only; special tokens are cut out before."""

    strips_space: bool  # a text loses one leading space when decoded, as encoding put one there
    cleans_spaces: bool  # decoded text loses the spaces before punctuation

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text, each encoded as if it stood alone. Releases the GIL."""
        ...

    def piece(self, token: str) -> bytes:
        """The bytes that a normal token stands for."""
        ...


def utf8(token: str) -> bytes:
    """The exact bytes of a token that was decoded with ``surrogateescape``."""
    return token.encode("utf-8", "surrogateescape")


def unescape_spaces(token: str) -> bytes:
    return utf8(token.replace(SPACE_MARK, " "))
