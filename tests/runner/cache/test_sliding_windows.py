"""Layers with a sliding window: what they let go of, and what can still be resumed or shifted there."""

from __future__ import annotations

from tests.runner.cache.fakes import Bench, tokens


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
