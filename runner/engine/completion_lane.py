"""What one engine step does for completions. The lane belongs to the engine's thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from runner.cache.kv_cache import CacheFullError
from runner.engine.admission import Admission
from runner.engine.batching import SMALLEST_CHUNK, ChunkBudget, fair_shares
from runner.engine.completion import Completion
from runner.engine.stats import EngineStats
from runner.engine.work import Line, Tell, cancelled, sentence
from runner.sampling import BrokenLogitsError, Floats
from runner.sequence import Batch, Int32Array, Output

if TYPE_CHECKING:
    from runner.load import LoadedModel

LOG = logging.getLogger(__name__)

Run = tuple[Completion, Int32Array]
"""A request and those of its tokens that go through the model in this step."""


class CompletionLane:
    """Requests that wait, and those that have a sequence: first evaluating their prompt, then generating."""

    def __init__(
        self, model: LoadedModel, tell: Tell, stats: EngineStats, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._model = model
        self._clock = clock
        self._tell = tell
        self._stats = stats
        # Room for a token of every sequence, so that a batch never leaves a generating one out.
        self._max_tokens = max(model.request.num_batch, model.request.num_parallel)
        self._budget = ChunkBudget(self._max_tokens)
        self._admission = Admission(model.cache)
        self._active: list[Completion] = []

    def __len__(self) -> int:
        return self.num_waiting + self.num_active

    @property
    def num_spare_tokens(self) -> int:
        """Tokens that something else may compute in this step without making running sequences wait for long."""
        num_generating = sum(work.is_generating for work in self._active)
        return max(SMALLEST_CHUNK, self._budget.tokens(num_generating)) if self._active else self._max_tokens

    @property
    def num_waiting(self) -> int:
        return len(self._admission)

    @property
    def num_active(self) -> int:
        return len(self._active)

    def take(self, work: Completion) -> None:
        self._admission.take(work)

    def drop_cancelled(self) -> None:
        for work in cancelled(self._active):
            self._leave(work)
        self._admission.drop_cancelled()

    def end_all(self, reason: str) -> None:
        for work in list(self._active):
            self._end(work, {"error": reason})
        for work in self._admission.clear():
            self._tell(work, {"error": reason})

    def step(self, *, may_admit: bool = True) -> None:
        """One forward pass and one token for everybody whose prompt is evaluated."""
        if may_admit:
            self._admit()
        self._shift()
        runs = self._placed(self._plan())
        if not runs:
            return
        started = self._clock()
        try:
            logits = self._forward(runs)
        except Exception as error:  # whatever the model raises ends the requests of this batch, not the process
            LOG.exception("error: a forward pass of %d sequences failed", len(runs))
            for work, _ in runs:
                self._end(work, {"error": sentence(error)})
            return
        self._count(runs, self._clock() - started)
        for work, tokens in runs:
            self._model.cache.advance(work.opened, tokens)
            work.advance(len(tokens))
        drawing = [work for work, _ in runs if work.is_generating]
        for work, row in zip(drawing, logits, strict=True):
            self._draw(work, row)

    def _admit(self) -> None:
        for work in self._admission.admitted(self._active):
            if not work.is_put_back:
                self._stats.queue.add(work.waited_s())
            self._active.append(work)

    def _shift(self) -> None:
        """Makes room in the context of those who have filled it."""
        for work in list(self._active):
            while work in self._active and work.is_context_full:
                self._shift_one(work)

    def _shift_one(self, work: Completion) -> None:
        """Where cells are short for that, there are more of them afterwards."""
        cache, transformer = self._model.cache, self._model.transformer
        num_keep = work.num_keep
        num_discard = cache.num_discardable(work.opened, num_keep)
        if not num_discard:
            self._finish(work, work.end_of_context())
            return
        try:
            cache.shift(work.opened, num_keep, num_discard, transformer.shifted_by(-num_discard))
            work.num_shifted += num_discard
        except CacheFullError as error:
            self._make_way(error)
        except Exception as error:  # a fault of one request's shift is not the others'
            LOG.exception("error: shifting a context failed")
            self._end(work, {"error": sentence(error)})

    def _plan(self) -> list[Run]:
        """Every generating request, then shares of the prompts."""
        generating = [work for work in self._active if work.is_generating]
        prompts = [work for work in self._active if not work.is_generating]
        room = self._budget.tokens(len(generating)) if prompts else 0
        shares = fair_shares(room, [work.num_ready for work in prompts])
        runs = [(work, work.next_tokens(1)) for work in generating]
        return runs + [(work, work.next_tokens(share)) for work, share in zip(prompts, shares, strict=True) if share]

    def _placed(self, runs: list[Run]) -> list[Run]:
        """The runs that have cells. Where cells are short for all, those who came last make way."""
        while runs:
            try:
                self._model.cache.place([(work.opened, len(tokens)) for work, tokens in runs])
                break
            except CacheFullError as error:
                self._make_way(error)
                runs = [run for run in runs if run[0] in self._active]
        return runs

    def _make_way(self, error: CacheFullError) -> None:
        """Who came last waits until others have ended; one that has the cache to itself gets the error."""
        last = self._active[-1]
        if self._model.cache.num_open == 1:
            self._end(last, {"error": sentence(error)})
            return
        self._leave(last)
        last.put_back()
        self._admission.put_back(last)

    def _forward(self, runs: list[Run]) -> Floats:
        """Logits of those runs that reach the end of their prompt or are past it. Shape (such runs, num_vocab)."""
        for work, _ in runs:
            work.start()
        return self._model.transformer.forward(
            Batch.of((work.opened, tokens, _output(work, tokens)) for work, tokens in runs)
        )

    def _count(self, runs: list[Run], seconds: float) -> None:
        num_tokens = sum(len(tokens) for _, tokens in runs)
        num_generating = sum(work.is_generating for work, _ in runs)
        self._stats.stepped(len(runs), num_tokens, seconds)
        self._budget.observe(num_generating, num_tokens - num_generating, seconds)

    def _draw(self, work: Completion, logits: Floats) -> None:
        try:
            lines = work.draw(logits, self._model.kernels)
        except BrokenLogitsError as error:
            LOG.error("error: %s", error)
            lines = [{"error": str(error)}]
        except Exception as error:  # one request's fault is not the others'
            LOG.exception("error: choosing a token failed")
            lines = [{"error": sentence(error)}]
        histogram = self._stats.first_token if work.num_generated == 1 else self._stats.inter_token
        histogram.add(work.since_last_token_s())
        self._finish(work, lines)

    def _finish(self, work: Completion, lines: list[Line]) -> None:
        """Tells the lines; the request is over if the last one says so."""
        for line in lines:
            self._tell(work, line)
        if lines and "content" not in lines[-1]:
            self._leave(work)

    def _end(self, work: Completion, line: Line) -> None:
        self._tell(work, line)
        self._leave(work)

    def _leave(self, work: Completion) -> None:
        """What a finished answer stored stays as a prefix, also that of a client who has read enough; not a prompt that
        nobody wants answered any more."""
        self._active.remove(work)
        self._model.cache.close(work.opened, keep=work.is_cached and work.is_generating)
        work.sequence = None


def _output(work: Completion, tokens: Int32Array) -> Output:
    return "none" if len(tokens) < work.num_left else "last"
