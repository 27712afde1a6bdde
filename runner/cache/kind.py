"""The layers that see the same positions, and the pool that says in which cells those lie."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import numpy as np

from runner.cache.cells import CellPool, Move, Table
from runner.cache.layer import CacheLayer
from runner.cache.moves import execute
from runner.sequence import Sequence

Runs = Seq[tuple[Sequence, int]]
"""Sequences, and how many tokens come next in each."""


class CacheKind:
    """Full layers see every position; sliding ones the last ``window``, and keep ``window_cells`` of a sequence."""

    def __init__(
        self, index: int, pool: CellPool, layers: Iterable[CacheLayer], window: int = 0, window_cells: int = 0
    ) -> None:
        """``index``: of this kind's table in ``Sequence.tables``."""
        self.pool = pool
        self.layers = tuple(layers)
        self._index = index
        self._window = window
        self._window_cells = window_cells

    def table(self, sequence: Sequence) -> Table:
        return sequence.tables[self._index]

    def copy(self, moves: Seq[Move]) -> int:
        """Does the moves in every layer. Returns the bytes that were copied."""
        return execute(moves, [tensor.rows for layer in self.layers for tensor in (layer.keys, layer.values)])

    # ---- what slides out of the window

    def first_seen(self, position: int) -> int:
        """The first position that a token at ``position`` sees."""
        return max(0, position + 1 - self._window) if self._window else 0

    def first_kept(self, sequence: Sequence, count: int) -> int:
        """The first position that is kept when ``count`` tokens come: as many as there is room for, no later than the
        first of them asks."""
        if not self._window:
            return 0
        return max(0, min(sequence.num_past + count - self._window_cells, self.first_seen(sequence.num_past)))

    def slide(self, runs: Runs) -> None:
        """Lets go of what is not kept when ``runs`` come."""
        if self._window:
            for sequence, count in runs:
                self.pool.trim(self.table(sequence), self.first_kept(sequence, count))

    def is_held_after_shift(self, sequence: Sequence, num_keep: int, num_discard: int) -> bool:
        """Whether the next token finds all that it sees when the positions have moved down."""
        first = self.table(sequence).first
        if first > num_keep:
            first = max(first - num_discard, num_keep)
        return first <= self.first_seen(sequence.num_past - num_discard)

    # ---- how many cells there are for what comes

    def missing(self, runs: Runs) -> list[tuple[Table, int]]:
        """Of each run the table and how many cells it still needs there, leaving out those that need none."""
        missing = []
        for sequence, count in runs:
            table = sequence.tables[self._index]
            num_cells = sequence.num_past + count - table.end
            if num_cells > 0:
                missing.append((table, num_cells))
        return missing

    def is_short(self, runs: Runs) -> bool:
        """Whether cells are missing for ``runs``. May say so, wrongly, where two of them let go of the same cell."""
        missing = sum(count for _, count in self.missing(runs)) - self.pool.num_free
        if missing > 0 and self._window:
            missing -= sum(
                self.pool.num_exclusive(self.table(sequence), 0, self.first_kept(sequence, count))
                for sequence, count in runs
            )
        return missing > 0

    def room(self, runs: Runs, sequences: Iterable[Sequence]) -> tuple[int, int]:
        """(cells that ``runs`` need, cells that would be free for them), if nobody but ``sequences`` had any."""
        firsts = {sequence: self.first_kept(sequence, count) for sequence, count in runs}
        is_held = np.zeros(self.pool.num_cells, np.bool_)
        for sequence in sequences:
            table = self.table(sequence)
            is_held[table.part(firsts.get(sequence, 0), table.end)] = True
        needed = sum(count for _, count in self.missing(runs))
        return needed, self.pool.num_cells - int(np.count_nonzero(is_held))

    def is_short_of_copies(self, sequence: Sequence, begin: int) -> bool:
        """Whether cells are missing to give ``sequence`` its own from position ``begin`` on."""
        table = self.table(sequence)
        num_shared = table.part(begin, table.end).size - self.pool.num_exclusive(table, begin, table.end)
        return num_shared > self.pool.num_free

    def room_for_copies(self, sequence: Sequence, begin: int, sequences: Iterable[Sequence]) -> tuple[int, int]:
        """(cells needed, cells free) for the same, if nobody but ``sequences`` had any."""
        owners = np.zeros(self.pool.num_cells, np.int32)
        for other in sequences:
            owners[self.table(other).held] += 1
        table = self.table(sequence)
        needed = np.count_nonzero(owners[table.part(begin, table.end)] > 1)
        return int(needed), int(np.count_nonzero(owners == 0))
