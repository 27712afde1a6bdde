"""The tokenizer of a model: text to token ids and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from runner.tokenizer.bpe import BPE
from runner.tokenizer.detokenizer import StreamDetokenizer, clean_spaces
from runner.tokenizer.errors import TokenizerError
from runner.tokenizer.model import Model, utf8
from runner.tokenizer.pretokenizers import PreTokenizer, pre_tokenizer
from runner.tokenizer.special import Partition, SpecialTokens, special_tokens, strip_rules
from runner.tokenizer.spm import SPM
from runner.tokenizer.unigram import Unigram
from runner.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, flag, read_vocabulary, token_id
from runner.tokenizer.wordpiece import WordPiece

_SPECIAL: Final = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


@dataclass(frozen=True, slots=True)
class _Algorithm:
    """What ``tokenizer.ggml.model`` says: how to build it, and llama.cpp's defaults for what a file leaves out."""

    build: Callable[[Vocabulary, Mapping[str, Any], int | None], Model]
    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    separator: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    always_framed: bool = False  # BOS and separator stand around every text, whatever the file says
    has_pre: bool = False  # tokenizer.ggml.pre says more


def _pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    if metadata.get(PREFIX + "model") == "gemma4":
        return pre_tokenizer("gemma4")
    name = metadata.get(PREFIX + "pre")
    if name is not None and not isinstance(name, str):
        raise TokenizerError(f"{PREFIX}pre is {name!r}: a string is needed")
    return pre_tokenizer(name)


def _build_bpe(vocabulary: Vocabulary, metadata: Mapping[str, Any], unknown_id: int | None) -> Model:
    return BPE(vocabulary, metadata, _pre_tokenizer(metadata))


ALGORITHMS: Final[Mapping[str, _Algorithm]] = {
    "llama": _Algorithm(SPM, bos=1, eos=2, unknown=0, add_bos=True),
    "gpt2": _Algorithm(_build_bpe, bos=11, eos=11, has_pre=True),
    "gemma4": _Algorithm(_build_bpe, has_pre=True),
    "bert": _Algorithm(WordPiece, bos=101, unknown=100, separator=102, add_bos=True, always_framed=True),
    "t5": _Algorithm(Unigram, eos=1, unknown=2, add_eos=True),
}
"""Every ``tokenizer.ggml.model`` that can be used."""

_NO_VOCABULARY: Final = ("no_vocab", "none")


