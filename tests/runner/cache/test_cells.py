"""Cells: every table finds what was stored for it, whatever happens to the pool, and a failed call changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runner.cache.cells import MAX_EXTENTS_PER_PLACEMENT, CellPool, Extent, Move, Table, cells_of, moves_of

NUM_CTX = 40


def filled(pool: CellPool, count: int) -> Table:
    table = pool.table()
    assert pool.place([(table, count)])
    return table


def state(pool: CellPool, *tables: Table) -> Any:
    """Everything there is, to be compared."""
    holes = (list(pool._holes.starts), list(pool._holes.lengths), pool._holes.num_cells)
    return (pool.num_cells, pool._owners.tolist(), holes, [(t.first, t.end, t.cells.tolist()) for t in tables])


def alternating(num_cells: int) -> tuple[CellPool, list[Table]]:
    """A pool with every second cell free, and the tables that hold the others."""
    pool = CellPool(num_cells, num_cells)
    tables = [filled(pool, num_cells)]
    for position in range(num_cells - 1, 0, -2):
        pool.remove(tables[0], position, position + 1)
    return pool, tables


# ---- where cells are placed


def test_a_table_grows_without_a_gap_while_its_neighbour_is_free() -> None:
    pool = CellPool(256, 256)
    first, second = filled(pool, 10), filled(pool, 10)
    for _ in range(50):
        assert pool.place([(first, 1), (second, 1)])
    assert len(first.extents) == len(second.extents) == 1


def test_an_empty_table_begins_in_the_middle_of_the_largest_hole() -> None:
    pool = CellPool(256, 256)
    assert filled(pool, 16).extents == [Extent(0, 16)]
    assert filled(pool, 16).extents == [Extent(16 + 120, 16)]
    assert filled(pool, 100).extents == [Extent(16 + 20, 100)]  # not so far right that it would be cut


def test_a_run_that_needs_more_than_the_allowed_extents_is_refused_and_nothing_changes() -> None:
    pool, tables = alternating(4 * MAX_EXTENTS_PER_PLACEMENT)
    late = pool.table()
    before = state(pool, *tables, late)
    assert not pool.place([(late, MAX_EXTENTS_PER_PLACEMENT + 1)])
    assert state(pool, *tables, late) == before
    assert pool.place([(late, MAX_EXTENTS_PER_PLACEMENT)])


def test_one_run_too_many_leaves_the_others_unplaced() -> None:
    pool = CellPool(100, 100)
    first, second = filled(pool, 30), filled(pool, 30)
    before = state(pool, first, second)
    assert not pool.place([(first, 20), (second, 21)])
    assert state(pool, first, second) == before
    assert pool.place([(first, 20), (second, 20)])
    assert pool.num_free == 0


def test_runs_that_only_fit_closely_are_placed_closely() -> None:
    """25 runs that fill one hole: each from the middle of what is left would cut the last into too many pieces."""
    pool = CellPool(1 + 25 * 12, 64)
    first = filled(pool, 1)
    tables = [pool.table() for _ in range(25)]
    assert pool.place([(table, 12) for table in tables])
    pool.check_integrity([first, *tables])
    assert {len(table.extents) for table in tables} == {1}


def test_a_table_has_no_more_positions_than_the_context() -> None:
    pool = CellPool(64, 8)
    with pytest.raises(ValueError, match="position 8 lies past the 8 of a sequence"):
        pool.place([(pool.table(), 9)])


# ---- situations


def test_three_interleaved_sequences_of_70_and_a_new_one_in_the_holes_of_the_second() -> None:
    pool = CellPool(256, 256)
    tables = [pool.table() for _ in range(3)]
    for _ in range(7):
        for table in tables:
            assert pool.place([(table, 10)])
    kept = [table.cells.tolist() for table in (tables[0], tables[2])]
    pool.release(tables[1])
    assert pool.num_free == 256 - 140
    late = filled(pool, 116)
    pool.check_integrity([*tables, late])
    assert pool.num_free == 0
    assert [table.cells.tolist() for table in (tables[0], tables[2])] == kept


def test_alternating_free_cells_all_go_to_one_placement_after_a_defragmentation() -> None:
    pool, tables = alternating(128)
    late = pool.table()
    assert not pool.place([(late, 64)])
    moves = pool.plan_defragmentation()
    assert all(move.dst + move.length <= 64 <= move.src for move in moves)
    pool.apply(moves, tables)
    pool.check_integrity([*tables, late])
    assert pool.place([(late, 64)])
    assert pool.num_free == 0


def test_a_shared_cell_moves_once_and_both_tables_follow() -> None:
    pool = CellPool(32, 32)
    gone, table = filled(pool, 8), filled(pool, 4)
    shared = pool.share(table, 0, 4)
    pool.release(gone)
    (move,) = pool.plan_defragmentation()
    assert move == Move(int(table.cells[0]), 0, 4)
    pool.apply([move], [table, shared])
    assert table.held.tolist() == shared.held.tolist() == [0, 1, 2, 3]
    pool.release(table)
    assert pool.num_used == 4  # the other one still owns them


def test_moves_of_neighbouring_cells_are_joined() -> None:
    pool = CellPool(1000, 1000)
    tables = [filled(pool, 100) for _ in range(4)]
    pool.release(tables[0])
    assert len(pool.plan_defragmentation()) <= 4


def test_what_is_full_or_compact_needs_no_move() -> None:
    pool = CellPool(16, 16)
    assert pool.plan_defragmentation() == []
    filled(pool, 16)
    assert pool.plan_defragmentation() == []


def test_fragmentation_counts_short_holes_but_not_room_to_grow() -> None:
    pool = CellPool(8192, 512)
    assert pool.fragmentation == 0
    for _ in range(8):
        filled(pool, 70)
    assert pool.fragmentation == 0
    scattered, tables = alternating(256)
    assert scattered.fragmentation == 1
    scattered.apply(scattered.plan_defragmentation(), tables)
    assert scattered.fragmentation == 0


def test_a_used_cell_does_not_go_with_the_end_of_the_pool() -> None:
    pool = CellPool(64, 64)
    filled(pool, 8)
    table = filled(pool, 8)
    before = state(pool)
    last = int(table.cells[7])
    with pytest.raises(ValueError, match=f"cell {last} is used; a pool of 32 cells does not have it"):
        pool.resize(32)
    assert state(pool) == before


def test_a_table_in_many_pieces_gives_all_its_cells_back() -> None:
    pool, tables = alternating(1024)
    pool.release(tables[0])
    pool.check_integrity(tables)
    assert (pool.num_used, pool.plan_defragmentation()) == (0, [])


def test_moves_and_the_cells_that_move_say_the_same() -> None:
    moves = [Move(70, 3, 2), Move(72, 8, 3), Move(90, 0, 1)]
    src, dst = cells_of(moves)
    assert list(zip(src, dst, strict=True)) == [(70, 3), (71, 4), (72, 8), (73, 9), (74, 10), (90, 0)]
    assert moves_of(src, dst) == moves
    assert [array.tolist() for array in cells_of([])] == [[], []]
    assert moves_of(*cells_of([])) == []


def test_sharing_what_is_not_held_is_refused() -> None:
    pool = CellPool(64, 64)
    table = filled(pool, 8)
    pool.trim(table, 2)
    for first, end in ((1, 8), (2, 9)):
        with pytest.raises(ValueError, match="that holds 2 to 8"):
            pool.share(table, first, end)


# ---- everything at random


class Pool(RuleBasedStateMachine):
    """The model: each table is a dictionary from position to what was stored there. Storage is one number a cell."""

    @initialize(num_cells=st.integers(1, 130))
    def begin(self, num_cells: int) -> None:
        self.pool = CellPool(num_cells, NUM_CTX)
        self.storage = np.zeros(num_cells, np.int64)
        self.tables: list[tuple[Table, dict[int, int]]] = []
        self.clock = 0

    def pick(self, data: st.DataObject) -> tuple[Table, dict[int, int]]:
        return self.tables[data.draw(st.integers(0, len(self.tables) - 1))]

    def all(self) -> list[Table]:
        return [table for table, _ in self.tables]

    def store(self, table: Table, model: dict[int, int], positions: range) -> None:
        for position in positions:
            self.clock += 1
            self.storage[table.cells[position]] = model[position] = self.clock

    def copy(self, moves: list[Move]) -> None:
        for src, dst, length in moves:
            self.storage[dst : dst + length] = self.storage[src : src + length]

    @rule()
    def open(self) -> None:
        if len(self.tables) < 12:
            self.tables.append((self.pool.table(), {}))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def place(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.tables))), min_size=1, max_size=4, unique=True))
        runs = []
        for index in chosen:
            table, model = self.tables[index]
            runs.append((table, model, data.draw(st.integers(0, min(12, NUM_CTX - table.end)))))
        wanted = sum(count for _, _, count in runs)
        before = state(self.pool, *self.all())
        free = self.pool.num_free
        if self.pool.place([(table, count) for table, _, count in runs]):
            assert self.pool.num_free == free - wanted
            for table, model, count in runs:
                self.store(table, model, range(table.end - count, table.end))
        else:
            assert state(self.pool, *self.all()) == before
            if wanted <= free:  # then a full defragmentation always helps
                self.defragment()
                assert self.pool.place([(table, count) for table, _, count in runs])
                for table, model, count in runs:
                    self.store(table, model, range(table.end - count, table.end))

    @precondition(lambda self: self.tables and len(self.tables) < 12)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        table, model = self.pick(data)
        end = data.draw(st.integers(table.first, table.end))
        first = data.draw(st.integers(table.first, end))
        shared = self.pool.share(table, first, end)
        self.tables.append((shared, {p: model[p] for p in range(first, end)}))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        table, model = self.pick(data)
        first = data.draw(st.integers(0, NUM_CTX))
        self.pool.trim(table, first)
        for position in [p for p in model if p < first]:
            del model[position]

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        table, model = self.pick(data)
        end = data.draw(st.integers(0, table.end))
        begin = data.draw(st.integers(0, end))
        old_end = table.end
        self.pool.remove(table, begin, end)
        left = {p if p < begin else p - (end - begin): v for p, v in model.items() if not begin <= p < end}
        model.clear()
        model.update(left)
        assert table.end == old_end - (end - begin)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def own(self, data: st.DataObject) -> None:
        """Copy on write: what is written after it is seen by this table alone."""
        table, model = self.pick(data)
        end = data.draw(st.integers(0, NUM_CTX))
        begin = data.draw(st.integers(0, end))
        before = state(self.pool, *self.all())
        moves = self.pool.own(table, begin, end)
        held = range(max(begin, table.first), min(end, table.end))
        if moves is None:
            assert state(self.pool, *self.all()) == before
            assert self.pool.num_free < len(held)
            return
        self.copy(moves)
        assert self.pool.num_exclusive(table, begin, end) == len(held)
        self.check()
        self.store(table, model, held)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        table, _ = self.tables.pop(index)
        self.pool.release(table)
        assert (table.first, table.end, table.cells.any()) == (0, 0, False)

    @rule()
    def defragment(self) -> None:
        before = state(self.pool, *self.all())
        moves = self.pool.plan_defragmentation()
        assert state(self.pool, *self.all()) == before
        num_used = self.pool.num_used
        touched = [c for m in moves for start in (m.src, m.dst) for c in range(start, start + m.length)]
        assert len(touched) == len(set(touched))
        assert all(m.dst + m.length <= num_used <= m.src for m in moves)
        self.copy(moves[::-1])  # in any order
        self.pool.apply(moves, self.all())
        assert self.pool.plan_defragmentation() == []

    @rule(num_cells=st.integers(0, 160))
    def resize(self, num_cells: int) -> None:
        fits = not self.pool._owners[num_cells:].any()
        if not fits:
            with pytest.raises(ValueError, match="is used"):
                self.pool.resize(num_cells)
            return
        self.pool.resize(num_cells)
        self.storage = np.resize(self.storage, num_cells) if num_cells else np.zeros(0, np.int64)

    @invariant()
    def check(self) -> None:
        self.pool.check_integrity(self.all())
        for table, model in self.tables:
            assert list(range(table.first, table.end)) == sorted(model)
            for position, value in model.items():
                assert self.storage[table.cells[position]] == value
        used = {int(cell) for table in self.all() for cell in table.held}
        assert self.pool.num_used == len(used)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
