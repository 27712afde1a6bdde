"""Special tokens: which tokens they are, which of them end a generation, and how text is cut at them.

The rules are those of llama.cpp's vocabulary loader, found in its source and by comparison.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runner.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, token_id

_SPACES: Final = " \t\n\v\f\r"
"""What C's isspace() calls a space: the only characters that a token may swallow beside itself."""

END_OF_TURN_TEXTS: Final = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
)
"""Texts that name the end of a turn where the file names none."""

END_OF_GENERATION_TEXTS: Final = (
    *END_OF_TURN_TEXTS,
    "<|eom_id|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
"""Texts of tokens that end a generation whatever the file says of them."""


@dataclass(frozen=True, slots=True)
class _FillInMiddle:
    """One role in fill-in-the-middle prompts: its metadata keys, its texts, and whether it ends a generation."""

    keys: tuple[str, ...]
    texts: tuple[str, ...]
    ends: bool = False


_FILL_IN_MIDDLE: Final = (
    _FillInMiddle(
        ("fim_pre_token_id", "prefix_token_id"),
        (
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ),
    ),
    _FillInMiddle(
        ("fim_suf_token_id", "suffix_token_id"),
        (
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ),
    ),
    _FillInMiddle(
        ("fim_mid_token_id", "middle_token_id"),
        (
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ),
    ),
    _FillInMiddle(("fim_pad_token_id",), ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"), ends=True),
    _FillInMiddle(
        ("fim_rep_token_id",), ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"), ends=True
    ),
    _FillInMiddle(("fim_sep_token_id",), ("<|file_sep|>",), ends=True),
)

_ALWAYS_VISIBLE: Final = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
"""gpt-oss's markers: user-defined whatever the file says, so that they are text and not control."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """``types`` after the rules by text; ``end_of_generation`` the ids after which nothing may follow."""

    types: npt.NDArray[np.int32]
    end_of_generation: frozenset[int]


def special_tokens(vocabulary: Vocabulary, metadata: Mapping[str, Any], eos_id: int | None) -> SpecialTokens:
    """Corrects token types by the tokens' texts and finds the tokens that end a generation."""
    ids, types = vocabulary.ids, vocabulary.types.copy()
    ends = {ids[text] for text in END_OF_GENERATION_TEXTS if text in ids}
    types[list(ends)] = TokenType.CONTROL
    for role in _FILL_IN_MIDDLE:
        found = _fill_in_middle(role, vocabulary, metadata, types)
        if role.ends and found is not None:
            ends.add(found)
    types[[ids[text] for text in _ALWAYS_VISIBLE if text in ids]] = TokenType.USER_DEFINED
    for name in ("eot_token_id", "eom_token_id"):
        named = token_id(metadata, name, None, len(vocabulary.tokens))
        ends |= {named} if named is not None else set()
    ends |= {eos_id} if eos_id is not None else set()
    _except_harmony_end(ids, types, ends)
    _except_gemma4_slash_s(ids, types, ends)
    return SpecialTokens(types=types, end_of_generation=frozenset(ends))


def _fill_in_middle(
    role: _FillInMiddle, vocabulary: Vocabulary, metadata: Mapping[str, Any], types: npt.NDArray[np.int32]
) -> int | None:
    for key in role.keys:
        if PREFIX + key in metadata:
            return token_id(metadata, key, None, len(vocabulary.tokens))
    found = [vocabulary.ids[text] for text in role.texts if text in vocabulary.ids]
    if not found:
        return None
    types[found[0]] = TokenType.CONTROL
    return found[0]


def _except_harmony_end(ids: Mapping[str, int], types: npt.NDArray[np.int32], ends: set[int]) -> None:
    """gpt-oss and solar-open close every message with <|end|>; only their other tokens end the generation."""
    present = {text for text in ("<|return|>", "<|call|>", "<|calls|>", "<|flush|>") if ids.get(text) in ends}
    if "<|end|>" in ids and present & {"<|call|>", "<|calls|>"} and present & {"<|return|>", "<|flush|>"}:
        ends.discard(ids["<|end|>"])
        types[ids["<|end|>"]] = TokenType.USER_DEFINED


def _except_gemma4_slash_s(ids: Mapping[str, int], types: npt.NDArray[np.int32], ends: set[int]) -> None:
    """In gemma4, which is known by <|tool_response>, "</s>" is a tag of HTML."""
    if "<|tool_response>" in ids and "</s>" in ids:
        ends.discard(ids["</s>"])
        types[ids["</s>"]] = TokenType.NORMAL


@dataclass(frozen=True, slots=True)
class Strip:
    """Texts of special tokens that swallow the spaces before (left) or after (right) them."""

    left: frozenset[str] = frozenset()
    right: frozenset[str] = frozenset()


def strip_rules(metadata: Mapping[str, Any], special: Iterable[str]) -> Strip:
    """Which special tokens swallow spaces. Files do not say; llama.cpp knows it by the model's name."""
    pre = str(metadata.get(PREFIX + "pre", ""))
    architecture = str(metadata.get("general.architecture", ""))
    name = str(metadata.get("general.name", "")).lower()
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")
    ):
        return Strip(left=frozenset({"<mask>"}))
    if "phi-3" in name or "phi3" in name:
        return Strip(right=(frozenset(special) | {"</s>"}) - {"<unk>", "<s>", "<|endoftext|>"})
    if "modern-bert" in name:
        return Strip(left=frozenset({"[MASK]"}))
    return Strip()


class Partition:
    """Cuts text at special tokens.

    Longer tokens win over shorter ones wherever they stand, as in llama.cpp, which looks for one token after
    the other. Here one pass first finds the tokens that occur at all, so that the thousands that do not cost
    nothing.
    """

    def __init__(self, ids: Mapping[str, int], strip: Strip) -> None:
        """``ids``: the special tokens' texts and ids."""
        self._ids = dict(ids)
        self._strip = strip
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        for text in ids:
            lengths[text[:2]].add(len(text))
        self._lengths = {head: sorted(found) for head, found in lengths.items()}
        first = "".join(map(re.escape, sorted({head[0] for head in lengths})))
        self._first = re.compile(f"[{first}]") if lengths else None

    def split(self, text: str) -> list[str | int]:
        """Plain text and token ids, in the order of the text. Empty pieces of text are left out."""
        pieces: list[str | int] = [text] if text else []
        present = self._present(text)
        for token in sorted(present, key=lambda token: (-len(token.encode()), self._ids[token])):
            pieces = [
                part for piece in pieces for part in (self._cut(piece, token) if isinstance(piece, str) else (piece,))
            ]
        return pieces

    def _present(self, text: str) -> set[str]:
        if self._first is None:
            return set()
        present = set()
        for match in self._first.finditer(text):  # also inside of a token: another may begin there
            start = match.start()
            for head in {text[start], text[start : start + 2]}:  # a token may be one character long
                for length in self._lengths.get(head, ()):
                    if (token := text[start : start + length]) in self._ids:
                        present.add(token)
        return present

    def _cut(self, text: str, token: str) -> Sequence[str | int]:
        parts = text.split(token)
        pieces: list[str | int] = []
        for i, part in enumerate(parts):
            if i > 0:
                pieces.append(self._ids[token])
                if token in self._strip.right:
                    part = part.lstrip(_SPACES)
            if i < len(parts) - 1 and token in self._strip.left:
                part = part.rstrip(_SPACES)
            if part:
                pieces.append(part)
        return pieces
