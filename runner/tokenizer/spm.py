"""SentencePiece with scores (``tokenizer.ggml.model`` = llama).

SentencePiece joins the two neighbours whose union is the token with the highest score. The same is a list of
merges, one for every way to cut a token into two others, ordered by the token's score. Among equal scores
SentencePiece takes the leftmost pair and a list of merges the lower token id; real vocabularies have no equal
scores that compete.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import compress
from operator import and_
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, models, normalizers, pre_tokenizers

from runner.tokenizer.backend import Backend, library_errors
from runner.tokenizer.merges import Merges
from runner.tokenizer.model import SPACE_MARK, unescape_spaces
from runner.tokenizer.vocabulary import TokenType, Vocabulary, flag

Hashes = npt.NDArray[np.uint64]

# Odd, so that it has an inverse modulo 2^64. (Knuth's multiplier of a linear congruential generator.)
_BASE: Final = 6364136223846793005
_BASE_INVERSE: Final = pow(_BASE, -1, 1 << 64)
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads hashes over the table

_WORD: Final = f"{SPACE_MARK}+[^{SPACE_MARK}]*"


class SPM:
    """Merges by score over whole texts; characters without a token become bytes."""

    cleans_spaces = False

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, Any], unknown_id: int | None) -> None:
        """Raises TokenizerError where scores are missing, or what the library refuses."""
        self.strips_space = flag(metadata, "add_space_prefix", True)
        tokens, ids = vocabulary.speakable()
        letters = _letters_of_bytes(ids)
        ids = {**ids, **letters}
        cuts = Cuts(tokens, vocabulary.required_scores(), vocabulary.types != TokenType.BYTE, letters)
        unknown = None if unknown_id is None else tokens[unknown_id]
        with library_errors("the vocabulary cannot be used for SentencePiece"):
            self._backend = Backend(
                models.BPE(ids, cuts.merges(ids), byte_fallback=True, unk_token=unknown, fuse_unk=True),
                normalizer=normalizers.Replace(" ", SPACE_MARK),
                # Words are cut off before their spaces where no token reaches across: the result is the same, but
                # the library remembers words it has seen, and a long text is not one word.
                pre_tokenizer=None if cuts.reach_across_spaces() else pre_tokenizers.Split(Regex(_WORD), "isolated"),
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._backend.encode([" " + text for text in texts] if self.strips_space else texts)

    def piece(self, token: str) -> bytes:
        return unescape_spaces(token)


def _letters_of_bytes(ids: Mapping[str, int]) -> dict[str, int]:
    """ASCII letters without a token of their own, with the ids of their byte tokens.

    SentencePiece joins letters into a token also where the letters themselves are none (two line feeds, say, where
    one is a byte); the library joins only what is in its vocabulary.
    """
    bytes_ = {chr(byte): f"<0x{byte:02X}>" for byte in range(128)}
    return {letter: ids[name] for letter, name in bytes_.items() if letter not in ids and name in ids}


class Cuts:
    """Every way to cut a token into two others.

    Half a million cuts come out of several million candidates, so candidates are compared by hash first: a
    part's hash is a difference of prefix sums (Karp and Rabin), and a bitmap says which hashes tokens have. A few
    wrong ones remain until ``merges``.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        scores: npt.NDArray[np.float64],
        usable: npt.NDArray[np.bool_],
        letters: Collection[str] = (),
    ) -> None:
        """``usable``: the tokens that merges may make; parts may be any token, or one of ``letters``."""
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        ends = np.cumsum(lengths)
        starts = ends - lengths
        self._tokens = tokens
        self._scores = scores
        self._letters = np.frombuffer("".join(tokens).encode("utf-32-le"), np.uint32)
        hashes = _SubstringHashes(self._letters)
        own = np.array([ord(letter) for letter in letters], np.uint64)  # the hash of one letter is its number
        is_token = _Bitmap(np.concatenate([hashes.of(starts, ends), own]))

        owner = np.repeat(np.arange(len(tokens)), lengths)  # token of every letter
        cuts = np.arange(len(self._letters))
        keep = (cuts != starts[owner]) & usable[owner]
        cuts, owner = cuts[keep], owner[keep]
        keep = is_token.has(hashes.of(starts[owner], cuts))
        cuts, owner = cuts[keep], owner[keep]
        keep = is_token.has(hashes.of(cuts, ends[owner]))
        self._cuts, self._owner = cuts[keep], owner[keep]  # position of the right part's first letter; token
        self._left_lengths = self._cuts - starts[self._owner]

    def merges(self, ids: Mapping[str, int]) -> Merges:
        """The two parts, best score of the whole first, then by id, then shortest left part first."""
        order = np.argsort(-self._scores[self._owner], kind="stable")
        wholes = [self._tokens[i] for i in self._owner[order].tolist()]
        lengths = self._left_lengths[order].tolist()
        lefts = [whole[:length] for whole, length in zip(wholes, lengths, strict=True)]
        rights = [whole[length:] for whole, length in zip(wholes, lengths, strict=True)]
        exist = list(map(and_, map(ids.__contains__, lefts), map(ids.__contains__, rights)))
        return Merges(list(compress(lefts, exist)), list(compress(rights, exist)))

    def reach_across_spaces(self) -> bool:
        """Whether any cut lies between a letter and a space after it, so that a merge joins two words."""
        is_space = self._letters == ord(SPACE_MARK)
        return bool((is_space[self._cuts] & ~is_space[self._cuts - 1]).any())


class _Bitmap:
    """Whether a hash is one of the given: always true where it is, rarely true where it is not."""

    def __init__(self, hashes: Hashes) -> None:
        bits = max(10, len(hashes).bit_length() + 5)
        self._shift = np.uint64(64 - bits)
        self._bits = np.zeros(1 << bits, np.bool_)
        self._bits[self._slot(hashes)] = True

    def _slot(self, hashes: Hashes) -> Hashes:
        slots: Hashes = np.right_shift(hashes * _MIX, self._shift)
        return slots

    def has(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = self._bits[self._slot(hashes)]
        return found


class _SubstringHashes:
    """Polynomial hashes, modulo 2^64, of ``letters[start:end]`` for arrays of starts and ends."""

    def __init__(self, letters: npt.NDArray[np.uint32]) -> None:
        powers = _powers(_BASE, len(letters))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(letters * powers, dtype=np.uint64)])
        self._inverses = _powers(_BASE_INVERSE, len(letters) + 1)

    def of(self, start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> Hashes:
        hashes: Hashes = (self._sums[end] - self._sums[start]) * self._inverses[start]
        return hashes


def _powers(base: int, count: int) -> Hashes:
    """``base**0 … base**(count-1)``, modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)