class Tokenizer:
    """Text to token ids and back, for one model. Immutable, and safe to use from several threads."""

    num_tokens: int
    bos_id: int | None
    eos_id: int | None
    eog_ids: frozenset[int]
    """Ids that end a generation: end of text, turn or message, by metadata and by the tokens' texts."""
    add_bos: bool
    add_eos: bool
    """Whether ``encode`` ends a text with EOS, or with the separator where the algorithm has one (bert)."""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], *, num_tokens: int | None = None) -> Tokenizer:
        """Builds the tokenizer of a GGUF file.

        ``metadata``: values by key, as ``runner.gguf`` gives them; a list of str may stand for an array of strings.
        ``num_tokens``: size of the output layer, for a file without vocabulary.

        Raises TokenizerError for an algorithm or a pre-tokenizer that is not known and for a vocabulary that
        contradicts itself. A file without vocabulary gives a tokenizer that refuses text and decodes to "".
        """
        name = metadata.get(PREFIX + "model")
        if name is None or (isinstance(name, str) and name in _NO_VOCABULARY):
            return _NoVocabulary(metadata, num_tokens)
        if not isinstance(name, str) or name not in ALGORITHMS:
            raise TokenizerError(f"{PREFIX}model is {name!r}, known are: {', '.join(sorted(ALGORITHMS))}")
        return cls(ALGORITHMS[name], metadata)

    def __init__(self, algorithm: _Algorithm, metadata: Mapping[str, Any]) -> None:
        """Use ``from_metadata``."""
        vocabulary = read_vocabulary(metadata)
        self.num_tokens = len(vocabulary.tokens)
        unknown_id = self._id(metadata, "unknown_token_id", algorithm.unknown)
        self._model = algorithm.build(vocabulary, metadata, unknown_id)
        self._tokens = vocabulary.tokens
        self._pieces: dict[int, bytes] = {}
        self._read_frame(algorithm, metadata)
        self._read_special(vocabulary, metadata)

    def _id(self, metadata: Mapping[str, Any], name: str, default: int | None) -> int | None:
        return token_id(metadata, name, default, self.num_tokens)

    def _read_frame(self, algorithm: _Algorithm, metadata: Mapping[str, Any]) -> None:
        """Sets the tokens that stand around every text."""
        pre = _pre_tokenizer(metadata) if algorithm.has_pre else PreTokenizer(())
        self.bos_id = self._id(metadata, "bos_token_id", self._id(metadata, "cls_token_id", algorithm.bos))
        self.eos_id = self._id(metadata, "eos_token_id", algorithm.eos)
        always_bos = algorithm.always_framed or pre.always_bos
        self.add_bos = flag(metadata, "add_bos_token", algorithm.add_bos or pre.add_bos) or always_bos
        self.add_eos = flag(metadata, "add_eos_token", algorithm.add_eos) or algorithm.always_framed
        separator = self._id(metadata, "seperator_token_id", algorithm.separator)  # spelt so in the format
        self._last_id = separator if algorithm.always_framed else self.eos_id
        if self.add_bos and self.bos_id is None:
            raise TokenizerError(f"{PREFIX}add_bos_token holds, but the file has no bos token")
        if self.add_eos and self._last_id is None:
            raise TokenizerError(f"{PREFIX}add_eos_token holds, but the file has no eos or separator token")

    def _read_special(self, vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> None:
        found: SpecialTokens = special_tokens(vocabulary, metadata, self.eos_id)
        self.eog_ids = found.end_of_generation
        self._types = found.types.tolist()
        special = {self._tokens[i]: i for i in np.flatnonzero(np.isin(found.types, _SPECIAL)).tolist()}
        user_defined = {text: i for text, i in special.items() if self._types[i] == TokenType.USER_DEFINED}
        strip = strip_rules(metadata, special)
        self._all_special = Partition(special, strip)
        self._user_defined = Partition(user_defined, strip)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """The token ids of ``text``.

        ``add_special``: with BOS and EOS as the model wants them, whatever the text begins with.
        ``parse_special``: the texts of control tokens become those tokens; otherwise they are plain
        text. User-defined tokens are always found. Raises TokenizerError where the text has a lone surrogate.
        """
        _check_unicode(text)
        pieces = (self._all_special if parse_special else self._user_defined).split(text)
        plain = iter(self._model.encode([piece for piece in pieces if isinstance(piece, str)]))
        ids: list[int] = []
        for piece in pieces:
            ids += next(plain) if isinstance(piece, str) else (piece,)
        return self._framed(ids) if add_special else ids

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a prompt: specials parsed and added, but a BOS that the text (a template's, say) begins with
        is not doubled. Raises TokenizerError."""
        ids = self.encode(text, add_special=True, parse_special=True)
        return ids[1:] if self.add_bos and ids[:2] == [self.bos_id, self.bos_id] else ids

    def _framed(self, ids: list[int]) -> list[int]:
        if self.add_bos and self.bos_id is not None:
            ids = [self.bos_id, *ids]
        if self.add_eos and self._last_id is not None:
            ids = [*ids, self._last_id]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, special tokens by name. Bytes that are no UTF-8 become U+FFFD.

        The space that the model puts before every text is taken off again. Raises TokenizerError for an id that
        does not exist.
        """
        pieces = [self.token_bytes(i) for i in ids]
        if pieces and self._model.strips_space:
            pieces[0] = pieces[0].removeprefix(b" ")
        text = b"".join(pieces).decode("utf-8", "replace")
        return clean_spaces(text) if self._model.cleans_spaces else text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, which need not be whole characters. Raises TokenizerError."""
        if (piece := self._pieces.get(token_id)) is not None:
            return piece
        if not 0 <= token_id < self.num_tokens:
            raise TokenizerError(f"there is no token {token_id}: ids are 0 to {self.num_tokens - 1}")
        self._pieces[token_id] = piece = self._piece(token_id)
        return piece

    def token_text(self, token_id: int) -> str:
        """The token as text for people: incomplete characters are U+FFFD. Raises TokenizerError."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def detokenizer(self, *, at_start: bool = False) -> StreamDetokenizer:
        """Decodes ids one by one. ``at_start``: they begin a text instead of continuing one, so the space that
        the model puts before every text is taken off."""
        return StreamDetokenizer(self.token_bytes, strip_space=at_start and self._model.strips_space)

    def _piece(self, token_id: int) -> bytes:
        token, kind = self._tokens[token_id], self._types[token_id]
        if kind in _SPECIAL:
            return utf8(token)
        if kind == TokenType.BYTE:
            return _byte(token)
        return self._model.piece(token) if kind == TokenType.NORMAL else b""


class _NoVocabulary(Tokenizer):
    """Stands in where a file has no vocabulary: token ids go in and out, text does not."""

    def __init__(self, metadata: Mapping[str, Any], num_tokens: int | None) -> None:
        size = metadata.get(f"{metadata.get('general.architecture')}.vocab_size", 0)
        size = size if isinstance(size, (int, np.integer)) else 0
        self.num_tokens = num_tokens if num_tokens is not None else int(size)
        self.bos_id = self.eos_id = None
        self.eog_ids = frozenset()
        self.add_bos = self.add_eos = False

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raise TokenizerError("the model has no vocabulary: it takes token ids, not text")

    def decode(self, ids: Iterable[int]) -> str:
        return ""

    def token_bytes(self, token_id: int) -> bytes:
        return b""

    def detokenizer(self, *, at_start: bool = False) -> StreamDetokenizer:
        return StreamDetokenizer(self.token_bytes, strip_space=False)


def _byte(token: str) -> bytes:
    """The byte that a token like <0x0A> stands for; the token's text where it has another form."""
    try:
        return bytes([int(token[3:5], 16)]) if token.startswith("<0x") and token.endswith(">") else utf8(token)
    except ValueError:
        return utf8(token)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at position {error.start}: "
            "no UTF-8 exists for it"
        ) from None
