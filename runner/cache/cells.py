"""Which cell holds which position: the books of a KV cache, without its keys and values.

A pool has cells; a sequence's table says for each of its positions which cell that is. Tables share cells by
reference, so a cell goes back to the pool when its last owner lets go. Nothing here touches storage: where bytes have
to be copied, a list of moves says so, and the caller does it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]

MAX_EXTENTS_PER_PLACEMENT = 8
"""New extents that one run may be cut into. More are a reason to defragment."""
SHORT_HOLE = 64
"""Holes below this are waste: a batch of 512 tokens does not fit into MAX_EXTENTS_PER_PLACEMENT of them."""
_MANY_EXTENTS = 64  # from here on, finding all holes anew is cheaper than giving the extents back one by one


class Extent(NamedTuple):
    """Contiguous cells."""

    start: int
    length: int


class Move(NamedTuple):
    """The bytes of cells ``src`` … ``src + length - 1`` go to ``dst`` … ``dst + length - 1``."""

    src: int
    dst: int
    length: int


@dataclass(eq=False, slots=True)
class Table:
    """One sequence's cells: position p lies in ``cells[p]``, for first <= p < end. The other entries are 0.

    ``first`` is above 0 when earlier positions were trimmed. The array stays the same object while the table lives.
    """

    cells: Int32Array
    first: int = 0
    end: int = 0

    @property
    def held(self) -> Int32Array:
        """The cells in order of their positions; a view."""
        return self.cells[self.first : self.end]

    @property
    def extents(self) -> list[Extent]:
        """The same as maximal runs of contiguous cells, in order of their positions."""
        return extents_of(self.held)

    def part(self, begin: int, end: int) -> Int32Array:
        """The cells of positions ``begin`` … ``end - 1``, as far as held; a view."""
        start = max(begin, self.first)
        return self.cells[start : max(start, min(end, self.end))]


class CellPool:
    """Cells 0 … num_cells - 1 and how many tables own each. Tables hold up to ``num_ctx`` positions."""

    def __init__(self, num_cells: int, num_ctx: int) -> None:
        self.num_cells = num_cells
        self.num_ctx = num_ctx
        self._owners = np.zeros(num_cells, np.int32)
        self._holes = _Holes([0] if num_cells else [], [num_cells] if num_cells else [])

    @property
    def num_free(self) -> int:
        return self._holes.num_cells

    @property
    def num_used(self) -> int:
        return self.num_cells - self._holes.num_cells

    @property
    def num_shared(self) -> int:
        """Cells with several owners. Looks at every cell."""
        return int(np.count_nonzero(self._owners > 1))

    @property
    def num_wasted(self) -> int:
        """Free cells that lie in short holes; none when all free cells lie together."""
        lengths = self._holes.lengths
        return sum(length for length in lengths if length < SHORT_HOLE) if len(lengths) > 1 else 0

    @property
    def fragmentation(self) -> float:
        """``num_wasted`` as a share of the free cells, 0 … 1.

        The share of unused cells below the last used one, as llama.cpp had it, would not do: tables are placed far
        apart on purpose, so that they can grow.
        """
        return self.num_wasted / self.num_free if self.num_free else 0.0

    def table(self) -> Table:
        """A table without cells."""
        return Table(np.zeros(self.num_ctx, np.int32))

    def place(self, runs: Seq[tuple[Table, int]]) -> bool:
        """Cells for the next ``count`` positions of each (table, count). Tables must be distinct.

        A table goes on after its last cell where that one's neighbour is free, otherwise in the largest hole: from its
        middle, to leave room for whoever ends before it. If that cuts a run into more than MAX_EXTENTS_PER_PLACEMENT
        new extents, all runs are placed closely instead; a pool whose free cells lie together always allows that.

        Returns False, and has changed nothing, when free cells are short or lie too scattered. Raises ValueError if a
        table would hold more than ``num_ctx`` positions.
        """
        for table, count in runs:
            if table.end + count > self.num_ctx:
                raise ValueError(f"position {table.end + count - 1} lies past the {self.num_ctx} of a sequence")
        if sum(count for _, count in runs) > self.num_free:
            return False
        for is_roomy in (True, False):
            holes = self._holes.copy()
            taken = [holes.take(count, _last(table), is_roomy=is_roomy) for table, count in runs]
            if None not in taken:
                self._holes = holes
                for (table, _), extents in zip(runs, taken, strict=True):
                    self._extend(table, extents or ())
                return True
        return False

    def share(self, table: Table, first: int, end: int) -> Table:
        """A new table of positions ``first`` … ``end - 1``, in the same cells. Raises ValueError if one is not held."""
        if not table.first <= first <= end <= table.end:
            raise ValueError(f"positions {first} to {end} of a table that holds {table.first} to {table.end}")
        shared = self.table()
        shared.cells[first:end] = table.cells[first:end]
        shared.first, shared.end = first, end
        self._owners[shared.held] += 1
        return shared

    def trim(self, table: Table, first: int) -> None:
        """Lets go of the positions before ``first``."""
        stop = min(first, table.end)
        if stop > table.first:
            self._disown(table.cells[table.first : stop])
            table.cells[table.first : stop] = 0
            table.first = stop

    def remove(self, table: Table, begin: int, end: int) -> None:
        """Takes positions ``begin`` … ``end - 1`` out, whether held or trimmed; later ones move down by as many.

        Raises ValueError if the table ends before.
        """
        if not 0 <= begin <= end <= table.end:
            raise ValueError(f"positions {begin} to {end} of a table that ends at {table.end}")
        old_end, from_, to = table.end, max(end, table.first), max(end, table.first) - (end - begin)
        if end > table.first:
            self._disown(table.cells[max(begin, table.first) : end])
        table.end -= end - begin
        table.first = min(table.first, to)
        table.cells[to : table.end] = table.cells[from_:old_end]
        table.cells[max(table.end, table.first) : old_end] = 0

    def release(self, table: Table) -> None:
        """Lets go of everything; the table is empty then."""
        self._disown(table.held)
        table.held[:] = 0
        table.first = table.end = 0

    def num_owners(self) -> Int32Array:
        """How many tables own each cell; a copy."""
        return self._owners.copy()

    def num_exclusive(self, table: Table, begin: int, end: int) -> int:
        """How many of these positions lie in cells that nobody else owns."""
        return int(np.count_nonzero(self._owners[table.part(begin, end)] == 1))

    def own(self, table: Table, begin: int, end: int) -> list[Move] | None:
        """Gives positions ``begin`` … ``end - 1``, as far as held, cells of their own where others own them too.

        Returns what the caller has to copy, or None, and has changed nothing, when free cells are short. Where the new
        cells lie matters not: there is no limit on extents.
        """
        part = table.part(begin, end)
        where = np.flatnonzero(self._owners[part] > 1)
        if where.size > self.num_free:
            return None
        old = part[where]
        extents = self._holes.take(where.size, None, is_roomy=False, max_extents=None) or ()
        new = np.array([cell for start, length in extents for cell in range(start, start + length)], np.int32)
        self._owners[old] -= 1
        self._owners[new] = 1
        part[where] = new
        return moves_of(old, new)

    def plan_defragmentation(self) -> list[Move]:
        """The moves after which the used cells are 0 … num_used - 1. Changes nothing.

        As many cells are free below ``num_used`` as are used above; those go there, in their order. So every dst
        < num_used <= every src: the moves are disjoint and can be done in any order, in any number of pieces.
        The counting argument is the one of llama.cpp's defragmentation (its pull requests 5691 and 10873).
        """
        num_used = self.num_used
        dst = np.flatnonzero(self._owners[:num_used] == 0)
        src = np.flatnonzero(self._owners[num_used:]) + num_used
        return moves_of(src, dst)

    def apply(self, moves: Seq[Move], tables: Iterable[Table]) -> None:
        """Writes down what ``plan_defragmentation`` said and the caller has done. ``tables``: all that own cells."""
        src, dst = cells_of(moves)
        new = np.arange(self.num_cells, dtype=np.int32)
        new[src] = dst
        self._owners[dst] = self._owners[src]
        self._owners[src] = 0
        for table in tables:
            table.held[:] = new[table.held]
        self._holes = _Holes.between(self._owners)

    def resize(self, num_cells: int) -> None:
        """Raises ValueError if cells that would go are used; defragment before."""
        if num_cells < self.num_cells and self._owners[num_cells:].any():
            last = int(np.flatnonzero(self._owners)[-1])
            raise ValueError(f"cell {last} is used; a pool of {num_cells} cells does not have it")
        owners = np.zeros(num_cells, np.int32)
        kept = min(num_cells, self.num_cells)
        owners[:kept] = self._owners[:kept]
        self.num_cells, self._owners, self._holes = num_cells, owners, _Holes.between(owners)

    def check_integrity(self, tables: Iterable[Table]) -> None:
        """Raises AssertionError if the books contradict each other. ``tables``: all that own cells."""
        owners = np.zeros(self.num_cells, np.int32)
        for table in tables:
            assert 0 <= table.first <= table.end <= self.num_ctx == table.cells.size, table
            assert np.unique(table.held).size == table.held.size, f"a cell twice in {table}"
            assert not table.cells[: table.first].any(), f"not zero before {table.first}"
            assert not table.cells[table.end :].any(), f"not zero from {table.end}"
            owners[table.held] += 1
        wrong = np.flatnonzero(owners != self._owners)
        assert not wrong.size, f"owners of cells {wrong[:8]}: {owners[wrong[:8]]}, noted {self._owners[wrong[:8]]}"
        holes = _Holes.between(owners)
        assert (holes.starts, holes.lengths) == (self._holes.starts, self._holes.lengths), "holes are not what is free"
        assert self._holes.num_cells == sum(holes.lengths), "free cells are miscounted"

    def _extend(self, table: Table, extents: Iterable[Extent]) -> None:
        for start, length in extents:
            if length == 1:  # what decoding does
                table.cells[table.end] = start
                self._owners[start] = 1
            else:
                table.cells[table.end : table.end + length] = np.arange(start, start + length)
                self._owners[start : start + length] = 1
            table.end += length

    def _disown(self, cells: Int32Array) -> None:
        if cells.size == 1:  # what decoding in a sliding layer does
            cell = int(cells[0])
            self._owners[cell] -= 1
            if not self._owners[cell]:
                self._holes.give(cell, 1)
            return
        self._owners[cells] -= 1
        freed = extents_of(cells[self._owners[cells] == 0])
        if len(freed) < _MANY_EXTENTS:
            for start, length in freed:
                self._holes.give(start, length)
        else:
            self._holes = _Holes.between(self._owners)


class _Holes:
    """The free extents, ascending and maximal, as two lists side by side."""

    __slots__ = ("lengths", "num_cells", "starts")

    def __init__(self, starts: list[int], lengths: list[int]) -> None:
        self.starts = starts
        self.lengths = lengths
        self.num_cells = sum(lengths)

    @classmethod
    def between(cls, owners: Int32Array) -> _Holes:
        starts, lengths = _runs(np.flatnonzero(owners == 0))
        return cls(starts.tolist(), lengths.tolist())

    def copy(self) -> _Holes:
        return _Holes(self.starts.copy(), self.lengths.copy())

    def take(
        self, count: int, last: int | None, *, is_roomy: bool, max_extents: int | None = MAX_EXTENTS_PER_PLACEMENT
    ) -> list[Extent] | None:
        """``count`` cells, from the one after ``last`` if that is free. None: they need more than ``max_extents``."""
        taken = []
        if last is not None and count:
            index = bisect_left(self.starts, last + 1)
            if index < len(self.starts) and self.starts[index] == last + 1:
                taken.append(self._cut(index, last + 1, min(count, self.lengths[index])))
                count -= taken[0].length
        num_new = 0
        while count:
            if not self.lengths or num_new == max_extents:
                return None
            length = max(self.lengths)
            index = self.lengths.index(length)
            start, wanted = self.starts[index], min(count, length)
            if is_roomy and start:
                start += min(length // 2, length - wanted)
            taken.append(self._cut(index, start, wanted))
            count -= wanted
            num_new += 1
        return taken

    def give(self, start: int, length: int) -> None:
        """Cells that nobody owns any more, joined with the holes beside them."""
        index = bisect_left(self.starts, start)
        self.num_cells += length
        if index < len(self.starts) and self.starts[index] == start + length:
            length += self.lengths.pop(index)
            del self.starts[index]
        if index and self.starts[index - 1] + self.lengths[index - 1] == start:
            self.lengths[index - 1] += length
        else:
            self.starts.insert(index, start)
            self.lengths.insert(index, length)

    def _cut(self, index: int, start: int, length: int) -> Extent:
        """Takes cells out of hole ``index``; what is left on either side stays."""
        before = start - self.starts[index]
        after = self.lengths[index] - before - length
        self.num_cells -= length
        if before and after:
            self.lengths[index] = before
            self.starts.insert(index + 1, start + length)
            self.lengths.insert(index + 1, after)
        elif before:
            self.lengths[index] = before
        elif after:
            self.starts[index], self.lengths[index] = start + length, after
        else:
            del self.starts[index], self.lengths[index]
        return Extent(start, length)


def extents_of(cells: npt.NDArray[np.integer]) -> list[Extent]:
    """Maximal runs of ascending neighbours, in the order of ``cells``."""
    starts, lengths = _runs(cells)
    return list(map(Extent, starts.tolist(), lengths.tolist()))


def moves_of(src: npt.NDArray[np.integer], dst: npt.NDArray[np.integer]) -> list[Move]:
    """Cell ``src[i]`` to ``dst[i]`` for each i, neighbours joined."""
    if not src.size:
        return []
    starts = np.flatnonzero((np.diff(src) != 1) | (np.diff(dst) != 1)) + 1
    starts = np.concatenate(([0], starts))
    lengths = np.diff(starts, append=src.size)
    return list(map(Move, src[starts].tolist(), dst[starts].tolist(), lengths.tolist()))


def cells_of(moves: Seq[Move]) -> tuple[Int32Array, Int32Array]:
    """The opposite: every cell that moves, and where it goes."""
    src, dst, lengths = np.fromiter(chain.from_iterable(moves), np.int32, 3 * len(moves)).reshape(-1, 3).T
    within = np.arange(lengths.sum(), dtype=np.int32) - np.repeat(np.cumsum(lengths, dtype=np.int32) - lengths, lengths)
    return np.repeat(src, lengths) + within, np.repeat(dst, lengths) + within


def _runs(cells: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    if not cells.size:
        return cells, cells
    starts = np.concatenate(([0], np.flatnonzero(np.diff(cells) != 1) + 1))
    return cells[starts], np.diff(starts, append=cells.size)


def _last(table: Table) -> int | None:
    return int(table.cells[table.end - 1]) if table.end > table.first else None
