"""Who gets the next sequence: requests in the order of their arrival, unless waiting saves work.

A request whose prompt begins like one that is being evaluated at this moment waits until that beginning is in the
cache, and lets others pass; so many requests with one long prompt compute it once. Nobody passes one for whom there
are too few cells beside those who run: it is next when they suffice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runner.cache.kv_cache import KVCache
from runner.cache.prefixes import num_common
from runner.engine.completion import Completion
from runner.sequence import Int32Array

MIN_SAVED_TOKENS = 32
"""Fewer are computed sooner than waited for."""


@dataclass(slots=True, eq=False)
class _Waiting:
    work: Completion
    leader: Completion | None = None
    num_shared: int = 0  # tokens with which the leader's prompt begins likewise


class Admission:
    """Requests without a sequence. Belongs to the engine's thread."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._waiting: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, work: Completion) -> None:
        self._waiting.append(_Waiting(work))

    def put_back(self, work: Completion) -> None:
        """It had a sequence, and others need the cells: it is the next one who gets one."""
        self._waiting.appendleft(_Waiting(work))

    def clear(self) -> list[Completion]:
        """Takes everybody out."""
        works = [each.work for each in self._waiting]
        self._waiting.clear()
        return works

    def drop_cancelled(self) -> None:
        if any(each.work.is_cancelled for each in self._waiting):
            self._waiting = deque(each for each in self._waiting if not each.work.is_cancelled)

    def admitted(self, active: Sequence[Completion]) -> Iterator[Completion]:
        """Gives sequences to those whose turn it is. ``active``: those who have one; it may grow meanwhile."""
        if self._cache.all_are_open:
            return
        for each in list(self._waiting):
            if self._should_follow(each, active):
                continue
            work = each.work
            if self._cache.num_open and not self._cache.has_room(work.beginning, may_share=work.is_cached):
                return
            work.sequence = self._cache.open(work.beginning if work.is_cached else None)
            assert work.sequence is not None, "a sequence is free"
            work.sequence.is_reusable = work.is_cached
            work.begin()
            self._waiting.remove(each)
            yield work
            if self._cache.all_are_open:
                return

    def _should_follow(self, each: _Waiting, active: Sequence[Completion]) -> bool:
        if each.leader is None and each.work.is_cached:
            each.leader, each.num_shared = self._leader(each.work.beginning, active)
        leader = each.leader
        if leader is None or leader.num_evaluated >= each.num_shared or leader not in active:
            each.leader = None
            return False
        return True

    def _leader(self, prompt: Int32Array, active: Sequence[Completion]) -> tuple[Completion | None, int]:
        """The request under way that will have computed most of what ``prompt`` begins with, if that saves enough."""
        evaluating = [work for work in active if work.is_cached and not work.is_generating]
        if not evaluating:
            return None, 0
        best: Completion | None = None
        most = self._cache.longest_prefix(prompt) + MIN_SAVED_TOKENS - 1
        for work in evaluating:
            shared = min(num_common(work.beginning, prompt), prompt.size - 1)
            if shared > max(most, work.num_evaluated):
                best, most = work, shared
        return best, most
