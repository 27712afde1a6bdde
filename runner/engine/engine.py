"""The engine: one thread that steps. Each step takes what has arrived, drops what was cancelled, runs the model, tells.

Nobody computes for a client that has left for longer than one step. When there is nothing to do the thread sleeps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from runner.cache.kv_cache import CacheFullError
from runner.devices.base import OutOfMemoryError
from runner.engine.completion import Completion, RequestError
from runner.engine.completion_lane import CompletionLane
from runner.engine.embedding import EmbeddingJob
from runner.engine.embedding_lane import EmbeddingLane
from runner.engine.stats import EngineStats
from runner.engine.work import Line, Work, sentence
from runner.protocol import CacheSize, RunnerStats

if TYPE_CHECKING:
    from runner.load import LoadedModel

LOG = logging.getLogger(__name__)

BUSY_FRAGMENTATION = 0.5
IDLE_FRAGMENTATION = 0.1
MIN_WASTED_CELLS = 128
"""Free cells in short holes from which on, and share of all free cells above which, a cache is defragmented."""

COUNT_EVERY_S = 0.1
"""How old the cache's counts in ``stats`` may be while the engine steps."""

Deliveries = list[tuple[Callable[[Line], None], Line]]


class Engine:
    """Steps one loaded model for everybody.

    ``deliver`` is called with (receiver, line) pairs in order, at most once a step. All work that is not cancelled
    receives one line with ``done``, ``embeddings`` or ``error`` in the end, and nothing after it.
    """

    def __init__(
        self,
        model: LoadedModel,
        deliver: Callable[[Deliveries], None],
        clock: Callable[[], float] = time.perf_counter,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_failure`` is called on the engine's thread when it ends by a fault that it could not tell anybody."""
        self._deliver = deliver
        self._on_failure = on_failure
        self._cache = model.cache
        self._stats = EngineStats()
        self._cache_stats, self._counted_at = model.cache.stats(), time.monotonic()
        self._completions = CompletionLane(model, self._tell, self._stats, clock)
        self._embeddings = EmbeddingLane(model, self._tell, self._stats, clock)
        self._deliveries: Deliveries = []
        self._arrived: deque[Completion | EmbeddingJob] = deque()
        self._budgets: deque[tuple[int, Future[CacheSize]]] = deque()
        self._changed = threading.Condition()
        self._closed_because: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, work: Completion | EmbeddingJob) -> None:
        """Thread-safe. Work that comes after ``close`` is told so."""
        with self._changed:
            if self._closed_because is None:
                self._arrived.append(work)
                self._changed.notify()
                return
        self._deliver([(work.receive, {"error": self._closed_because})])

    def cancel(self, work: Work) -> None:
        """Thread-safe, at any time, more than once. After the running step nothing more is done for it."""
        work.is_cancelled = True

    def resize_cache(self, nbytes: int) -> Future[CacheSize]:
        """Thread-safe. Between two steps the KV cache shrinks or grows to what fits into ``nbytes``.

        The future raises CacheFullError if running sequences need more, OutOfMemoryError if memory is short, and
        RequestError (503) when the engine ends before. Once it is cancelled nothing is resized.
        """
        future: Future[CacheSize] = Future()
        with self._changed:
            if self._closed_because is None:
                self._budgets.append((nbytes, future))
                self._changed.notify()
            else:
                future.set_exception(RequestError(self._closed_because, 503))
        return future

    def close(self, reason: str) -> None:
        """Thread-safe. After the running step the thread ends, and with it all work, with ``reason`` as its error."""
        with self._changed:
            if self._closed_because is None:
                self._closed_because = reason
            self._changed.notify()

    def join(self) -> None:
        """Returns when the thread has ended; call ``close`` before."""
        self._thread.join()

    def step(self) -> None:
        """One step. For the engine's thread, or for a test that has not started it."""
        try:
            self._take_arrivals()
            self._completions.drop_cancelled()
            self._embeddings.drop_cancelled()
            self._resize()
            if self._completions:
                self._completions.step(may_admit=not self._embeddings.is_short)
            if self._embeddings:
                self._embeddings.step(self._completions.num_spare_tokens)
            self._tidy()
            self._count()
        except Exception as error:  # the process loop's edge: a fault of the engine itself
            LOG.exception("error: the engine failed outside of a forward pass")
            self._end_all(sentence(error))
        self._send()

    def stats(self) -> RunnerStats:
        """Thread-safe: what has been counted so far."""
        with self._changed:
            num_arrived = sum(len(work.inputs) if isinstance(work, EmbeddingJob) else 1 for work in self._arrived)
        # A bidirectional model takes more inputs at a time than it has sequences, and needs none for them.
        num_active = min(self._completions.num_active + self._embeddings.num_active, self._cache.num_parallel)
        return self._stats.snapshot(
            num_waiting=num_arrived + self._completions.num_waiting + self._embeddings.num_waiting,
            num_active=num_active,
            num_parallel=self._cache.num_parallel,
            cache=self._cache_stats,
        )

    @property
    def num_busy(self) -> int:
        """Requests that have arrived and are not done."""
        return len(self._arrived) + len(self._completions) + len(self._embeddings)

    def _run(self) -> None:
        try:
            while self._wait():
                self.step()
            self._take_arrivals()
            reason = self._closed_because or "the engine has stopped"
            self._end_all(reason)
            self._send()
            self._refuse_budgets(reason)
        except Exception:  # the thread's edge: its books are broken, so nobody can be told any more
            LOG.critical("error: the engine has failed", exc_info=True)
            self._on_failure()

    def _resize(self) -> None:
        while self._budgets:
            nbytes, future = self._budgets.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._cache.resize_within(nbytes))
            except Exception as error:
                future.set_exception(error)
                if not isinstance(error, (CacheFullError, OutOfMemoryError)):
                    raise  # nobody knows what the cache holds now

    def _refuse_budgets(self, reason: str) -> None:
        for _, future in self._budgets:
            if future.set_running_or_notify_cancel():
                future.set_exception(RequestError(reason, 503))

    def _tidy(self) -> None:
        """Brings the cells in use together where that is worth it: sooner when nobody waits for it."""
        threshold = BUSY_FRAGMENTATION if self.num_busy else IDLE_FRAGMENTATION
        if self._cache.num_wasted >= MIN_WASTED_CELLS and self._cache.fragmentation > threshold:
            self._cache.defragment()

    def _count(self) -> None:
        """Looks at all cells from time to time, for those who ask from other threads."""
        now = time.monotonic()
        if not self.num_busy or now - self._counted_at >= COUNT_EVERY_S:
            self._cache_stats, self._counted_at = self._cache.stats(), now

    def _wait(self) -> bool:
        """Sleep until there is work; False when the engine is to end."""
        with self._changed:
            while not self.num_busy and not self._budgets and self._closed_because is None:
                self._changed.wait()
            return self._closed_because is None

    def _take_arrivals(self) -> None:
        with self._changed:
            arrived, self._arrived = self._arrived, deque()
        for work in arrived:
            if isinstance(work, Completion):
                self._completions.take(work)
            else:
                self._embeddings.take(work)

    def _end_all(self, reason: str) -> None:
        self._completions.end_all(reason)
        self._embeddings.end_all(reason)

    def _tell(self, work: Work, line: Line) -> None:
        if not work.is_cancelled:
            self._deliveries.append((work.receive, line))

    def _send(self) -> None:
        if self._deliveries:
            deliveries, self._deliveries = self._deliveries, []
            self._deliver(deliveries)
