"""Layers with a sliding window: what they let go of, and what can still be resumed or shifted there."""

from __future__ import annotations

import numpy as np
import pytest

from runner.cache.kv_cache import CacheFullError
from runner.sequence import Sequence
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


# ---- prefixes that give some of their cells


def finished(bench: Bench, prompt: list[int]) -> Sequence:
    """A prefix of ``prompt``, stored in steps of four; what others have stored of it is shared."""
    sequence = bench.opened(prompt)
    bench.fill(sequence, prompt[sequence.num_past :], 4)
    bench.close(sequence)
    return sequence


def firsts(bench: Bench) -> list[tuple[int, int]]:
    """Of each prefix, the least recently used first, its first token and where what it holds begins."""
    return [(int(each.stored[0]), each.tables[1].first) for each in bench.cache._prefixes]


def num_reusing(bench: Bench, num_users: int, num_tokens: int) -> int:
    """Users ask in turn, each twice with the same prompt: how many find all but its last token the second time."""
    prompts = [tokens(1000 * user, num_tokens) for user in range(num_users)]
    for prompt in prompts:
        finished(bench, prompt)
    return sum(finished(bench, prompt).num_reused == num_tokens - 1 for prompt in prompts)


@pytest.mark.parametrize(("num_users", "num_tokens"), [(6, 20), (6, 44), (11, 24), (3, 56)])
def test_prefixes_of_many_users_stay_while_their_windows_fit(num_users: int, num_tokens: int) -> None:
    """The pool has 64 cells: windows of 4 for all users but one, and the whole prompt of that one."""
    bench = Bench(num_ctx=400, num_parallel=1, window=4, slack=60)
    assert num_reusing(bench, num_users, num_tokens) == num_users
    assert bench.cache.stats().num_prefixes == num_users
    for user in range(num_users):  # and they can go on
        again = bench.opened([*tokens(1000 * user, num_tokens), 5, 6])
        assert again.num_reused == num_tokens
        bench.fill(again, [5, 6], 1)
        bench.close(again)
        bench.check()


def test_whole_prefixes_go_where_their_windows_do_not_fit() -> None:
    bench = Bench(num_ctx=400, num_parallel=1, window=4, slack=28)
    assert num_reusing(bench, 6, 24) == 0  # of 32 cells, a prompt leaves room for two windows
    assert firsts(bench) == [(3000, 20), (4000, 20), (5000, 0)]


def test_a_prefix_gives_no_more_cells_than_needed_the_least_recently_used_first() -> None:
    bench = Bench(num_ctx=64, num_parallel=1, window=4, slack=36)
    for start in (0, 100, 200):
        finished(bench, tokens(start, 12))
    num_used = bench.cache.stats().num_used
    running = bench.opened()
    bench.fill(running, tokens(300, 4), 4)
    assert firsts(bench) == [(0, 0), (100, 0), (200, 0)]  # there were four cells
    for first in (3, 6, 8):
        bench.fill(running, tokens(300, 3 if first < 8 else 2), 4)
        assert firsts(bench) == [(0, first), (100, 0), (200, 0)]
    bench.fill(running, tokens(300, 1), 4)
    assert firsts(bench) == [(0, 8), (100, 1), (200, 0)]
    assert bench.cache.stats().num_used == num_used + 13  # layers that see everything gave none


def test_a_prefix_that_has_given_cells_serves_at_its_end_and_not_before() -> None:
    bench = Bench(num_ctx=64, num_parallel=1, window=4, slack=20)
    whole, given = tokens(0, 12), tokens(100, 12)
    finished(bench, given)
    finished(bench, whole)
    finished(bench, tokens(200, 8))
    assert firsts(bench) == [(100, 8), (0, 0), (200, 0)]

    def num_found(prompt: list[int]) -> int:
        return bench.cache.longest_prefix(np.array(prompt, np.int32))

    assert num_found([*given, 7]) == num_found([*given, 7, 8]) == 12
    assert num_found(given) == 11  # its last token is computed again
    assert num_found([*given[:11], 7]) == 11
    assert num_found([*given[:10], 7]) == num_found(given[:11]) == 0
    assert num_found([*whole[:10], 7]) == 10


