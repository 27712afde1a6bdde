"""The vocabulary of a GGUF file, read from its metadata and checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from runner.gguf import StringArray
from runner.tokenizer.errors import TokenizerError

logger = logging.getLogger(__name__)

PREFIX = "tokenizer.ggml."
_UNSPEAKABLE = "\U0010ffff"
"""First character of the stand-in for a token that is no valid UTF-8: a noncharacter, so no text contains it."""


class TokenType(IntEnum):
    """What ``tokenizer.ggml.token_type`` says of a token."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id, as the file has them.

    ``tokens`` are decoded with ``surrogateescape``, so their bytes are exact; ``ids`` maps them back and is one
    to one. ``types`` and ``scores`` have one entry per token; ``scores`` is None where the file has none.
    """

    tokens: Sequence[str]
    ids: dict[str, int]
    types: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float64] | None

    def required_scores(self) -> npt.NDArray[np.float64]:
        """The scores of a vocabulary whose algorithm needs them. Raises TokenizerError where there are none."""
        if self.scores is None:
            raise TokenizerError(f"{PREFIX}scores is missing; this vocabulary cannot be used without it")
        return self.scores

    def speakable(self) -> tuple[Sequence[str], dict[str, int]]:
        """Tokens and ids for the library, which takes valid Unicode only: any other token gets a stand-in."""
        try:
            "".join(self.tokens).encode()
        except UnicodeEncodeError:
            tokens = [token if _is_valid(token) else f"{_UNSPEAKABLE}{i}" for i, token in enumerate(self.tokens)]
            return tokens, {token: i for i, token in enumerate(tokens)}
        return self.tokens, self.ids


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Reads tokens, types and scores. Raises TokenizerError for missing, doubled or mismatched entries."""
    tokens = strings(metadata, "tokens")
    if not tokens:
        raise TokenizerError(f"{PREFIX}tokens is empty: at least one token is needed")
    if "" in tokens:  # llama.cpp names them like this
        tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        raise TokenizerError(_describe_double(tokens, ids))
    types = _numbers(metadata, "token_type", "iu", len(tokens))
    scores = _numbers(metadata, "scores", "iuf", len(tokens))
    if scores is not None and not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise TokenizerError(f"{PREFIX}scores has {scores[bad]} at token {bad}: every score must be finite")
    return Vocabulary(
        tokens=tokens,
        ids=ids,
        types=np.full(len(tokens), TokenType.NORMAL, np.int32) if types is None else types.astype(np.int32),
        scores=None if scores is None else scores.astype(np.float64),
    )


def strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    """The string array ``tokenizer.ggml.<name>``, decoded with ``surrogateescape``."""
    raws = raw_strings(metadata, name)
    try:
        return list(map(bytes.decode, raws))
    except UnicodeDecodeError:
        return [raw.decode("utf-8", "surrogateescape") for raw in raws]


def raw_strings(metadata: Mapping[str, Any], name: str) -> list[bytes]:
    """The bytes of the string array ``tokenizer.ggml.<name>``, which a list of texts may stand for."""
    value = metadata.get(PREFIX + name)
    if value is None:
        raise TokenizerError(f"{PREFIX}{name} is missing")
    if isinstance(value, StringArray):
        return value.raws()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TokenizerError(f"{PREFIX}{name} is a {type(value).__name__}: an array of strings is needed")
    return [text.encode("utf-8", "surrogateescape") for text in value]


def flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    """The truth value ``tokenizer.ggml.<name>``, or ``default`` where it is absent."""
    value = metadata.get(PREFIX + name, default)
    if not isinstance(value, (bool, np.bool_)):
        raise TokenizerError(f"{PREFIX}{name} is {value!r}: true or false is needed")
    return bool(value)


def token_id(metadata: Mapping[str, Any], name: str, default: int | None, num_tokens: int) -> int | None:
    """The token id ``tokenizer.ggml.<name>``.

    An id outside of the vocabulary counts as absent, and so does a default outside of it: many files carry one,
    and llama.cpp reads them so.
    """
    fallback = default if default is not None and default < num_tokens else None
    value = metadata.get(PREFIX + name)
    if value is None:
        return fallback
    if not _is_integer(value):
        raise TokenizerError(f"{PREFIX}{name} is {value!r}: a token id is needed")
    if not 0 <= int(value) < num_tokens:
        logger.warning("%s%s is %d, but there are %d tokens; using %s", PREFIX, name, value, num_tokens, fallback)
        return fallback
    return int(value)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _numbers(metadata: Mapping[str, Any], name: str, kinds: str, length: int) -> npt.NDArray[Any] | None:
    value = metadata.get(PREFIX + name)
    if value is None:
        return None
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TokenizerError(f"{PREFIX}{name} is not an array of numbers: {error}") from error
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise TokenizerError(
            f"{PREFIX}{name} is not an array of numbers of kind {kinds!r}: {array.dtype}, {array.ndim}-D"
        )
    if len(array) != length:
        raise TokenizerError(f"{PREFIX}{name} has {len(array)} entries, but there are {length} tokens")
    return array


def _describe_double(tokens: Sequence[str], ids: Mapping[str, int]) -> str:
    first = next(i for i, token in enumerate(tokens) if ids[token] != i)
    return f"{PREFIX}tokens has {tokens[first]!r} twice, as {first} and as {ids[tokens[first]]}"


def _is_valid(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
