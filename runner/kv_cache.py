"""Keys and values of past tokens, one cell per token position.

Every sequence gets ``num_ctx`` consecutive cells when it is opened and gives them back when it is closed; in layers
that see a sliding window it gets only as many as the window needs, and uses them in turn.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from runner.sequence import NO_CELLS, Sequence


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """One layer's storage: keys (cells, KV heads, key_length), values (cells, KV heads, value_length)."""

    keys: np.ndarray
    values: np.ndarray


class KVCache:
    """Cells for ``num_parallel`` sequences of up to ``num_ctx`` tokens each.

    A model without a cache (bidirectional attention) has no layers; its sequences have no cells.
    """

    def __init__(self, layers: Seq[CacheLayer], *, num_ctx: int, num_parallel: int, window_cells: int = 0) -> None:
        """``window_cells``: cells that a sequence has in each sliding layer, 0 without such layers."""
        self.layers = tuple(layers)
        self.num_ctx = num_ctx
        self.num_parallel = num_parallel
        self._window_cells = window_cells
        self._free = list(range(num_parallel - 1, -1, -1))
        self._places: dict[int, int] = {}  # id(sequence) → place

    def open(self) -> Sequence | None:
        """A fresh, empty sequence, or None when ``num_parallel`` sequences are open already."""
        if not self._free:
            return None
        place = self._free.pop()
        sequence = Sequence(self._cells(place, self.num_ctx), self._cells(place, self._window_cells))
        self._places[id(sequence)] = place
        return sequence

    def close(self, sequence: Sequence) -> None:
        """Gives the sequence's cells back.

        Raises:
            KeyError: the sequence is not open.
        """
        self._free.append(self._places.pop(id(sequence)))

    def _cells(self, place: int, num_cells: int) -> np.ndarray:
        """The cell of every position of the sequence at ``place``, which has ``num_cells`` of its own, used in turn."""
        if not self.layers or not num_cells:
            return NO_CELLS
        return place * num_cells + np.arange(self.num_ctx, dtype=np.int32) % np.int32(num_cells)

    @property
    def num_open(self) -> int:
        return len(self._places)

    def check_integrity(self) -> None:
        """Raises AssertionError if a place is lost, or both free and taken."""
        places = sorted([*self._free, *self._places.values()])
        assert places == list(range(self.num_parallel)), f"places {places} of {self.num_parallel}"
