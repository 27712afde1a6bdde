"""Sequences and batches: which tokens go through one forward pass, and what each of them may see.

A sequence is one request's tokens; ``cells[p]`` is the KV cell of its position ``p``. A batch joins token runs of
several sequences; every array in it is made with whole-array operations, so its cost does not grow in Python
with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from runner.cache.cells import Table

Int32Array = npt.NDArray[np.int32]
Output = Literal["none", "last", "all"]

NO_CELLS: Int32Array = np.empty(0, np.int32)


@dataclass(eq=False, slots=True)
class Sequence:
    """One request's place in the KV cache.

    ``cells[p]`` is the cell of position p in layers that see everything, ``sliding_cells[p]`` in layers that see a
    window (there, positions that no later token sees have none). Both have room for every position the sequence may
    reach; ``num_past`` positions are filled, with what ``tokens`` says. A bidirectional model has no cache: its
    sequences have no cells.
    """

    cells: Int32Array = field(default_factory=lambda: NO_CELLS)
    sliding_cells: Int32Array = field(default_factory=lambda: NO_CELLS)
    num_past: int = 0
    tokens: Int32Array = field(default_factory=lambda: NO_CELLS)
    num_reused: int = 0  # positions that were filled when the sequence was opened
    tables: tuple[Table, ...] = ()  # of cells and of sliding_cells, where there are any
    is_reusable: bool = True  # what is stored is what its tokens give, so another sequence may go on from it

    @property
    def stored(self) -> Int32Array:
        """Token ids of the filled positions; a view. Shape (num_past,)."""
        return self.tokens[: self.num_past]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of consecutive batch rows that belongs to one sequence."""

    start: int
    stop: int
    first_position: int
    cells_offset: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one forward pass. T tokens, N sequences.

    ``cells`` are the cells of all sequences one after the other; position p of the sequence of row t lies in cell
    ``cells[offsets[t] + p]``, in sliding layers in ``sliding_cells[offsets[t] + p]``. ``outputs`` are the rows whose
    logits are wanted, ascending.
    """

    tokens: Int32Array  # (T,)
    positions: Int32Array  # (T,)
    offsets: Int32Array  # (T,)
    cells: Int32Array
    sliding_cells: Int32Array
    outputs: Int32Array
    segments: tuple[Segment, ...]  # N

    @classmethod
    def of(cls, runs: Iterable[tuple[Sequence, npt.ArrayLike, Output]]) -> Batch:
        """Joins runs of (sequence, its next tokens, which logits). Sequences must be distinct.

        The sequences are not changed: advance ``num_past`` when the forward pass has succeeded.
        """
        tokens: list[Int32Array] = []
        cells: list[Int32Array] = []
        sliding_cells: list[Int32Array] = []
        segments: list[Segment] = []
        outputs: list[int] = []
        row = offset = 0
        for sequence, run, output in runs:
            ids = np.asarray(run, np.int32)
            end = sequence.num_past + ids.size
            if any(end > table.end for table in sequence.tables):
                raise ValueError(f"position {end - 1} has no cell; KVCache.place gives it one")
            segments.append(Segment(row, row + ids.size, sequence.num_past, offset))
            tokens.append(ids)
            cells.append(sequence.cells[:end])
            sliding_cells.append(sequence.sliding_cells[:end])
            row += ids.size
            offset += cells[-1].size
            if output == "all":
                outputs.extend(range(row - ids.size, row))
            elif output == "last":
                outputs.append(row - 1)
        return cls(
            tokens=_joined(tokens),
            positions=_joined([_positions(s) for s in segments]),
            offsets=_joined([np.full(s.stop - s.start, s.cells_offset) for s in segments]),
            cells=_joined(cells),
            sliding_cells=_joined(sliding_cells),
            outputs=np.asarray(outputs, np.int32),
            segments=tuple(segments),
        )

    @property
    def num_tokens(self) -> int:
        return self.tokens.size

    def own(self, cells: Int32Array) -> Int32Array:
        """The cell of each row's own position, out of ``cells`` or ``sliding_cells``. Shape (T,)."""
        return np.take(cells, self.offsets + self.positions)

    def causal_rows(self, window: int) -> Int32Array:
        """What each row sees, for ``Kernels.attention``: (offset, first position, end). Shape (T, 3).

        ``window`` counts the tokens a row sees, itself included; 0 means all before it.
        """
        rows = np.empty((self.num_tokens, 3), np.int32)
        rows[:, 0] = self.offsets
        rows[:, 2] = self.positions + 1
        rows[:, 1] = np.maximum(rows[:, 2] - window, 0) if window else 0
        return rows

    def bidirectional_rows(self) -> Int32Array:
        """Every row sees its whole segment; keys and values are read in row order. Shape (T, 3)."""
        rows = np.empty((self.num_tokens, 3), np.int32)
        for segment in self.segments:
            rows[segment.start : segment.stop] = (segment.start, 0, segment.stop - segment.start)
        return rows


def _positions(segment: Segment) -> Int32Array:
    return np.arange(segment.first_position, segment.first_position + segment.stop - segment.start, dtype=np.int32)


def _joined(parts: list[Int32Array]) -> Int32Array:
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else NO_CELLS
    return np.ascontiguousarray(joined, np.int32)
