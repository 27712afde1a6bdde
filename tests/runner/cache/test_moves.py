"""Moves copy bytes as they are, in every tensor, with any scratch."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runner.cache.cells import Move
from runner.cache.moves import LONG_MOVE, execute


def tensor(num_cells: int, cell_bytes: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (num_cells, cell_bytes), np.uint8)


@given(
    lengths=st.lists(st.integers(1, 2 * LONG_MOVE), min_size=1, max_size=8),
    cell_bytes=st.sampled_from([1, 34, 144]),
    chunk_bytes=st.integers(1, 5000),
)
def test_every_cell_arrives_and_no_other_changes(lengths: list[int], cell_bytes: int, chunk_bytes: int) -> None:
    gap = 3
    half = sum(lengths) + gap * len(lengths)
    starts = np.cumsum([0, *(length + gap for length in lengths[:-1])])
    moves = [Move(half + int(s), int(s), length) for s, length in zip(starts, lengths, strict=True)]
    rows, other = tensor(2 * half, cell_bytes), tensor(2 * half, 2)
    before = rows.copy(), other.copy()
    num_bytes = execute(moves, [rows, other], chunk_bytes)
    assert num_bytes == sum(lengths) * (cell_bytes + 2)
    for now, was in zip((rows, other), before, strict=True):
        expected = was.copy()
        for src, dst, length in moves:
            expected[dst : dst + length] = was[src : src + length]
        assert np.array_equal(now, expected)


def test_scratch_stays_within_its_limit() -> None:
    cell_bytes, chunk_bytes = 4096, 64 << 10
    rows = np.zeros((2048, cell_bytes), np.uint8)
    moves = [Move(1024 + i, i, 1) for i in range(0, 1024, 2)]
    tracemalloc.start()
    execute(moves, [rows], chunk_bytes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 512 * 300 + 2 * chunk_bytes < 512 * cell_bytes  # the lists of moves, and the chunk
