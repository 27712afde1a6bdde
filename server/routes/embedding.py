"""Embeddings of a batch of inputs, the same for both API families."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.protocol import EmbeddingRequest
from server.catalog import Entry
from server.errors import InvalidRequestError
from server.routes.generation import context_notes
from server.routes.service import Service

Vector = Sequence[float]


@dataclass(frozen=True, slots=True)
class Embeddings:
    vectors: Sequence[Vector]
    num_tokens: int
    load_duration: int  # ns
    total_duration: int  # ns
    notes: Mapping[str, Any]


async def embed(
    service: Service,
    entry: Entry,
    loading: Mapping[str, Any],
    keep_alive_s: float | None,
    wire: EmbeddingRequest,
    dimensions: int | None = None,
) -> Embeddings:
    """Load the model and embed all inputs in one call; no inputs only load it.

    ``dimensions`` cuts each vector and brings it back to length 1. Raises InvalidRequestError when the model has fewer.
    """
    started = time.perf_counter_ns()
    width = entry.facts.embedding_length
    if dimensions and width and dimensions > width:
        raise InvalidRequestError(f"field 'dimensions': the model has {width} (found {dimensions})", param="dimensions")
    async with service.acquire(entry, loading, keep_alive_s) as running:
        load_duration = time.perf_counter_ns() - started
        notes = context_notes(entry, loading, running)
        vectors: Sequence[Vector] = ()
        num_tokens = 0
        if wire.inputs:
            answer = await running.client.embedding(wire.model_copy(update={"num_ctx": running.num_ctx}))
            vectors, num_tokens = answer.embeddings, sum(answer.prompt_eval_counts)
            service.metrics.tokens(entry.name, num_tokens, 0)
    if dimensions:
        vectors = [_unit(vector[:dimensions]) for vector in vectors]
    return Embeddings(vectors, num_tokens, load_duration, time.perf_counter_ns() - started, notes)


def _unit(vector: Vector) -> Vector:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector
