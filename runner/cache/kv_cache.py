"""Keys and values of past tokens, one cell per token position: who has which cells, and moving what they hold.

Sequences place their next tokens cell by cell out of one pool, so none has more than it needs. A sequence that is
closed stays as a cached prefix until its cells are wanted: a later one with the same first tokens takes them by
reference.
Layers that see a sliding window have a smaller pool of their own, from which positions go as the window moves on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runner.cache.cells import CellPool, Table
from runner.cache.kind import CacheKind, Runs
from runner.cache.layer import CacheLayer
from runner.cache.prefixes import MAX_PREFIXES, Prefixes
from runner.protocol import CacheSize, CacheStats
from runner.sequence import NO_CELLS, Int32Array, Sequence

Rotate = Callable[[CacheLayer, Int32Array], None]


class CacheFullError(RuntimeError):
    """Sequences that are open leave fewer cells than a step needs. Nothing was changed."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"the KV cache is full: {needed} cells are needed, {free} are free")
        self.needed = needed
        self.free = free


class Storage(Protocol):
    """Where the cells of the layers lie."""

    @property
    def nbytes(self) -> int: ...

    def resize(self, num_cells: int) -> None:
        """Gives the layers that see everything ``num_cells`` cells each: keeps what the first ones hold and puts new
        tensors into the ``CacheLayer``s. Raises OutOfMemoryError, and has changed nothing, if memory is short."""

    def num_cells_within(self, nbytes: int) -> int:
        """The most cells for those layers with which all layers together take at most ``nbytes``."""


class KVCache:
    """Cells for ``num_parallel`` open sequences of up to ``num_ctx`` tokens each, and for cached prefixes.

    A model without a cache (bidirectional attention) has no layers; its sequences have no cells. For use by one thread,
    between forward passes.
    """

    def __init__(
        self,
        layers: Seq[CacheLayer],
        *,
        num_ctx: int,
        num_parallel: int,
        window: int = 0,
        window_cells: int = 0,
        can_shift: bool = True,
        max_prefixes: int = MAX_PREFIXES,
        storage: Storage | None = None,
    ) -> None:
        """Sliding layers see only the last ``window`` tokens; a sequence keeps ``window_cells`` >= ``window``
        positions there. ``can_shift``: turning a key by an angle makes it that of another position.
        """
        self.layers = tuple(layers)
        self.num_ctx = num_ctx
        self.num_parallel = num_parallel
        self.can_shift = can_shift
        self._storage = storage
        self._kinds = _kinds(self.layers, num_ctx, num_parallel, window, window_cells)
        self._open: dict[Sequence, None] = {}
        self._prefixes = Prefixes(window, max_prefixes)
        self._num_defragmentations = self._moved_bytes = 0
        self._num_hits = self._num_misses = self._num_reused_tokens = 0

    # ---- the life of a sequence

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def all_are_open(self) -> bool:
        """Whether ``num_parallel`` sequences are open, so that another has to wait."""
        return self.num_open == self.num_parallel

    def open(self, tokens: Int32Array | None = None) -> Sequence | None:
        """A new sequence, or None when ``num_parallel`` are open already.

        With the prompt's ``tokens`` it begins with what another sequence, finished or still open, has stored of the
        same tokens: ``num_past = num_reused`` positions, at most all but the last. Otherwise it is empty.
        """
        if self.all_are_open:
            return None
        source, length = self._find(tokens)
        tables = tuple(kind.pool.table() for kind in self._kinds)
        if source is not None:
            self._prefixes.touch(source)
            pairs = zip(self._kinds, source.tables, strict=True)
            tables = tuple(kind.pool.share(table, table.first, length) for kind, table in pairs)
        sequence = Sequence(
            tables[0].cells if tables else NO_CELLS,
            tables[1].cells if len(tables) > 1 else NO_CELLS,
            num_past=length,
            tokens=np.zeros(self.num_ctx, np.int32),
            num_reused=length,
            tables=tables,
        )
        if tokens is not None:
            sequence.tokens[:length] = tokens[:length]
            self._num_hits += length > 0
            self._num_misses += length == 0
            self._num_reused_tokens += length
        self._open[sequence] = None
        return sequence

    def longest_prefix(self, tokens: Int32Array) -> int:
        """How many tokens ``open`` would find stored."""
        return self._find(tokens)[1]

    def has_room(self, tokens: Int32Array, *, may_share: bool) -> bool:
        """Whether a new sequence could store all these tokens beside those that are open, with what it may share with
        them. Sliding layers always have room for it."""
        if not self._kinds:
            return True
        others = [sequence for sequence in self._open if may_share and sequence.is_reusable]
        return tokens.size - self._prefixes.best_of(others, tokens)[1] <= self._num_available

    def place(self, runs: Runs) -> None:
        """Gives each (sequence, count) cells for its next ``count`` tokens; those it has from a failed step count.

        Where cells are short, cached prefixes lose first what sliding layers hold beyond what resuming at their end
        needs, and then go, the least recently used first and no more than needed. Where free cells lie too scattered,
        all are moved together.

        Raises:
            CacheFullError: the cells of all prefixes would not be enough. Nothing was changed.
            ValueError: a position lies past the context.
        """
        for sequence, count in runs:
            if sequence.num_past + count > self.num_ctx:
                raise ValueError(f"position {sequence.num_past + count - 1} lies past the context of {self.num_ctx}")
        if any(kind.is_short(runs) for kind in self._kinds):
            _check_room(kind.room(runs, self._open) for kind in self._kinds)
        for kind in self._kinds:
            kind.slide(runs)
            missing = kind.missing(runs)
            self._make_room(kind, sum(count for _, count in missing))
            if not kind.pool.place(missing):
                self._defragment(kind)
                is_placed = kind.pool.place(missing)
                assert is_placed, "free cells that lie together take every placement"

    def advance(self, sequence: Sequence, tokens: npt.ArrayLike) -> None:
        """A forward pass has stored the keys and values of these next tokens."""
        ids = np.asarray(tokens, np.int32)
        sequence.tokens[sequence.num_past : sequence.num_past + ids.size] = ids
        sequence.num_past += ids.size

    def close(self, sequence: Sequence, keep: bool = True) -> None:
        """Ends a sequence. ``keep``: what it stored may serve others until its cells are needed.

        Raises:
            KeyError: the sequence is not open.
        """
        if sequence not in self._open:
            raise KeyError("the sequence is not open")
        del self._open[sequence]
        self._forget_unstored(sequence)
        is_kept = keep and sequence.is_reusable and sequence.num_past > 0 and bool(self._kinds)
        for gone in self._prefixes.add(sequence) if is_kept else [sequence]:
            self._release(gone)

    def forget(self) -> None:
        """Drops all cached prefixes, and lets no open sequence become one: other weights give other keys."""
        for sequence in self._prefixes.clear():
            self._release(sequence)
        for sequence in self._open:
            sequence.is_reusable = False

    # ---- context shift

    def num_discardable(self, sequence: Sequence, num_keep: int) -> int:
        """How many tokens after the first ``num_keep`` go when the context is full; 0 where it cannot be shifted.

        Half of them, but at least one; fewer where a sliding window would otherwise reach what is kept. For a sequence
        that has stored a token since it was opened or shifted, that follows from ``num_past``, ``num_keep`` and the
        window alone: not from how many cells there are, nor from who shares them.
        """
        return min(max(1, (sequence.num_past - num_keep) // 2), self._most_discardable(sequence, num_keep))

    def shift(self, sequence: Sequence, num_keep: int, num_discard: int, rotate: Rotate) -> None:
        """Takes ``num_discard`` tokens after the first ``num_keep`` out; later ones move down by as many positions.

        ``rotate`` is called for each layer with the cells whose keys have to turn by ``-num_discard`` positions. Cells
        that others own too are copied before. The sequence serves no other one any more: its keys have seen tokens
        that are gone.

        Raises:
            ValueError: the context cannot be shifted, or not by so much. Nothing was changed.
            CacheFullError: there is no room for the copies. Nothing was changed.
        """
        most = self._most_discardable(sequence, num_keep)
        if not 1 <= num_discard <= most:
            what = f"{num_discard} of {sequence.num_past} tokens, after the first {num_keep}, cannot go here"
            raise ValueError(f"{what}: at most {most} can")
        self._make_room_for_copies(sequence, num_keep, num_discard)
        sequence.is_reusable = False
        self._forget_unstored(sequence)
        sequence.tokens[num_keep : sequence.num_past - num_discard] = sequence.stored[num_keep + num_discard :].copy()
        sequence.num_past -= num_discard
        for kind in self._kinds:  # all books before any key: so they stay in order even if rotate fails
            table = kind.table(sequence)
            kind.pool.remove(table, num_keep, num_keep + num_discard)
            copies = kind.pool.own(table, num_keep, table.end)
            assert copies is not None, "room was made before"
            kind.copy(copies)
        for kind in self._kinds:
            for layer in kind.layers:
                rotate(layer, kind.table(sequence).part(num_keep, sequence.num_past))

    # ---- the pool as a whole

    @property
    def num_wasted(self) -> int:
        """Free cells that lie in holes too short to be of use, in the pool of the layers that see everything."""
        return self._kinds[0].pool.num_wasted if self._kinds else 0

    @property
    def fragmentation(self) -> float:
        """The same as a share of its free cells, 0 … 1."""
        return self._kinds[0].pool.fragmentation if self._kinds else 0.0

    def defragment(self) -> None:
        """Moves the used cells of every pool to its beginning, stored bytes as they are."""
        for kind in self._kinds:
            self._defragment(kind)

    def resize(self, num_cells: int) -> None:
        """Gives the layers that see everything ``num_cells`` cells; prefixes go as far as they must.

        Raises:
            CacheFullError: open sequences hold more. Nothing was changed.
            OutOfMemoryError: memory for a larger pool is short.
        """
        if not self._kinds:
            return
        full = self._kinds[0]
        num_held = full.pool.num_cells - self._num_available
        if num_held > num_cells:
            raise CacheFullError(num_held, num_cells)
        while full.pool.num_used > num_cells:
            self._release(self._prefixes.pop_oldest())
        if num_cells < full.pool.num_cells:
            self._defragment(full)
        if self._storage is not None:
            self._storage.resize(num_cells)
        full.pool.resize(num_cells)

    def resize_within(self, nbytes: int) -> CacheSize:
        """The same with as many cells as fit into a budget, so that memory can serve something else, or come back."""
        if self._kinds and self._storage is not None:
            self.resize(self._storage.num_cells_within(nbytes))
        held_bytes = self._storage.nbytes if self._storage is not None else 0
        return CacheSize(num_cells=self._kinds[0].pool.num_cells if self._kinds else 0, held_bytes=held_bytes)

    def stats(self) -> CacheStats:
        """Counts by looking at every cell: tens of microseconds."""
        counters = {
            "num_defragmentations": self._num_defragmentations,
            "moved_bytes": self._moved_bytes,
            "num_prefixes": len(self._prefixes),
            "num_hits": self._num_hits,
            "num_misses": self._num_misses,
            "num_reused_tokens": self._num_reused_tokens,
        }
        if not self._kinds:
            return CacheStats(**counters)
        pool = self._kinds[0].pool
        return CacheStats(
            num_cells=pool.num_cells,
            num_used=pool.num_used,
            num_shared=pool.num_shared,
            num_cached=self._num_available - pool.num_free,
            fragmentation=pool.fragmentation,
            **counters,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError if the books contradict each other."""
        assert self.num_open <= self.num_parallel
        assert not set(self._open) & set(self._prefixes), "a sequence is both open and finished"
        for kind in self._kinds:
            kind.pool.check_integrity(self._tables(kind))
            for sequence in self._sequences():
                table = kind.table(sequence)
                assert sequence.num_past <= table.end, f"{sequence.num_past} positions filled, {table.end} placed"
                assert table.first <= kind.first_seen(sequence.num_past), "what the next token sees is gone"

    # ---- how

    @property
    def _num_available(self) -> int:
        """Cells that no open sequence holds, in the pool of the layers that see everything."""
        return self._kinds[0].room((), self._open)[1]

    def _find(self, tokens: Int32Array | None) -> tuple[Sequence | None, int]:
        if tokens is None or not self._kinds:
            return None, 0
        return self._prefixes.longest(tokens, [sequence for sequence in self._open if sequence.is_reusable])

    def _sequences(self) -> Iterable[Sequence]:
        return (*self._open, *self._prefixes)

    def _tables(self, kind: CacheKind) -> list[Table]:
        return [kind.table(sequence) for sequence in self._sequences()]

    def _release(self, sequence: Sequence) -> None:
        for kind in self._kinds:
            kind.pool.release(kind.table(sequence))

    def _forget_unstored(self, sequence: Sequence) -> None:
        """Lets go of cells for tokens that no forward pass has stored."""
        for kind in self._kinds:
            table = kind.table(sequence)
            kind.pool.remove(table, sequence.num_past, table.end)

    def _most_discardable(self, sequence: Sequence, num_keep: int) -> int:
        if not self.can_shift or not self._kinds or num_keep < 0:
            return 0
        return max(0, min(kind.most_discardable(sequence, num_keep) for kind in self._kinds))

    def _make_room(self, kind: CacheKind, num_cells: int, leaving: Int32Array = NO_CELLS) -> None:
        """Drops prefixes until what the others can spare is enough for ``num_cells`` free ones, and takes that."""
        while self._prefixes and not kind.spare(num_cells, self._prefixes, leaving):
            self._release(self._prefixes.pop_oldest())

    def _make_room_for_copies(self, sequence: Sequence, num_keep: int, num_discard: int) -> None:
        """The same for what a shift copies. Raises CacheFullError, and has changed nothing, if all are too few."""
        _check_room(kind.room_for_copies(sequence, num_keep, num_discard, self._open) for kind in self._kinds)
        for kind in self._kinds:
            moved, leaving = kind.shifted(sequence, num_keep, num_discard)
            self._make_room(kind, moved.size, leaving)

    def _defragment(self, kind: CacheKind) -> None:
        moves = kind.pool.plan_defragmentation()
        if moves:
            self._moved_bytes += kind.copy(moves)
            kind.pool.apply(moves, self._tables(kind))
            self._num_defragmentations += 1


def _check_room(rooms: Iterable[tuple[int, int]]) -> None:
    """Raises CacheFullError if more cells are needed than would be free, of any kind."""
    for needed, free in rooms:
        if needed > free:
            raise CacheFullError(needed, free)


def _kinds(
    layers: Seq[CacheLayer], num_ctx: int, num_parallel: int, window: int, window_cells: int
) -> tuple[CacheKind, ...]:
    """None without layers; the full layers, also where there are only sliding ones, since they count every token."""
    if not layers:
        return ()
    full = CacheKind(0, CellPool(num_ctx * num_parallel, num_ctx), (each for each in layers if not each.is_sliding))
    if not window:
        return (full,)
    sliding = (each for each in layers if each.is_sliding)
    return full, CacheKind(1, CellPool(window_cells * num_parallel, num_ctx), sliding, window, window_cells)
