"""Copies the stored bytes of cells from one place of a cache to another, whatever they encode."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from runner.cache.cells import Int32Array, Move, cells_of

ByteArray = npt.NDArray[np.uint8]

MOVE_CHUNK_BYTES = 1 << 20
"""Scratch of a copy. A larger one gains nothing: scattered cells of 1 KiB move at 7 GB/s with 1 MiB as with 16."""
LONG_MOVE = 32
"""Moves of so many cells are copied each by itself, without scratch; below, one call costs more than its bytes."""


def execute(moves: Seq[Move], tensors: Iterable[ByteArray], chunk_bytes: int = MOVE_CHUNK_BYTES) -> int:
    """Does disjoint moves in each of ``tensors`` (cells, bytes of a cell). Returns the bytes that were copied.

    Takes scratch of at most ``chunk_bytes``, but of one cell at least.
    """
    long_moves = [move for move in moves if move.length >= LONG_MOVE]
    short_moves = [move for move in moves if move.length < LONG_MOVE]
    src, dst = cells_of(short_moves)
    num_cells = sum(move.length for move in moves)
    num_bytes = 0
    for rows in tensors:
        for start, to, length in long_moves:
            rows[to : to + length] = rows[start : start + length]
        _scatter(rows, src, dst, chunk_bytes)
        num_bytes += num_cells * rows.shape[1]
    return num_bytes


def _scatter(rows: ByteArray, src: Int32Array, dst: Int32Array, chunk_bytes: int) -> None:
    step = max(1, chunk_bytes // max(1, rows.shape[1]))
    for start in range(0, src.size, step):
        rows[dst[start : start + step]] = rows[src[start : start + step]]
