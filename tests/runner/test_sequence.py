"""Batches join token runs of several sequences without mixing what they may see."""

from __future__ import annotations

import numpy as np
import pytest

from runner.cache.cells import Table
from runner.sequence import Batch, Sequence


def sequence(start: int, length: int, num_past: int) -> Sequence:
    return Sequence(np.arange(start, start + length, dtype=np.int32), num_past=num_past)


def test_two_sequences_keep_their_own_positions_and_cells() -> None:
    batch = Batch.of([(sequence(0, 8, 3), [11], "last"), (sequence(8, 8, 0), [21, 22], "none")])
    assert batch.tokens.tolist() == [11, 21, 22]
    assert batch.positions.tolist() == [3, 0, 1]
    assert batch.own(batch.cells).tolist() == [3, 8, 9]
    assert batch.outputs.tolist() == [0]
    rows = batch.causal_rows(0)
    seen = [batch.cells[o + first : o + end].tolist() for o, first, end in rows]
    assert seen == [[0, 1, 2, 3], [8], [8, 9]]


def test_a_window_counts_the_token_itself() -> None:
    batch = Batch.of([(sequence(0, 8, 4), [1, 2], "all")])
    assert batch.causal_rows(3)[:, 1:].tolist() == [[2, 5], [3, 6]]
    assert batch.outputs.tolist() == [0, 1]


def test_without_a_cache_every_row_sees_its_whole_segment() -> None:
    batch = Batch.of([(Sequence(), [1, 2], "none"), (Sequence(), [3, 4, 5], "none")])
    assert batch.bidirectional_rows().tolist() == [[0, 0, 2]] * 2 + [[2, 0, 3]] * 3
    assert batch.positions.tolist() == [0, 1, 0, 1, 2]


def test_a_position_without_a_cell_is_refused() -> None:
    cells = np.arange(10, dtype=np.int32)
    placed = Sequence(cells, num_past=7, tables=(Table(cells, end=8),))
    assert Batch.of([(placed, [1], "last")]).positions.tolist() == [7]
    with pytest.raises(ValueError, match="position 8 has no cell"):
        Batch.of([(placed, [1, 2], "last")])


def test_an_empty_batch_has_no_rows() -> None:
    assert Batch.of([]).num_tokens == 0
