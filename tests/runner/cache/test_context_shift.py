"""Context shift: some tokens go, and the keys after them turn in place, in cells of the sequence's own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.cache.kv_cache import CacheFullError, KVCache
from tests.runner.cache.fakes import Bench, tokens


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


@pytest.mark.parametrize(("num_cells", "num_prefixes"), [(46, 1), (45, 0)])
def test_cells_of_a_step_that_failed_are_room_for_copies(num_cells: int, num_prefixes: int) -> None:
    bench = Bench(num_ctx=32, num_parallel=2)
    bench.close(bench.started(tokens(0, 24)))
    sequence = bench.started([*tokens(0, 24), *tokens(50, 4)])
    bench.cache.place([(sequence, 4)])
    bench.cache.resize(num_cells)  # 32 are used, 4 of them for nothing, and 18 to be copied
    bench.shift(sequence, 4, 2)
    assert bench.cache.stats().num_prefixes == num_prefixes
    bench.check()


def test_a_shift_that_cannot_be_is_refused() -> None:
    bench = Bench(num_ctx=32, num_parallel=1, can_shift=False)
    sequence = bench.started(tokens(0, 32))
    with pytest.raises(ValueError, match="14 of 32 tokens, after the first 4, cannot go here"):
        bench.shift(sequence, 4, 14)
    assert bench.cache.num_discardable(sequence, 4) == 0
    assert KVCache([], num_ctx=32, num_parallel=1).num_discardable(sequence, 4) == 0


@pytest.mark.parametrize(
    ("num_keep", "num_discard", "most"), [(30, 1, 0), (31, 1, 0), (0, 31, 30), (-1, 2, 0), (3, 0, 27), (3, -1, 27)]
)
def test_a_shift_by_numbers_that_make_no_sense_is_refused(num_keep: int, num_discard: int, most: int) -> None:
    bench = Bench(num_ctx=32, num_parallel=1)
    sequence = bench.started(tokens(0, 30))
    before = bench.state()
    with pytest.raises(ValueError, match=f"cannot go here: at most {most} can"):
        bench.shift(sequence, num_keep, num_discard)
    assert bench.state() == before


@pytest.mark.parametrize(("num_keep", "num_discard"), [(0, 1), (0, 30), (29, 1)])
def test_any_tokens_may_go_where_all_layers_see_everything(num_keep: int, num_discard: int) -> None:
    bench = Bench(num_ctx=32, num_parallel=1)
    sequence = bench.started(tokens(0, 30))
    bench.shift(sequence, num_keep, num_discard)
    bench.step([(sequence, [7])])
    assert sequence.num_past == 31 - num_discard


@pytest.mark.parametrize(
    ("num_keep", "expected"), [(0, 15), (4, 13), (5, 12), (28, 1), (29, 1), (30, 0), (31, 0), (-1, 0)]
)
def test_half_of_what_is_not_kept_makes_room(num_keep: int, expected: int) -> None:
    bench = Bench(num_ctx=30, num_parallel=1)
    assert bench.cache.num_discardable(bench.started(tokens(0, 30)), num_keep) == expected


# ---- sliding windows


@pytest.mark.parametrize("slack", [1, 3, 8, 64])
@pytest.mark.parametrize(
    ("num_tokens", "window", "num_keep", "expected"),
    [
        (32, 8, 4, 14),  # half; position 18 sees from 11 on
        (32, 16, 4, 13),  # 19 sees from 4 on; with half, 18 would see from 3 on
        (32, 16, 3, 14),  # half, and just so
        (32, 16, 16, 1),
        (32, 16, 17, 0),
        (32, 1, 31, 1),
        (32, 31, 0, 2),
        (32, 31, 1, 1),
        (32, 31, 2, 0),
        (32, 32, 4, 14),  # nothing has slid out of a window of the context's size
        (32, 40, 4, 14),
        (16, 16, 4, 6),  # nor where a request wants a smaller context
        (15, 16, 4, 5),
        (17, 16, 4, 0),
    ],
)
def test_fewer_go_where_a_window_would_reach_what_is_kept(
    num_tokens: int, window: int, num_keep: int, expected: int, slack: int
) -> None:
    bench = Bench(num_ctx=32, num_parallel=1, window=window, slack=slack)
    sequence = bench.opened()
    bench.fill(sequence, tokens(0, num_tokens), slack)
    assert bench.cache.num_discardable(sequence, num_keep) == expected
    if expected:
        bench.shift(sequence, num_keep, expected)
        bench.fill(sequence, tokens(100, expected), slack)


@pytest.mark.parametrize("num_batch", [8, 512, 2048])
def test_half_a_window_in_twice_the_context_shifts_whatever_the_chunks(num_batch: int) -> None:
    """Gemma 3 has a window of 1024: half of 2043 would be one too many."""
    bench = Bench(num_ctx=2048, num_parallel=1, window=1024, slack=num_batch)
    sequence = bench.opened()
    for start in range(0, 2048, num_batch):
        bench.cache.place([(sequence, num_batch)])
        bench.cache.advance(sequence, tokens(start, num_batch))
    assert bench.cache.num_discardable(sequence, 5) == 1020


@pytest.mark.parametrize("slack", [4, 24])
def test_a_shift_is_refused_where_the_window_would_reach_what_is_kept(slack: int) -> None:
    """Also where many cells still hold all that it would see."""
    bench = Bench(num_ctx=32, num_parallel=1, window=8, slack=slack)
    sequence = bench.opened()
    bench.fill(sequence, tokens(0, 32), 4)
    before = bench.state()
    with pytest.raises(ValueError, match="22 of 32 tokens, after the first 4, cannot go here: at most 21 can"):
        bench.shift(sequence, 4, 22)
    assert bench.state() == before
    bench.shift(sequence, 4, 21)  # 25 … 31 become 4 … 10; position 11 sees from 4 on
    bench.fill(sequence, tokens(60, 4), 4)


def test_a_shift_right_after_another_is_refused_where_what_it_needs_is_gone() -> None:
    """So many tokens as the window has are stored, but they are not the first ones."""
    bench = Bench(num_ctx=32, num_parallel=1, window=16, slack=1)
    sequence = bench.opened()
    bench.fill(sequence, tokens(0, 32), 1)
    bench.shift(sequence, 1, 16)
    assert (sequence.num_past, sequence.tables[1].first) == (16, 1)
    assert bench.cache.num_discardable(sequence, 2) == 0
    bench.fill(sequence, tokens(60, 16), 1)
    assert bench.cache.num_discardable(sequence, 1) == 15


@settings(max_examples=150, deadline=None)
@given(
    num_ctx=st.integers(3, 24),
    window=st.integers(1, 26),
    slacks=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    prompt=st.lists(st.integers(0, 2), min_size=2, max_size=24),
    num_shared=st.integers(0, 24),
    keeps=st.lists(st.integers(0, 24), min_size=1, max_size=4),
    is_finished=st.booleans(),
)
def test_equal_tokens_shift_alike_whatever_cells_there_are_and_whoever_shares_them(
    num_ctx: int,
    window: int,
    slacks: tuple[int, int],
    prompt: list[int],
    num_shared: int,
    keeps: list[int],
    is_finished: bool,
) -> None:
    """One computes its whole prompt, the other begins with what a third, finished or not, has stored of it."""
    prompt = prompt[:num_ctx]
    benches = [Bench(num_ctx=num_ctx, num_parallel=2, window=window, slack=slack) for slack in slacks]
    other = benches[1].opened()
    benches[1].fill(other, prompt[:num_shared], slacks[1])
    if is_finished:
        benches[1].close(other)
    sequences = [bench.opened(prompt) for bench in benches]
    for bench, sequence, slack in zip(benches, sequences, slacks, strict=True):
        bench.fill(sequence, prompt[sequence.num_past :], slack)
    for num_keep in keeps:
        for bench, sequence, slack in zip(benches, sequences, slacks, strict=True):
            bench.fill(sequence, [1] * (num_ctx - sequence.num_past), slack)
        discardable = {
            bench.cache.num_discardable(each, num_keep) for bench, each in zip(benches, sequences, strict=True)
        }
        (num_discard,) = discardable
        half = max(1, (num_ctx - num_keep) // 2)
        limit = num_ctx - num_keep if window >= num_ctx else num_ctx - num_keep + 1 - window
        assert num_discard == max(0, min(half, limit))
        if not num_discard:
            continue
        for bench, sequence in zip(benches, sequences, strict=True):
            bench.shift(sequence, num_keep, num_discard)
            bench.step([(sequence, [2])])
        one, two = (bench.stories[sequence] for bench, sequence in zip(benches, sequences, strict=True))
        assert one == two  # and the cells hold what the stories say, of all that is seen
