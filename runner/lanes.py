"""What one engine step does for completions, and what for embeddings. A lane belongs to the engine's thread."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from runner.embedding import EmbeddingInput, EmbeddingJob
from runner.request import Completion, Line
from runner.sampling import BrokenLogitsError, Floats
from runner.sequence import Batch, Sequence

if TYPE_CHECKING:
    from runner.load import LoadedModel

LOG = logging.getLogger(__name__)


class Work(Protocol):
    """One request. Whoever asked hears lines through ``receive`` and may set ``is_cancelled``."""

    receive: Callable[[Line], None]
    is_cancelled: bool


Tell = Callable[[Work, Line], None]
AnyWork = TypeVar("AnyWork", bound=Work)


class CompletionLane:
    """Requests that wait, and those that have a sequence: first evaluating their prompt, then generating."""

    def __init__(self, model: LoadedModel, tell: Tell) -> None:
        self._model = model
        self._tell = tell
        # Room for a token of every sequence, so that a batch never leaves a generating one out.
        self._max_tokens = max(model.request.num_batch, model.request.num_parallel)
        self._waiting: deque[Completion] = deque()
        self._active: list[Completion] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._active)

    def take(self, work: Completion) -> None:
        self._waiting.append(work)

    def drop_cancelled(self) -> None:
        for work in cancelled(self._active):
            self._leave(work)
        for work in cancelled(self._waiting):
            self._waiting.remove(work)

    def end_all(self, reason: str) -> None:
        for work in list(self._active):
            self._end(work, {"error": reason})
        while self._waiting:
            self._tell(self._waiting.popleft(), {"error": reason})

    def step(self) -> None:
        """One forward pass and one token for everybody whose prompt is evaluated."""
        self._admit()
        runs = self._plan()
        if not runs:
            return
        try:
            logits = self._forward(runs)
        except Exception as error:  # whatever the model raises ends the requests of this batch, not the process
            LOG.exception("error: a forward pass of %d sequences failed", len(runs))
            for work, _ in runs:
                self._end(work, {"error": sentence(error)})
            return
        for work, count in runs:
            work.advance(count)
        generating = [work for work, _ in runs if work.is_generating]
        for work, row in zip(generating, logits, strict=True):
            self._draw(work, row)

    def _admit(self) -> None:
        while self._waiting and (sequence := self._model.cache.open()) is not None:
            work = self._waiting.popleft()
            work.sequence = sequence
            self._active.append(work)

    def _plan(self) -> list[tuple[Completion, int]]:
        """(completion, number of its tokens) in the next batch: every generating one, then prompts as they came."""
        runs = [(work, 1) for work in self._active if work.is_generating]
        room = self._max_tokens - len(runs)
        for work in self._active:
            if room > 0 and not work.is_generating:
                runs.append((work, min(room, work.num_prompt_left)))
                room -= runs[-1][1]
        return runs

    def _forward(self, runs: list[tuple[Completion, int]]) -> Floats:
        """Logits of those runs that reach the end of their prompt or are past it. Shape (such runs, num_vocab)."""
        for work, _ in runs:
            work.start()
        batch = Batch.of(
            (opened(work.sequence), work.next_tokens(count), "none" if count < work.num_prompt_left else "last")
            for work, count in runs
        )
        return self._model.transformer.forward(batch)

    def _draw(self, work: Completion, logits: Floats) -> None:
        try:
            lines = work.draw(logits, self._model.kernels)
        except BrokenLogitsError as error:
            LOG.error("error: %s", error)
            lines = [{"error": str(error)}]
        except Exception as error:  # one request's fault is not the others'
            LOG.exception("error: choosing a token failed")
            lines = [{"error": sentence(error)}]
        for line in lines:
            self._tell(work, line)
        if lines and "content" not in lines[-1]:
            self._leave(work)

    def _end(self, work: Completion, line: Line) -> None:
        self._tell(work, line)
        self._leave(work)

    def _leave(self, work: Completion) -> None:
        self._active.remove(work)
        self._model.cache.close(opened(work.sequence))
        work.sequence = None


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

    def step(self) -> None:
        """One forward pass."""
        runs = self._plan()
        jobs = list(dict.fromkeys(job for job, _, _ in runs))
        try:
            self._forward(runs)
        except Exception as error:  # as for completions
            LOG.exception("error: a forward pass of %d inputs failed", len(runs))
            for job in jobs:
                self._end(job, {"error": sentence(error)})
            return
        for job in list(self._jobs):
            if job.pending:
                break
            self._end(job, job.result())

    def _plan(self) -> list[tuple[EmbeddingJob, EmbeddingInput, int]]:
        runs: list[tuple[EmbeddingJob, EmbeddingInput, int]] = []
        room = self._max_tokens
        for job in self._jobs:
            for each in job.pending:
                count = min(room, each.num_left)
                if not count or (self._is_whole and count < each.num_left) or not self._open(each):
                    return runs
                runs.append((job, each, count))
                room -= count
        return runs

    def _forward(self, runs: list[tuple[EmbeddingJob, EmbeddingInput, int]]) -> None:
        if not runs:
            return
        batch = Batch.of((opened(each.sequence), each.next_tokens(count), "none") for _, each, count in runs)
        parts = self._model.transformer.embed(batch)
        for (job, each, count), part in zip(runs, parts, strict=True):
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
            self._model.cache.close(each.sequence)
        each.sequence = None

    def _end(self, job: EmbeddingJob, line: Line) -> None:
        self._tell(job, line)
        self._leave(job)

    def _leave(self, job: EmbeddingJob) -> None:
        self._jobs.remove(job)
        for each in job.pending:
            self._close(each)


def cancelled(works: deque[AnyWork] | list[AnyWork]) -> list[AnyWork]:
    return [work for work in works if work.is_cancelled]


def opened(sequence: Sequence | None) -> Sequence:
    assert sequence is not None, "work in a batch has a sequence"
    return sequence


def sentence(error: Exception) -> str:
    """What a client may read of an unexpected error."""
    return f"{type(error).__name__}: {error}"
