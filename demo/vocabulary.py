"""The demo model's byte-level BPE: trained on the exchanges, split as ``tokenizer.ggml.pre = llama-bpe`` says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo.conversations import SMALL_TALK, Exchange, Sampler
from demo.data import Item

NUM_TOKENS = 4096
START, END, TEXT_END, PADDING = "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|pad|>"
SPECIAL = (START, END, TEXT_END, PADDING)
PRE_TOKENIZER = "llama-bpe"
# The split expression that this pre-tokenizer name stands for in GGUF files.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DRAWS_PER_ITEM = 4


def train(items: Mapping[str, Item], seed: int, num_tokens: int = NUM_TOKENS) -> Tokenizer:
    """A vocabulary of ``num_tokens`` (special tokens last) learnt from sampled exchanges."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens - len(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_texts(items, seed), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _texts(items: Mapping[str, Item], seed: int) -> Iterator[str]:
    sampler = Sampler(items, seed)
    drawn = (sampler.draw() for _ in range(DRAWS_PER_ITEM * len(items)))
    for exchange in (*(Exchange(*pair) for pair in SMALL_TALK), *drawn):
        yield from (exchange.question, exchange.answer)


class Encoder:
    """Exchanges → token ids in the format of the model's chat template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        ids = tokenizer.get_vocab()
        self._start, self.end = ids[START], ids[END]
        self._newline = self._encode("\n")

    @classmethod
    def load(cls, path: Path) -> Encoder:
        return cls(Tokenizer.from_file(str(path)))

    @property
    def num_tokens(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def prompt(self, question: str) -> list[int]:
        """<|im_start|>user … <|im_end|> and the opening of the answer."""
        user = [self._start, *self._encode("user\n"), *self._encode(question), self.end, *self._newline]
        return [*user, self._start, *self._encode("assistant\n")]

    def reply(self, answer: str) -> list[int]:
        """The answer with the token that ends it."""
        return [*self._encode(answer), self.end]

    def newline(self) -> list[int]:
        return list(self._newline)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
