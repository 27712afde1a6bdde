"""What one engine step does for embeddings. The lane belongs to the engine's thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from runner.cache.kv_cache import CacheFullError
from runner.engine.batching import fair_shares
from runner.engine.embedding import EmbeddingInput, EmbeddingJob
from runner.engine.stats import EngineStats
from runner.engine.work import Line, Tell, cancelled, sentence
from runner.sequence import Batch, Sequence

if TYPE_CHECKING:
    from runner.load import LoadedModel

LOG = logging.getLogger(__name__)

Run = tuple[EmbeddingJob, EmbeddingInput, int]
"""A job, one of its inputs, and how many tokens of it go through the model in this step."""


class EmbeddingLane:
    """Embedding jobs; every forward pass takes inputs of all of them, in equal shares as far as that goes.

    A bidirectional model needs each input whole, but no cells. A causal one takes long inputs in chunks. A job that got
    less than its share has its turn sooner in the next step, so that a small one never waits for a large one to end.
    Where cells are short it waits for completions to end; among themselves, the inputs that came last begin anew.
    """

    def __init__(
        self, model: LoadedModel, tell: Tell, stats: EngineStats, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.num_active = 0
        """Inputs with a sequence; of a bidirectional model those in the batch."""
        self.num_waiting = 0
        """Inputs without one that are not done."""
        self._is_short = False
        self._model = model
        self._tell = tell
        self._stats = stats
        self._clock = clock
        self._max_tokens = model.transformer.max_tokens
        self._is_whole = not model.spec.is_causal
        self._jobs: dict[EmbeddingJob, int] = {}  # in the order of their turns, each with the number of its arrival
        self._num_arrived = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def is_short(self) -> bool:
        """Whether it waits for cells that completions have, of which no more should begin."""
        return self._is_short and bool(self._jobs)

    def take(self, job: EmbeddingJob) -> None:
        self._jobs[job] = self._num_arrived
        self._num_arrived += 1
        self.num_waiting += len(job.pending)

    def drop_cancelled(self) -> None:
        for job in cancelled(list(self._jobs)):
            self._leave(job)

    def end_all(self, reason: str) -> None:
        for job in list(self._jobs):
            self._end(job, {"error": reason})

    def step(self, max_tokens: int) -> None:
        """One forward pass. Where inputs can be cut into chunks, it takes at most ``max_tokens``."""
        runs = self._plan(self._max_tokens if self._is_whole else min(max_tokens, self._max_tokens))
        jobs = dict.fromkeys(job for job, _, _ in runs)
        try:
            self._forward(runs)
        except Exception as error:  # whatever the model raises ends the requests of this batch, not the process
            LOG.exception("error: a forward pass of %d inputs failed", len(runs))
            for job in jobs:
                self._end(job, {"error": sentence(error)})
        for job in [job for job in self._jobs if not job.pending]:
            self._end(job, job.result())

    def _plan(self, room: int) -> list[Run]:
        """Each job's share of the room, and of what is left then as much as fits: passes are full where they can be."""
        runs: dict[EmbeddingInput, Run] = {}
        jobs = self._candidates(room)
        shares = fair_shares(room, [job.num_left for job in jobs])
        taken = dict.fromkeys(self._jobs, 0.0)  # of each job's share
        for is_shared in (True, False):
            for job, share in zip(jobs, shares, strict=True):
                count = self._add(runs, job, share if is_shared else room, room)
                taken[job] += count / max(1, share)
                room -= count
        turns = sorted(self._jobs, key=lambda job: min(1.0, taken[job]))
        self._jobs = {job: self._jobs[job] for job in turns}
        return list(runs.values())

    def _candidates(self, room: int) -> list[EmbeddingJob]:
        """Those of whom something can be computed now: they have a sequence, or one is left for them."""
        cache = self._model.cache
        num_new = room if self._is_whole else cache.num_parallel - cache.num_open
        jobs = []
        for job in self._jobs:
            if job.has_sequence:
                jobs.append(job)
            elif num_new > 0:
                jobs.append(job)
                num_new -= 1
        return jobs

    def _add(self, runs: dict[EmbeddingInput, Run], job: EmbeddingJob, wanted: int, room: int) -> int:
        """Adds a job's next tokens to the runs, ``wanted`` of them or up to the end of an input; returns how many."""
        num_added = 0
        for each in job.pending:
            if num_added >= wanted:
                break
            num_before = runs[each][2] if each in runs else 0
            count = each.num_left - num_before
            if not self._is_whole:
                count = min(count, wanted - num_added)
            if count > room - num_added or not self._open(each):
                break
            runs[each] = (job, each, num_before + count)
            num_added += count
        return num_added

    def _forward(self, runs: list[Run]) -> None:
        runs = runs if self._is_whole else self._placed(runs)
        if not runs:
            return
        cache = self._model.cache
        batch = Batch.of((each.opened, each.next_tokens(count), "none") for _, each, count in runs)
        started = self._clock()
        hidden = self._model.transformer.embed(batch)
        self._stats.stepped(len(runs), batch.num_tokens, self._clock() - started)
        for (job, each, count), rows in zip(runs, hidden, strict=True):
            if not self._is_whole:
                cache.advance(each.opened, each.next_tokens(count))
            job.advance(each, rows)
            if not each.num_left:
                self._close(each)

    def _placed(self, runs: list[Run]) -> list[Run]:
        """The runs that have cells."""
        cache = self._model.cache
        self._is_short = False
        while runs:
            try:
                cache.place([(each.opened, count) for _, each, count in runs])
                break
            except CacheFullError as error:
                self._is_short = cache.num_open > self.num_active
                if self._is_short:
                    return []
                self._make_way(error)
                runs = [run for run in runs if run[1].sequence is not None]
        return runs

    def _make_way(self, error: CacheFullError) -> None:
        """What came last begins anew; an input that has the cache to itself ends its job."""
        last = max((job for job in self._jobs if job.has_sequence), key=self._jobs.__getitem__)
        if self.num_active == 1:
            self._end(last, {"error": sentence(error)})
            return
        self._close(last.put_back())
        self.num_waiting += 1

    def _open(self, each: EmbeddingInput) -> bool:
        if each.sequence is None:
            each.sequence = Sequence() if self._is_whole else self._model.cache.open()
            if each.sequence is None:
                return False
            self.num_waiting -= 1
            self.num_active += 1
        return True

    def _close(self, each: EmbeddingInput) -> None:
        """Nothing more is done for it."""
        if each.sequence is None:
            self.num_waiting -= 1
            return
        if not self._is_whole:
            self._model.cache.close(each.sequence, keep=False)
        each.sequence = None
        self.num_active -= 1

    def _end(self, job: EmbeddingJob, line: Line) -> None:
        self._tell(job, line)
        self._leave(job)

    def _leave(self, job: EmbeddingJob) -> None:
        del self._jobs[job]
        for each in job.pending:
            self._close(each)
