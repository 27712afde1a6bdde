"""The layers that see the same positions, and the pool that says in which cells those lie."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import numpy as np

from runner.cache.cells import CellPool, Move, Table
from runner.cache.layer import CacheLayer
from runner.cache.moves import execute
from runner.sequence import NO_CELLS, Int32Array, Sequence

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

    def first_needed(self, sequence: Sequence) -> int:
        """The first position without which a prompt that begins with all that is stored could not go on from it. A
        prompt that is just that computes the last token again, for its logits."""
        return self.first_seen(sequence.num_past - 1)

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

    def most_discardable(self, sequence: Sequence, num_keep: int) -> int:
        """How many positions after the first ``num_keep`` may go at most; below 1 where none may.

        What a window sees must not reach what is kept, since that may have slid away. Whether it has depends on how
        many cells there are, and the answer must not: so it is the numbers that decide. Nothing slides away before
        more tokens than the window are stored.
        """
        num_after = sequence.num_past - num_keep
        is_whole = sequence.num_past <= self._window and not self.table(sequence).first
        return num_after if not self._window or is_whole else num_after + 1 - self._window

    def spare(self, num_cells: int, sequences: Iterable[Sequence], leaving: Int32Array = NO_CELLS) -> bool:
        """Lets go of what ``sequences`` hold beyond what they need, the first of them first, until ``num_cells`` are
        free; nothing goes that frees no cell. ``leaving``: cells that one other table will soon let go of.

        Returns False, and has changed nothing, when all that they can spare is too little.
        """
        if num_cells <= self.pool.num_free:
            return True
        owners = self.pool.num_owners()
        owners[leaving] -= 1
        num_missing = num_cells - int(np.count_nonzero(owners == 0))
        spared = []
        for sequence in sequences:
            if num_missing <= 0:
                break
            table = self.table(sequence)
            part = table.part(0, self.first_needed(sequence))
            if not part.size:
                continue
            owners[part] -= 1
            freed = np.flatnonzero(owners[part] == 0)
            if freed.size > num_missing:
                owners[part[freed[num_missing - 1] + 1 :]] += 1
            num_missing -= freed.size
            spared.append((table, part))
        if num_missing > 0:
            return False
        for table, part in spared:
            freed = np.flatnonzero(owners[part] == 0)
            if freed.size:  # otherwise others own all that it could spare
                self.pool.trim(table, table.first + int(freed[-1]) + 1)
        return True

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

    def shifted(self, sequence: Sequence, num_keep: int, num_discard: int) -> tuple[Int32Array, Int32Array]:
        """(cells that a shift moves down, cells that it lets go of where others own them too); views."""
        table = self.table(sequence)
        return table.part(num_keep + num_discard, sequence.num_past), table.part(num_keep, table.end)

    def room_for_copies(
        self, sequence: Sequence, num_keep: int, num_discard: int, sequences: Iterable[Sequence]
    ) -> tuple[int, int]:
        """(cells that a shift copies, cells that would be free for them), if nobody but ``sequences`` had any."""
        owners = np.zeros(self.pool.num_cells, np.int32)
        for other in sequences:
            owners[self.table(other).held] += 1
        moved, leaving = self.shifted(sequence, num_keep, num_discard)
        owners[leaving] -= 1
        num_own = int(np.count_nonzero(owners[moved] == 0))
        return moved.size - num_own, int(np.count_nonzero(owners == 0)) - num_own
