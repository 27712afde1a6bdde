"""Context shift: some tokens go, and the keys after them turn in place, in cells of the sequence's own."""

from __future__ import annotations

import pytest

from runner.cache.kv_cache import CacheFullError
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


def test_a_shift_that_cannot_be_is_refused() -> None:
    bench = Bench(num_ctx=32, num_parallel=1, can_shift=False)
    sequence = bench.started(tokens(0, 32))
    with pytest.raises(ValueError, match="14 of 32 tokens, after the first 4, cannot go here"):
        bench.shift(sequence, 4, 14)
    able = Bench(num_ctx=32, num_parallel=1)
    sequence = able.started(tokens(0, 30))
    shiftable = [(0, 1), (0, 30), (29, 1), (30, 1), (0, 31), (-1, 2), (3, 0)]
    assert [able.cache.is_shiftable(sequence, *each) for each in shiftable] == [True] * 3 + [False] * 4