def test_what_another_one_serves_better_is_found_there() -> None:
    bench = Bench(num_ctx=64, num_parallel=1, window=4, slack=20)
    finished(bench, tokens(0, 16))
    finished(bench, [*tokens(0, 6), 77, 78])  # shares six cells, and has two of its own
    finished(bench, tokens(100, 12))
    assert firsts(bench) == [(0, 12), (0, 0), (100, 0)]
    assert bench.opened([*tokens(0, 8), 99]).num_reused == 6


def test_no_prefix_lets_go_of_what_frees_nothing() -> None:
    bench = Bench(num_ctx=64, num_parallel=2, window=4, slack=8)
    finished(bench, tokens(0, 10))
    assert bench.opened([*tokens(0, 7), 99]).num_reused == 7  # holds all that the prefix could give
    finished(bench, tokens(100, 9))
    running = bench.opened()
    bench.fill(running, tokens(300, 7), 4)  # of 24 cells 19 were used
    assert firsts(bench) == [(0, 0), (100, 2)]


def test_cells_of_several_prefixes_are_free_when_all_of_them_can_spare_them() -> None:
    bench = Bench(num_ctx=64, num_parallel=1, window=4, slack=20)
    for last in (50, 60, 70):
        finished(bench, [*tokens(0, 12), *tokens(last, 4)])
    assert bench.cache._kinds[1].pool.num_free == 0
    finished(bench, tokens(100, 10))
    assert [each.tables[1].first for each in bench.cache._prefixes] == [10, 10, 10, 0]


@pytest.mark.parametrize(("count", "held"), [(16, [(0, 12), (100, 4)]), (17, [(100, 1)])])
def test_none_gives_cells_in_vain_where_one_has_to_go(count: int, held: list[tuple[int, int]]) -> None:
    bench = Bench(num_ctx=64, num_parallel=1, window=4, slack=20)
    finished(bench, tokens(0, 16))
    finished(bench, tokens(100, 8))
    bench.step([(bench.opened(), tokens(300, count))])  # windows of both leave 16 of 24 cells
    assert firsts(bench) == held


@pytest.mark.parametrize(("num_discard", "held"), [(3, []), (4, [8]), (7, [5])])
def test_a_shift_makes_prefixes_give_cells_before_they_go(num_discard: int, held: list[int]) -> None:
    bench = Bench(num_ctx=16, num_parallel=1, window=4, slack=12)
    bench.cache.resize(64)
    finished(bench, tokens(0, 12))
    sequence = bench.opened([*tokens(0, 12), 50])
    bench.fill(sequence, tokens(50, 4), 4)
    assert (sequence.num_reused, bench.cache._kinds[1].pool.num_free) == (12, 0)
    bench.shift(sequence, 2, num_discard)  # copies 10 - num_discard; the prefix can give six, from position 2 to 7
    assert [each.tables[1].first for each in bench.cache._prefixes] == held
    bench.step([(sequence, [7])])


def test_a_lack_of_cells_is_told_before_a_prefix_gives_any() -> None:
    """A run longer than the slack, in a pool that has only room for the window and the slack."""
    bench = Bench(num_ctx=64, num_parallel=1, window=4, slack=8)
    finished(bench, tokens(0, 8))
    running = bench.opened()
    bench.step([(running, tokens(300, 4))])
    before = bench.state()
    with pytest.raises(CacheFullError, match="12 cells are needed, 9 are free"):
        bench.cache.place([(running, 12)])
    assert bench.state() == before
    bench.step([(running, tokens(304, 8))])
    assert firsts(bench) == []
