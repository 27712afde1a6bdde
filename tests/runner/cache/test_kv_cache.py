"""The KV cache: what was stored for a token is found again, by every sequence that begins with it, wherever it lies."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runner.cache.kv_cache import CacheFullError, KVCache
from tests.runner.cache.fakes import Bench


def tokens(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


# ---- opening and closing


def test_no_more_sequences_are_open_than_allowed() -> None:
    bench = Bench(num_ctx=8, num_parallel=2)
    first = bench.opened()
    bench.opened()
    assert bench.open() is None
    bench.close(first)
    assert bench.cache.num_open == 1
    assert bench.open() is not None


def test_closing_twice_is_an_error() -> None:
    bench = Bench(num_ctx=8, num_parallel=2)
    sequence = bench.opened()
    bench.cache.close(sequence)
    with pytest.raises(KeyError, match="not open"):
        bench.cache.close(sequence)


def test_a_model_without_a_cache_only_counts() -> None:
    cache = KVCache([], num_ctx=8, num_parallel=1)
    sequence = cache.open()
    assert sequence is not None
    cache.place([(sequence, 8)])
    cache.advance(sequence, tokens(0, 8))
    assert (sequence.num_past, sequence.cells.size, sequence.stored.tolist()) == (8, 0, tokens(0, 8))
    cache.defragment()
    cache.close(sequence)
    cache.check_integrity()
    assert (cache.num_open, cache.fragmentation, cache.num_wasted, cache.stats().num_prefixes) == (0, 0, 0, 0)


def test_positions_past_the_context_are_refused() -> None:
    bench = Bench(num_ctx=8, num_parallel=1)
    sequence = bench.started(tokens(0, 6))
    with pytest.raises(ValueError, match="position 8 lies past the context of 8"):
        bench.cache.place([(sequence, 3)])


# ---- prefixes


def test_a_prompt_goes_on_from_what_a_finished_sequence_stored() -> None:
    bench = Bench(num_ctx=64, num_parallel=2)
    first = bench.started(tokens(0, 20))
    cells = first.cells[:20].tolist()
    bench.close(first)
    second = bench.opened([*tokens(0, 12), 99, 98])
    assert second.num_past == second.num_reused == 12
    assert second.cells[:12].tolist() == cells[:12]  # by reference
    bench.step([(second, [99, 98])])
    bench.check()
    assert bench.cache.stats().num_used == 22
    stats = bench.cache.stats()
    assert (stats.num_hits, stats.num_misses, stats.num_reused_tokens) == (1, 1, 12)
    assert (stats.num_shared, stats.num_cached, stats.num_prefixes) == (12, 8, 1)


def test_a_prompt_goes_on_from_a_sequence_that_is_still_open() -> None:
    bench = Bench(num_ctx=64, num_parallel=3)
    first = bench.started(tokens(0, 20))
    others = [bench.started(tokens(0, 20)) for _ in range(2)]
    assert [other.num_reused for other in others] == [19, 19]
    for step in range(5):
        bench.step([(first, [step]), (others[0], [step + 1]), (others[1], [step + 2])])
    bench.close(first)
    bench.check()


def test_what_is_not_to_be_kept_serves_nobody() -> None:
    bench = Bench(num_ctx=64, num_parallel=1)
    bench.close(bench.started(tokens(0, 20)), keep=False)
    assert bench.cache.stats().num_used == 0
    assert bench.opened(tokens(0, 20)).num_reused == 0


def test_forgotten_prefixes_are_gone_and_open_sequences_become_none() -> None:
    bench = Bench(num_ctx=64, num_parallel=2)
    bench.close(bench.started(tokens(0, 20)))
    sequence = bench.started(tokens(30, 20))
    bench.cache.forget()
    assert bench.started(tokens(30, 20)).num_reused == 0
    bench.close(sequence)
    assert bench.cache.stats().num_prefixes == 0
    bench.check()


def test_cells_of_a_step_that_failed_are_used_by_its_second_try_and_not_kept() -> None:
    bench = Bench(num_ctx=64, num_parallel=1)
    sequence = bench.started(tokens(0, 4))
    bench.cache.place([(sequence, 8)])
    bench.cache.place([(sequence, 8)])
    assert bench.cache.stats().num_used == 12
    bench.step([(sequence, [9, 9])])
    bench.check()
    bench.close(sequence)
    assert bench.cache.stats().num_used == 6


# ---- making room


def test_prefixes_go_oldest_first_and_no_more_than_needed() -> None:
    bench = Bench(num_ctx=64, num_parallel=1)
    for start in (0, 100, 200):
        bench.close(bench.started(tokens(start, 20)))
    bench.close(bench.started([*tokens(0, 5), 99]), keep=False)  # uses the oldest, which is then the youngest
    bench.started(tokens(300, 10))
    assert [each.stored[0] for each in bench.cache._prefixes] == [200, 0]
    bench.check()


def test_three_interleaved_sequences_of_70_and_one_in_the_holes_of_the_second() -> None:
    bench = Bench(num_ctx=128, num_parallel=3)
    bench.cache.resize(256)
    sequences = [bench.opened() for _ in range(3)]
    for start in range(0, 70, 10):
        bench.step([(sequence, tokens(100 * i + start, 10)) for i, sequence in enumerate(sequences)])
    bench.close(sequences[1], keep=False)
    late = bench.started(tokens(300, 116))
    bench.check()
    assert bench.cache.stats().num_used == 256
    with pytest.raises(CacheFullError):
        bench.step([(late, [1])])
    bench.check()


def test_a_placement_that_needs_all_scattered_cells_moves_the_others_together() -> None:
    """Every second cell is free; all of them are needed."""
    bench = Bench(num_ctx=64, num_parallel=2)
    first, second = bench.opened(), bench.opened()
    for step in range(64):
        bench.step([(first, [step]), (second, [100 + step])])
    first_table, second_table = first.tables[0], second.tables[0]
    pool = bench.cache._kinds[0].pool
    assert pool.num_free == 0
    swap = [cell for pair in zip(first_table.cells.tolist(), second_table.cells.tolist(), strict=True) for cell in pair]
    for each in bench.layers:
        for tensor in (each.keys, each.values):
            tensor.rows[:] = tensor.rows[swap]  # as if both had taken turns
    first_table.cells[:] = range(0, 128, 2)
    second_table.cells[:] = range(1, 128, 2)
    bench.check()
    bench.close(second, keep=False)
    assert (bench.cache.fragmentation, bench.cache.num_wasted) == (1, 64)
    third = bench.started(tokens(200, 64))
    stats = bench.cache.stats()
    assert (stats.num_defragmentations, stats.num_used) == (1, 128)
    assert stats.moved_bytes == 32 * 2 * (34 + 18)
    assert len(third.tables[0].extents) == 1
    bench.check()


def test_a_true_lack_of_cells_is_told_before_anything_changes() -> None:
    bench = Bench(num_ctx=32, num_parallel=2)
    bench.close(bench.started(tokens(500, 4)))
    bench.cache.resize(40)
    first, second = bench.started(tokens(0, 16)), bench.started(tokens(100, 16))
    before = bench.state()
    with pytest.raises(CacheFullError, match="the KV cache is full: 9 cells are needed, 8 are free") as full:
        bench.cache.place([(first, 5), (second, 4)])
    assert (full.value.needed, full.value.free) == (9, 8)
    assert bench.state() == before  # the prefix that would not have sufficed is still there
    bench.step([(first, tokens(0, 8))])
    assert bench.cache.stats().num_prefixes == 0
    bench.check()


# ---- context shift


def test_cells_that_others_own_are_copied_before_their_keys_turn() -> None:
    bench = Bench(num_ctx=32, num_parallel=2)
    first = bench.started(tokens(0, 32))
    second = bench.started(tokens(0, 24))
    assert second.num_reused == 23
    bench.shift(first, 4, 14)
    bench.check()
    assert first.cells[:4].tolist() == second.cells[:4].tolist()
    assert not set(first.cells[4:18].tolist()) & set(second.cells[:24].tolist())
    bench.step([(first, tokens(70, 14)), (second, [5])])
    bench.check()


def test_a_shifted_sequence_serves_nobody() -> None:
    bench = Bench(num_ctx=32, num_parallel=2)
    first = bench.started(tokens(0, 32))
    bench.shift(first, 4, 14)
    assert bench.opened(tokens(0, 32)).num_reused == 0
    bench.close(first)
    assert bench.cache.stats().num_prefixes == 0


def test_shift_then_defragmentation_equals_defragmentation_then_shift() -> None:
    seen = []
    for is_shift_first in (True, False):
        bench = Bench(num_ctx=32, num_parallel=3)
        gone, first = bench.started(tokens(500, 30)), bench.started(tokens(0, 32))
        second = bench.started(tokens(0, 30))
        bench.close(gone, keep=False)
        for is_shift in (is_shift_first, not is_shift_first):
            if is_shift:
                bench.shift(first, 4, 10)
            else:
                bench.cache.defragment()
        bench.check()
        layer = bench.layers[0]
        seen.append([layer.keys.rows[each.cells[: each.num_past]].tobytes() for each in (first, second)])
    assert seen[0] == seen[1]


def test_copies_that_do_not_fit_are_refused_before_anything_changes() -> None:
    bench = Bench(num_ctx=32, num_parallel=2)
    first = bench.started(tokens(0, 32))
    bench.started(tokens(0, 32))  # its last cell is its own
    bench.cache.resize(34)
    before = bench.state()
    with pytest.raises(CacheFullError, match="26 cells are needed, 1 are free"):
        bench.shift(first, 2, 3)
    assert bench.state() == before


@pytest.mark.parametrize(("num_cells", "num_prefixes"), [(50, 1), (49, 0)])
def test_prefixes_go_only_where_copies_need_their_cells(num_cells: int, num_prefixes: int) -> None:
    bench = Bench(num_ctx=32, num_parallel=2)
    bench.close(bench.started(tokens(0, 24)))
    sequence = bench.started([*tokens(0, 24), *tokens(50, 8)])
    assert sequence.num_reused == 24
    bench.cache.resize(num_cells)  # 32 are used, and 18 of them to be copied
    bench.shift(sequence, 4, 2)
    assert bench.cache.stats().num_prefixes == num_prefixes
    bench.check()


def test_a_shift_that_cannot_be_is_refused() -> None:
    bench = Bench(num_ctx=32, num_parallel=1, can_shift=False)
    sequence = bench.started(tokens(0, 32))
    with pytest.raises(ValueError, match="14 of 32 tokens, after the first 4, cannot go here"):
        bench.shift(sequence, 4, 14)
    able = Bench(num_ctx=32, num_parallel=1)
    sequence = able.started(tokens(0, 30))
    shiftable = [(0, 1), (0, 30), (29, 1), (30, 1), (0, 31), (-1, 2), (3, 0)]
    assert [able.cache.is_shiftable(sequence, *each) for each in shiftable] == [True] * 3 + [False] * 4


# ---- sliding windows


def test_a_sliding_layer_lets_go_of_what_nobody_sees_any_more() -> None:
    bench = Bench(num_ctx=64, num_parallel=2, window=4, slack=4)
    first, second = bench.opened(), bench.opened()
    for step in range(0, 60, 4):
        bench.step([(first, tokens(step, 4)), (second, tokens(100 + step, 4))])
        bench.check()
    assert bench.cache._kinds[1].pool.num_used == 16
    assert first.tables[1].first == 52


def test_a_prefix_is_reused_while_the_window_before_the_point_of_return_is_held() -> None:
    bench = Bench(num_ctx=64, num_parallel=2, window=4, slack=8)
    sequence = bench.opened()
    for step in range(0, 32, 4):
        bench.step([(sequence, tokens(step, 4))])
    bench.close(sequence)  # holds 20 … 31
    assert bench.opened([*tokens(0, 22), 99]).num_reused == 0  # position 22 sees from 19 on
    again = bench.opened([*tokens(0, 23), 99])
    assert again.num_reused == 23
    bench.step([(again, [99])])
    bench.check()


def test_full_sliding_pools_make_prefixes_go() -> None:
    bench = Bench(num_ctx=64, num_parallel=1, window=4, slack=4)
    for start in (0, 100, 200, 300):
        sequence = bench.opened()
        for step in range(0, 16, 4):
            bench.step([(sequence, tokens(start + step, 4))])
        bench.check()
        bench.close(sequence)
    assert bench.cache.stats().num_prefixes == 1


def test_a_prefix_stays_while_what_slides_out_of_the_window_is_enough() -> None:
    bench = Bench(num_ctx=64, num_parallel=2, window=4, slack=4)
    for start in (100, 0):
        sequence = bench.opened()
        for step in range(0, 16, 4):
            bench.step([(sequence, tokens(start + step, 4))])
        if start:
            bench.close(sequence)
    assert bench.cache._kinds[1].pool.num_free == 0
    bench.step([(sequence, tokens(16, 4))])
    assert bench.cache.stats().num_prefixes == 1
    bench.check()


def test_what_two_sequences_let_go_of_at_once_counts_as_free() -> None:
    bench = Bench(num_ctx=64, num_parallel=2, window=4, slack=4)
    first = bench.opened()
    for step in (0, 4):
        bench.step([(first, tokens(step, 4))])
    second = bench.started(tokens(0, 8))
    assert (second.num_reused, bench.cache._kinds[1].pool.num_free) == (7, 7)
    bench.step([(first, tokens(20, 4)), (second, tokens(30, 4))])
    bench.check()


def test_a_run_longer_than_the_slack_still_finds_the_window_before_it() -> None:
    bench = Bench(num_ctx=64, num_parallel=4, window=4, slack=1)
    sequence = bench.started(tokens(0, 6))
    bench.step([(sequence, tokens(6, 9))])
    bench.check()


def test_a_shift_is_refused_where_the_window_would_reach_into_what_is_gone() -> None:
    bench = Bench(num_ctx=32, num_parallel=1, window=8, slack=4)
    sequence = bench.opened()
    for step in range(0, 32, 4):
        bench.step([(sequence, tokens(step, 4))])
    # 20 … 31 are held.
    assert bench.cache.is_shiftable(sequence, 4, 20)  # 24 … 31 become 4 … 11; position 12 sees from 5 on
    assert bench.cache.is_shiftable(sequence, 4, 21)  # 25 … 31 become 4 … 10; position 11 sees from 4 on
    assert not bench.cache.is_shiftable(sequence, 4, 22)  # position 10 would see from 3 on
    assert bench.cache.is_shiftable(sequence, 22, 1)
    bench.shift(sequence, 4, 14)
    bench.check()
    bench.step([(sequence, tokens(60, 4))])
    bench.check()


# ---- another size


def test_a_smaller_pool_keeps_what_is_open_and_as_many_prefixes_as_it_can() -> None:
    bench = Bench(num_ctx=64, num_parallel=3)
    sequences = [bench.started(tokens(start, 20)) for start in (0, 100, 200)]
    bench.close(sequences[0])
    bench.close(sequences[1])
    bench.cache.resize(45)
    stats = bench.cache.stats()
    assert (stats.num_cells, stats.num_used, stats.num_prefixes) == (45, 40, 1)
    assert len(bench.layers[0].keys.rows) == 45
    bench.check()
    bench.cache.resize(192)
    bench.step([(sequences[2], tokens(300, 40))])
    bench.check()


def test_a_pool_does_not_get_smaller_than_what_open_sequences_hold() -> None:
    bench = Bench(num_ctx=64, num_parallel=2)
    bench.close(bench.started(tokens(0, 10)))
    bench.started(tokens(100, 20))
    before = bench.state()
    with pytest.raises(CacheFullError, match="20 cells are needed, 19 are free"):
        bench.cache.resize(19)
    assert bench.state() == before


# ---- everything at random


class Cache(RuleBasedStateMachine):
    """Against the model in ``cache_fakes``; tokens are few, so that sequences often begin alike."""

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
        num_keep = data.draw(st.integers(0, sequence.num_past - 1))
        num_discard = data.draw(st.integers(1, sequence.num_past - num_keep))
        before = bench.state()
        if not bench.cache.is_shiftable(sequence, num_keep, num_discard):
            assert bench.window
            return
        try:
            bench.shift(sequence, num_keep, num_discard)
        except CacheFullError:
            assert self.is_shrunk
            assert bench.state() == before

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


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
