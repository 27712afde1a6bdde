"""One embedding request inside the engine: many inputs, pooled part by part, normalized."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.engine.completion import RequestError, check_ids
from runner.engine.work import Line
from runner.protocol import EmbeddingRequest

if TYPE_CHECKING:
    from runner.load import LoadedModel
    from runner.sequence import Sequence as CacheSequence

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

BLOCK_ROWS = 128
"""Rows that are made doubles at a time: so little memory is needed beside the workspace."""


def _sum(so_far: Doubles | None, rows: Floats) -> Doubles:
    """Row by row in the order of positions, so that it is the same sum however the rows come in parts."""
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS].astype(np.float64)
        if so_far is not None:
            block[0] += so_far
        so_far = np.add.reduce(block, axis=0)
    assert so_far is not None, "there is a row"
    return so_far


FOLDS: dict[str, Callable[[Doubles | None, Floats], Doubles]] = {
    "mean": _sum,
    "cls": lambda so_far, rows: rows[0].astype(np.float64) if so_far is None else so_far,
    "last": lambda _, rows: rows[-1].astype(np.float64),
}
"""What pooling keeps of a text's hidden states, from what it has kept so far and the rows of the next tokens."""


@dataclass(slots=True, eq=False)
class EmbeddingInput:
    """One input: how much of it is evaluated, and what pooling keeps of that."""

    tokens: Sequence[int]
    sequence: CacheSequence | None = None
    num_evaluated: int = 0
    folded: Doubles | None = None

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self.num_evaluated

    @property
    def opened(self) -> CacheSequence:
        assert self.sequence is not None, "it was opened"
        return self.sequence

    def next_tokens(self, count: int) -> Sequence[int]:
        return self.tokens[self.num_evaluated : self.num_evaluated + count]

    def advance(self, rows: Floats, pooling: str) -> None:
        """A forward pass gave the hidden states of the next tokens, (tokens, embedding_length). They are not kept."""
        self.num_evaluated += len(rows)
        self.folded = FOLDS[pooling](self.folded, rows)

    def vector(self, pooling: str) -> Doubles:
        """What the whole input pools to. Shape (embedding_length,)."""
        assert self.folded is not None, "it was evaluated"
        return self.folded / len(self.tokens) if pooling == "mean" else self.folded


class EmbeddingJob:
    """All inputs of one request. The engine's thread owns it; only ``is_cancelled`` is set by others."""

    def __init__(self, request: EmbeddingRequest, model: LoadedModel, receive: Callable[[Line], None]) -> None:
        """Tokenizes all inputs, so call it where that may take time. Raises RequestError."""
        if model.spec.pooling is None:
            raise RequestError("this model does not support embeddings", status=501)
        num_ctx = model.request.num_ctx
        limit = min(request.num_ctx or num_ctx, num_ctx, model.spec.context_length)
        self.receive = receive
        self.is_cancelled = False
        self.pooling: str = model.spec.pooling
        self.inputs = [
            EmbeddingInput(_fitted(_tokens(given, index, model), index, limit, request.truncate, model))
            for index, given in enumerate(request.inputs)
        ]
        self.pending = deque(self.inputs)
        self.num_left = sum(len(each.tokens) for each in self.inputs)
        self._normalize = request.normalize

    @property
    def has_sequence(self) -> bool:
        """Whether an input of it is under way: inputs begin in their order."""
        return bool(self.pending) and self.pending[0].sequence is not None

    def advance(self, each: EmbeddingInput, rows: Floats) -> None:
        """A forward pass gave the hidden states of an input's next tokens. An input that is done pends no longer."""
        each.advance(rows, self.pooling)
        self.num_left -= len(rows)
        if not each.num_left:
            self.pending.remove(each)

    def put_back(self) -> EmbeddingInput:
        """The last input that is under way has yet to begin. Its sequence goes back to the cache."""
        each = [each for each in self.pending if each.sequence is not None][-1]
        self.num_left += each.num_evaluated
        each.num_evaluated, each.folded = 0, None
        return each

    def result(self) -> Line:
        """``embeddings`` (inputs, embedding_length) float32 and the number of tokens per input; or the error."""
        vectors = np.array([each.vector(self.pooling) for each in self.inputs], np.float64)
        if not np.isfinite(vectors).all():
            return {"error": "embedding contains NaN or Inf values"}
        if self._normalize and vectors.size:
            norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors = vectors / np.where(norms > 0, norms, 1.0)
        counts = [len(each.tokens) for each in self.inputs]
        return {"embeddings": vectors.astype(np.float32), "prompt_eval_counts": counts}


def _tokens(given: str | Sequence[int], index: int, model: LoadedModel) -> Sequence[int]:
    if isinstance(given, str):
        tokens: Sequence[int] = model.tokenizer.encode(given, add_special=True, parse_special=False)
    else:
        tokens = given
    if not tokens:
        raise RequestError(f"input {index} is empty; at least one token is needed")
    check_ids(tokens, model.spec.num_vocab)
    return tokens


def _fitted(tokens: Sequence[int], index: int, limit: int, truncate: bool, model: LoadedModel) -> Sequence[int]:
    """Cut an input to the context. An end token that the vocabulary adds to every text stays at its end."""
    if len(tokens) <= limit:
        return tokens
    if not truncate:
        found = f"input {index} has {len(tokens)} tokens, the context {limit}"
        raise RequestError(f"the input length exceeds the context length: {found}")
    tail = tokens[-1:] if model.tokenizer.add_eos else ()
    return [*tokens[: limit - len(tail)], *tail]
