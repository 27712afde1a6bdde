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


def _mean(so_far: Doubles | None, part: Doubles, num_tokens: int, num_new: int) -> Doubles:
    return part if so_far is None else so_far + (part - so_far) * (num_new / num_tokens)


JOINS: dict[str, Callable[[Doubles | None, Doubles, int, int], Doubles]] = {
    "mean": _mean,
    "cls": lambda so_far, part, _tokens, _new: part if so_far is None else so_far,
    "last": lambda _so_far, part, _tokens, _new: part,
}
"""Pooling of a text's first ``num_tokens`` tokens from the pooling so far and that of the last ``num_new`` ones."""


@dataclass(slots=True, eq=False)
class EmbeddingInput:
    """One input: how much of it is evaluated, and what that part pools to."""

    tokens: Sequence[int]
    sequence: CacheSequence | None = None
    num_evaluated: int = 0
    vector: Doubles | None = None

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self.num_evaluated

    @property
    def opened(self) -> CacheSequence:
        assert self.sequence is not None, "it was opened"
        return self.sequence

    def next_tokens(self, count: int) -> Sequence[int]:
        return self.tokens[self.num_evaluated : self.num_evaluated + count]

    def advance(self, part: NDArray[np.float32], count: int, pooling: str) -> None:
        """A forward pass gave ``part`` (embedding_length,), pooled over the next ``count`` tokens."""
        self.num_evaluated += count
        self.vector = JOINS[pooling](self.vector, part.astype(np.float64), self.num_evaluated, count)


class EmbeddingJob:
    """All inputs of one request. The engine's thread owns it; only ``is_cancelled`` is set by others."""

    def __init__(self, request: EmbeddingRequest, model: LoadedModel, receive: Callable[[Line], None]) -> None:
        """Tokenizes all inputs, so call it where that may take time. Raises RequestError."""
        if model.spec.pooling is None:
            raise RequestError("this model does not support embeddings", status=501)
        limit = min(model.request.num_ctx, model.spec.context_length)
        self.receive = receive
        self.is_cancelled = False
        self.pooling: str = model.spec.pooling
        self.inputs = [
            EmbeddingInput(_fitted(_tokens(given, index, model), index, limit, request.truncate, model))
            for index, given in enumerate(request.inputs)
        ]
        self.pending = deque(self.inputs)
        self._normalize = request.normalize

    def result(self) -> Line:
        """``embeddings`` (inputs, embedding_length) float32 and the number of tokens per input; or the error."""
        vectors = np.array([each.vector for each in self.inputs], np.float64)
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
