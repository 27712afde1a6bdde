"""Sequences own disjoint cells and give them back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.kv_cache import CacheLayer, KVCache


def cache(num_ctx: int = 4, num_parallel: int = 2) -> KVCache:
    layer = np.zeros((num_ctx * num_parallel, 1, 2), np.float16)
    return KVCache([CacheLayer(layer, layer)], num_ctx=num_ctx, num_parallel=num_parallel)


def test_open_sequences_share_no_cell_and_a_full_cache_says_so() -> None:
    pool = cache()
    first, second = pool.open(), pool.open()
    assert first is not None
    assert second is not None
    assert not set(first.cells) & set(second.cells)
    assert pool.open() is None


def test_closing_twice_is_an_error() -> None:
    pool = cache()
    sequence = pool.open()
    assert sequence is not None
    pool.close(sequence)
    with pytest.raises(KeyError):
        pool.close(sequence)


def test_a_sliding_layer_uses_its_few_cells_in_turn() -> None:
    pool = KVCache(cache().layers, num_ctx=8, num_parallel=2, window_cells=3)
    first, second = pool.open(), pool.open()
    assert first is not None
    assert second is not None
    assert first.sliding_cells.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert second.sliding_cells.tolist() == [3, 4, 5, 3, 4, 5, 3, 4]


@given(st.lists(st.integers(0, 5), max_size=60))
def test_no_place_is_ever_lost(actions: list[int]) -> None:
    pool = cache(num_parallel=3)
    held = []
    for action in actions:
        if action < 3:
            sequence = pool.open()
            assert (sequence is None) == (len(held) == 3)
            if sequence is not None:
                held.append(sequence)
        elif held:
            pool.close(held.pop(action % len(held)))
        pool.check_integrity()
        assert pool.num_open == len(held)
        taken = [cell for sequence in held for cell in sequence.cells]
        assert len(taken) == len(set(taken))
