"""Byte-pair encoding with a list of merges (``tokenizer.ggml.model`` = gpt2, gemma4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from tokenizers import Regex, models, normalizers, pre_tokenizers

from runner.tokenizer.backend import Backend, library_errors
from runner.tokenizer.merges import Merge, Merges
from runner.tokenizer.model import SPACE_MARK, unescape_spaces, utf8
from runner.tokenizer.pretokenizers import PreTokenizer
from runner.tokenizer.vocabulary import PREFIX, Vocabulary, raw_strings


def _letters_of_bytes() -> dict[int, str]:
    """GPT-2's letter for every byte: itself where it is printable in Latin-1, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return {byte: chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)}


LETTER_OF_BYTE: Final[Mapping[int, str]] = _letters_of_bytes()
_LATIN1_OF_LETTER: Final = {ord(letter): byte for byte, letter in LETTER_OF_BYTE.items()}
_LETTERS: Final = frozenset(LETTER_OF_BYTE.values())


class BPE:
    """Merges pairs of tokens inside of words, most important pair first."""

    strips_space = False
    cleans_spaces = False

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, Any], pre: PreTokenizer) -> None:
        """Raises TokenizerError where merges are missing, or what the library refuses."""
        self._byte_level = pre.byte_level
        self._escape_spaces = pre.escape_spaces
        _, ids = vocabulary.speakable()
        with library_errors("the vocabulary cannot be used for byte-pair encoding"):
            splits: list[pre_tokenizers.PreTokenizer] = [
                pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns
            ]
            if pre.byte_level:
                splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
            self._backend = Backend(
                _model(ids, _merges(metadata), pre),
                normalizer=normalizers.Replace(" ", SPACE_MARK) if pre.escape_spaces else None,
                pre_tokenizer=pre_tokenizers.Sequence(splits),
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._backend.encode(texts)

    def piece(self, token: str) -> bytes:
        if self._escape_spaces:
            return unescape_spaces(token)
        if self._byte_level and _LETTERS.issuperset(token):
            return token.translate(_LATIN1_OF_LETTER).encode("latin-1")
        return utf8(token)


def _model(ids: dict[str, int], merges: Sequence[Merge], pre: PreTokenizer) -> models.BPE:
    options: dict[str, Any] = {"ignore_merges": pre.ignore_merges}
    if not pre.byte_level:
        options["byte_fallback"] = True
        if "<unk>" in ids:
            options |= {"unk_token": "<unk>", "fuse_unk": True}
    try:
        return models.BPE(ids, merges, **options)
    except Exception:
        # A merge names a token that is not there. Files of real models are clean, so only now is each looked at.
        known = [(left, right) for left, right in merges if left in ids and right in ids and left + right in ids]
        return models.BPE(ids, known, **options)


def _merges(metadata: Mapping[str, Any]) -> Sequence[Merge]:
    """The pairs of ``tokenizer.ggml.merges``, most important first.

    A pair stands as two texts with a space between; the first text may begin with a space. An entry that is no
    pair is passed over.
    """
    if metadata.get(PREFIX + "pre") == "kimi-k2" and PREFIX + "merges" not in metadata:
        return []
    raws = raw_strings(metadata, "merges")
    lines = b"\n".join(raws)
    if _are_pairs(lines, len(raws)):
        parts = lines.decode("utf-8", "surrogateescape").replace(" ", "\n").split("\n")
        return Merges(parts[::2], parts[1::2])
    texts = (raw.decode("utf-8", "surrogateescape") for raw in raws)
    pairs = ((text[:1] + left, right) for text in texts for left, _, right in (text[1:].partition(" "),))
    return [pair for pair in pairs if all(pair)]


def _are_pairs(lines: bytes, count: int) -> bool:
    """Whether each of ``count`` lines is a text, one space and another text: then the two marks alternate."""
    letters = np.frombuffer(b"\n" + lines + b"\n", np.uint8)
    at = np.flatnonzero((letters == ord(" ")) | (letters == ord("\n")))
    if len(at) != 2 * count + 1 or not (np.diff(at) > 1).all():
        return False
    return bool((letters[at[::2]] == ord("\n")).all() and (letters[at[1::2]] == ord(" ")).all())
