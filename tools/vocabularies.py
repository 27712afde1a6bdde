"""Synthetic vocabularies in the form of GGUF metadata: byte-level BPE, SentencePiece and WordPiece.

Tokens are merged from pairs of letters, the most frequent letters of English first, so text encodes to fewer tokens
than letters, and what a random model says is printable.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_SPACE = "▁"
_LETTERS = " etaoinshrdlcumwfgypbvkjxqz"  # by frequency; the space stands for a word's start
_MAX_TOKEN_LENGTH = 8
_NUM_DRAWS = 4096  # at a time; one by one they take most of the time
_NUM_SHORT_PIECES = 700  # of the first, which have one or two letters

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
INST_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)

_LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
_CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def llama3_vocabulary(num_tokens: int) -> dict[str, Any]:
    """Byte-level BPE with the special tokens and the chat form of Llama 3."""
    return {
        **_byte_level_bpe(num_tokens, _LLAMA3_SPECIALS, "llama-bpe"),
        "tokenizer.ggml.bos_token_id": num_tokens - 5,
        "tokenizer.ggml.eos_token_id": num_tokens - 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": LLAMA3_CHAT,
    }


def chatml_vocabulary(num_tokens: int) -> dict[str, Any]:
    """Byte-level BPE with the special tokens and the chat form of Qwen."""
    return {
        **_byte_level_bpe(num_tokens, _CHATML_SPECIALS, "qwen2"),
        "tokenizer.ggml.eos_token_id": num_tokens - 1,
        "tokenizer.ggml.padding_token_id": num_tokens - 3,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }


def spm_vocabulary(num_tokens: int) -> dict[str, Any]:
    """SentencePiece BPE as Llama 2 and Mistral have it: <unk> <s> </s>, 256 bytes, pieces."""
    return {
        **_sentencepiece(num_tokens, {"<unk>": _UNKNOWN, "<s>": _CONTROL, "</s>": _CONTROL}),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": INST_CHAT,
    }


def gemma_vocabulary(num_tokens: int) -> dict[str, Any]:
    """SentencePiece BPE as Gemma has it: turns, and no space put before a text."""
    specials = {"<pad>": _CONTROL, "<eos>": _CONTROL, "<bos>": _CONTROL, "<unk>": _UNKNOWN}
    specials |= {"<start_of_turn>": _CONTROL, "<end_of_turn>": _CONTROL}
    return {
        **_sentencepiece(num_tokens, specials),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": GEMMA_CHAT,
    }


def wordpiece_vocabulary(num_tokens: int) -> dict[str, Any]:
    """WordPiece as BERT has it, lower case: word starts carry a mark, continuations none."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    num_specials = len(tokens)
    characters = [chr(c) for c in range(33, 127) if not chr(c).isupper()] + list("éßæñ漢字д")
    tokens += [_SPACE + c for c in characters] + characters
    pieces = [piece.replace(" ", _SPACE) for _, _, piece in _merges(list(_LETTERS), 2 * num_tokens)]
    seen = set(tokens)
    tokens += [p for p in pieces if p not in seen and _SPACE not in p[1:] and p != _SPACE][: num_tokens - len(tokens)]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "bert-bge",
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": _sized(tokens, num_tokens),
        "tokenizer.ggml.token_type": np.array(
            [_CONTROL] * num_specials + [_NORMAL] * (num_tokens - num_specials), "i4"
        ),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.seperator_token_id": 3,  # the key's own spelling
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
    }


def _byte_level_bpe(num_tokens: int, specials: tuple[str, ...], pre: str) -> dict[str, Any]:
    """256 bytes, merged tokens, then the special tokens, which are the last ones."""
    alphabet = byte_alphabet()
    merges = _merges([alphabet[ord(c)] for c in _LETTERS], num_tokens - 256 - len(specials))
    tokens = [*alphabet, *(merged for _, _, merged in merges), *specials]
    types = [_NORMAL] * (num_tokens - len(specials)) + [_CONTROL] * len(specials)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": _sized(tokens, num_tokens),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right, _ in merges],
    }


def _sentencepiece(num_tokens: int, specials: dict[str, int]) -> dict[str, Any]:
    """Special tokens, 256 bytes, merged pieces with falling scores, then single characters, which score lowest."""
    characters = [_SPACE] + [chr(c) for c in range(33, 127)] + list("äöüß")
    letters = [_SPACE if c == " " else c for c in _LETTERS]
    merges = _merges(letters, num_tokens - len(specials) - 256 - len(characters))
    pieces = [merged for _, _, merged in merges] + characters
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    num_unscored = len(specials) + 256
    types = [*specials.values(), *[_BYTE] * 256, *[_NORMAL] * len(pieces)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": _sized(tokens, num_tokens),
        "tokenizer.ggml.scores": np.array([0.0] * num_unscored + [-float(i) for i in range(len(pieces))], np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
    }


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself where printable, else the next free character from U+0100."""
    free = iter(range(256, 512))
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) if byte in printable else chr(next(free)) for byte in range(256)]


def _merges(letters: list[str], count: int) -> list[tuple[str, str, str]]:
    """``count`` distinct (left, right, merged), each of parts that exist by then; a space stands only in front.

    First the pairs of letters, frequent ones before rare ones, then random pieces with short ones added.
    """
    pairs = [(i, j) for i in range(len(letters)) for j in range(1, len(letters))]
    pairs.sort(key=lambda pair: (pair[0] + 1) * (pair[1] + 1))
    merges = [(letters[i], letters[j], letters[i] + letters[j]) for i, j in pairs]
    pieces = letters + [merged for _, _, merged in merges]
    seen = set(pieces)
    rng = np.random.default_rng(7)
    while len(merges) < count:
        shorts = rng.integers(1, _NUM_SHORT_PIECES, _NUM_DRAWS).tolist()
        for draw, short in zip(rng.random(_NUM_DRAWS).tolist(), shorts, strict=True):
            left, right = pieces[int(draw * len(pieces))], pieces[short]
            merged = left + right
            if len(merged) <= _MAX_TOKEN_LENGTH and letters[0] not in right and merged not in seen:
                seen.add(merged)
                pieces.append(merged)
                merges.append((left, right, merged))
    return merges[: max(count, 0)]


def _sized(tokens: list[str], num_tokens: int) -> list[str]:
    if len(tokens) != num_tokens:
        raise ValueError(f"a vocabulary of {num_tokens} tokens was asked for; this kind needs {len(tokens)}")
    return tokens
