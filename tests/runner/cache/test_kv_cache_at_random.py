"""Random operations on the KV cache: whatever their order, every sequence finds what was stored for it."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runner.cache.kv_cache import CacheFullError
from tests.runner.cache.fakes import Bench


class Cache(RuleBasedStateMachine):
    """Against the model in ``fakes``; tokens are few, so that sequences often begin alike."""

    @initialize(
        num_ctx=st.integers(4, 24),
        num_parallel=st.integers(1, 4),
        window=st.sampled_from([0, 0, 1, 3, 5]),
        slack=st.integers(1, 6),
        max_prefixes=st.sampled_from([0, 2, 64]),
    )
    def begin(self, num_ctx: int, num_parallel: int, window: int, slack: int, max_prefixes: int) -> None:
        self.bench = Bench(
            num_ctx=num_ctx, num_parallel=num_parallel, window=window, slack=slack, max_prefixes=max_prefixes
        )
        self.num_batch = slack if window else num_ctx
        self.is_shrunk = False

    @property
    def open_sequences(self) -> list:
        return list(self.bench.stories)

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20), is_known=st.booleans())
    def open(self, prompt: list[int], is_known: bool) -> None:
        bench = self.bench
        is_full = bench.cache.num_open == bench.cache.num_parallel
        prompt = prompt[: bench.cache.num_ctx]
        sequence = bench.open(prompt if is_known else None)
        assert (sequence is None) == is_full

    @precondition(lambda self: self.bench.stories)
    @rule(data=st.data(), fails=st.booleans())
    def step(self, data: st.DataObject, fails: bool) -> None:
        bench = self.bench
        runs = []
        for sequence in data.draw(st.lists(st.sampled_from(self.open_sequences), min_size=1, unique=True)):
            room = min(self.num_batch, bench.cache.num_ctx - sequence.num_past)
            run = data.draw(st.lists(st.integers(0, 1), min_size=min(1, room), max_size=room))
            runs.append((sequence, run))
        before = bench.state()
        try:
            if fails:
                bench.cache.place([(sequence, len(run)) for sequence, run in runs])
            else:
                bench.step(runs)
        except CacheFullError:
            assert self.is_shrunk, "cells for all sequences in full length there are"
            assert bench.state() == before

    @precondition(lambda self: self.bench.stories)
    @rule(data=st.data(), keep=st.booleans())
    def close(self, data: st.DataObject, keep: bool) -> None:
        self.bench.close(data.draw(st.sampled_from(self.open_sequences)), keep)

    @precondition(lambda self: any(sequence.num_past for sequence in self.bench.stories))
    @rule(data=st.data())
    def shift(self, data: st.DataObject) -> None:
        bench = self.bench
        sequence = data.draw(st.sampled_from([each for each in self.open_sequences if each.num_past]))
        num_past, window = sequence.num_past, bench.window
        num_keep = data.draw(st.integers(0, num_past - 1))
        proposed = bench.cache.num_discardable(sequence, num_keep)
        assert 0 <= proposed <= max(1, (num_past - num_keep) // 2)
        num_discard = data.draw(st.sampled_from([max(1, proposed), *range(1, num_past - num_keep + 1)]))
        before = bench.state()
        try:
            bench.shift(sequence, num_keep, num_discard)
        except CacheFullError:
            assert self.is_shrunk
            assert bench.state() == before
        except ValueError:
            assert num_discard > max(proposed, num_past + 1 - window - num_keep)
            assert num_past >= window > 0
            assert bench.state() == before
        else:
            assert proposed
            assert not window or num_past <= window or num_discard <= num_past + 1 - window - num_keep

    @rule()
    def defragment(self) -> None:
        self.bench.cache.defragment()
        for kind in self.bench.cache._kinds:
            assert len(kind.pool._holes.starts) <= 1

    @rule(is_dropped=st.booleans())
    def forget(self, is_dropped: bool) -> None:
        if is_dropped:
            self.bench.cache.forget()
            assert self.bench.cache.stats().num_prefixes == 0

    @rule(num_cells=st.integers(1, 120))
    def resize(self, num_cells: int) -> None:
        before = self.bench.state()
        try:
            self.bench.cache.resize(num_cells)
            self.is_shrunk = num_cells < self.bench.cache.num_ctx * self.bench.cache.num_parallel
        except CacheFullError:
            assert self.bench.state() == before

    @invariant()
    def check(self) -> None:
        self.bench.check()
        assert self.bench.cache.stats().num_prefixes <= 64

    @invariant()
    def every_prefix_serves_at_its_end(self) -> None:
        cache = self.bench.cache
        for each in cache._prefixes:
            longer = np.append(each.stored, [9]).astype(np.int32)
            assert cache.longest_prefix(longer) == each.num_past


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
