"""Six tiny models of different architectures, types and sizes, and the questions that are asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.tiny_models import write_tiny_model

CONTEXT_LENGTH = 1536  # that the models were "trained" for
MIN_NUM_CTX = 640
"""The smallest context that is ever asked for: the longest question and its answer fit."""

LONG = "The sea is"  # has an answer that takes a while

GENERATE, CHAT, EMBED = "/api/generate", "/api/chat", "/api/embed"


@dataclass(frozen=True, slots=True)
class Kind:
    """One model of the fleet: a row of ``TINY_MODELS``, the type of its matrices, and what is changed."""

    architecture: str
    type_name: str
    changes: Mapping[str, Any]


FLEET: Mapping[str, Kind] = {
    "llama": Kind("llama", "Q8_0", {"num_layers": 6, "embedding_length": 128}),
    "qwen3": Kind("qwen3", "Q4_K", {"num_layers": 3}),
    "gemma3": Kind("gemma3", "F16", {}),
    "mixtral": Kind("mixtral", "Q4_0", {"num_layers": 4}),
    "qwen2": Kind("qwen2", "BF16", {"num_layers": 2, "embedding_length": 192}),
    "bert": Kind("bert", "Q8_0", {"num_layers": 3, "context_length": 512}),
}
"""Weights, cache and graph of one are from 0.8 to 2.7 MiB with the smallest context, to 4.7 MiB with the largest."""

EMBEDDING_MODELS = frozenset({"bert"})


@dataclass(frozen=True, slots=True)
class Question:
    """A request whose answer is the same every time: no sampling, and room for all of it in every context."""

    model: str
    route: str
    text: str
    num_predict: int = 0

    def body(self) -> dict[str, Any]:
        """The request but for what concerns loading."""
        options = {"temperature": 0, "num_predict": self.num_predict, "ignore_eos": True}
        if self.route == EMBED:
            return {"model": self.model, "input": [self.text, self.text[::-1]]}
        if self.route == CHAT:
            messages = [{"role": "user", "content": self.text}]
            return {"model": self.model, "messages": messages, "options": options}
        return {"model": self.model, "prompt": self.text, "raw": True, "options": options}


def write_fleet(folder: Path) -> None:
    """Every model of ``FLEET`` as ``folder/NAME.gguf``."""
    for name, kind in FLEET.items():
        changes = {"context_length": CONTEXT_LENGTH, **kind.changes}
        write_tiny_model(folder / f"{name}.gguf", kind.architecture, kind.type_name, **changes)


def questions() -> tuple[Question, ...]:
    """All that can be asked."""
    writers = [name for name in FLEET if name not in EMBEDDING_MODELS]
    return (
        *(Question(name, GENERATE, "def add(a, b):", 8) for name in writers),
        *(Question(name, GENERATE, LONG, 500) for name in writers),
        *(Question(name, CHAT, "Who are you?", 30) for name in writers),
        *(Question(name, EMBED, text) for name in EMBEDDING_MODELS for text in ("a red house", "where to")),
    )
