"""What one engine step does for embeddings. The lane belongs to the engine's thread."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from runner.cache.kv_cache import CacheFullError
from runner.engine.embedding import EmbeddingInput, EmbeddingJob
from runner.engine.work import Line, Tell, cancelled, sentence
from runner.sequence import Batch, Sequence

if TYPE_CHECKING:
    from runner.load import LoadedModel

LOG = logging.getLogger(__name__)

Run = tuple[EmbeddingJob, EmbeddingInput, int]
"""A job, one of its inputs, and how many tokens of it go through the model in this step."""


class EmbeddingLane:
    """Embedding jobs in the order of their arrival; a forward pass takes inputs of several jobs together.

    A bidirectional model needs each input whole, but no cells. A causal one takes long inputs in chunks.
    """

    def __init__(self, model: LoadedModel, tell: Tell) -> None:
        self._model = model
        self._tell = tell
        self._max_tokens = model.transformer.max_tokens
        self._is_whole = not model.spec.is_causal
        self._jobs: deque[EmbeddingJob] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def take(self, job: EmbeddingJob) -> None:
        self._jobs.append(job)

    def drop_cancelled(self) -> None:
        for job in cancelled(self._jobs):
            self._leave(job)

    def end_all(self, reason: str) -> None:
        for job in list(self._jobs):
            self._end(job, {"error": reason})

    def step(self, max_tokens: int) -> None:
        """One forward pass. Where inputs can be cut into chunks, it takes at most ``max_tokens``."""
        runs = self._plan(self._max_tokens if self._is_whole else min(max_tokens, self._max_tokens))
        jobs = list(dict.fromkeys(job for job, _, _ in runs))
        try:
            self._forward(runs)
        except CacheFullError as error:
            self._end(jobs[-1], {"error": sentence(error)})
            return
        except Exception as error:  # whatever the model raises ends the requests of this batch, not the process
            LOG.exception("error: a forward pass of %d inputs failed", len(runs))
            for job in jobs:
                self._end(job, {"error": sentence(error)})
            return
        for job in list(self._jobs):
            if job.pending:
                break
            self._end(job, job.result())

    def _plan(self, room: int) -> list[Run]:
        runs: list[Run] = []
        for job in self._jobs:
            for each in job.pending:
                count = min(room, each.num_left)
                if not count or (self._is_whole and count < each.num_left) or not self._open(each):
                    return runs
                runs.append((job, each, count))
                room -= count
        return runs

    def _forward(self, runs: list[Run]) -> None:
        if not runs:
            return
        cache = self._model.cache
        if not self._is_whole:
            cache.place([(each.opened, count) for _, each, count in runs])
        batch = Batch.of((each.opened, each.next_tokens(count), "none") for _, each, count in runs)
        parts = self._model.transformer.embed(batch)
        for (job, each, count), part in zip(runs, parts, strict=True):
            if not self._is_whole:
                cache.advance(each.opened, each.next_tokens(count))
            each.advance(part, count, job.pooling)
            if not each.num_left:
                job.pending.popleft()
                self._close(each)

    def _open(self, each: EmbeddingInput) -> bool:
        if each.sequence is None:
            each.sequence = Sequence() if self._is_whole else self._model.cache.open()
        return each.sequence is not None

    def _close(self, each: EmbeddingInput) -> None:
        if each.sequence is not None and not self._is_whole:
            self._model.cache.close(each.sequence, keep=False)
        each.sequence = None

    def _end(self, job: EmbeddingJob, line: Line) -> None:
        self._tell(job, line)
        self._leave(job)

    def _leave(self, job: EmbeddingJob) -> None:
        self._jobs.remove(job)
        for each in job.pending:
            self._close(each)
