"""Text to token ids and back, with the vocabulary of a GGUF file and llama.cpp's rules."""

from __future__ import annotations

from runner.tokenizer.detokenizer import StreamDetokenizer
from runner.tokenizer.errors import TokenizerError
from runner.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDetokenizer", "Tokenizer", "TokenizerError"]
