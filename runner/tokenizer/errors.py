"""The one error of this package."""

from __future__ import annotations


class TokenizerError(ValueError):
    """A vocabulary that cannot be used, a text that cannot be encoded, or a token id that does not exist."""
