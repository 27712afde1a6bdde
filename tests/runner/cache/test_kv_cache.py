"""The KV cache: what was stored for a token is found again, by every sequence that begins with it, wherever it lies."""

from __future__ import annotations

import numpy as np
import pytest

from runner.cache.kv_cache import CacheFullError, KVCache
from runner.sequence import Int32Array
from tests.runner.cache.fakes import Bench, tokens


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


def test_room_is_what_open_sequences_do_not_hold_and_what_they_share() -> None:
    bench = Bench(num_ctx=32, num_parallel=3)
    bench.close(bench.started(tokens(500, 16)))
    bench.cache.resize(40)
    bench.started(tokens(0, 16))

    def ids(start: int, count: int) -> Int32Array:
        return np.array(tokens(start, count), np.int32)

    def most(start: int, *, may_share: bool) -> int:
        return max(n for n in range(1, 60) if bench.cache.has_room(ids(start, n), may_share=may_share))

    assert most(500, may_share=True) == 24  # what was closed may go, or serve: it takes cells either way
    assert most(0, may_share=True) == 40
    assert most(0, may_share=False) == 24
    assert KVCache([], num_ctx=8, num_parallel=1).has_room(ids(0, 9), may_share=True)


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
