"""A cache over bytes, and a forward pass that stores what only the right tokens in the right order give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

from runner.cache.kv_cache import KVCache
from runner.sequence import Batch, Int32Array, Sequence

KEY_BYTES = 34  # as a block of Q8_0
VALUE_BYTES = 18  # as a block of Q4_0


@dataclass
class Rows:
    rows: np.ndarray


@dataclass
class Layer:
    keys: Rows
    values: Rows
    is_sliding: bool = False


def layer(num_cells: int, is_sliding: bool = False) -> Layer:
    keys, values = np.zeros((num_cells, KEY_BYTES), np.uint8), np.full((num_cells, VALUE_BYTES), 255, np.uint8)
    return Layer(Rows(keys), Rows(values), is_sliding)


def tokens(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


def content(tokens: Int32Array, layer: int, part: int, length: int) -> np.ndarray:
    """What the last of ``tokens`` stores: it depends on all of them."""
    seed = crc32(tokens.astype(np.int32).tobytes(), 2 * layer + part)
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8)


@dataclass
class Story:
    """The model of a sequence: which bytes each of its positions must hold, by layer."""

    tokens: list[int] = field(default_factory=list)
    stored: list[list[tuple[bytes, bytes]]] = field(default_factory=list)  # by position and layer


class Bench:
    """A cache of two layers, one of them sliding if there is a window, beside the model of every open sequence."""

    def __init__(self, *, num_ctx: int, num_parallel: int, window: int = 0, slack: int = 0, **options: Any) -> None:
        self.window = window
        self.window_cells = min(num_ctx, window + slack) if window else 0
        self.layers = [
            layer(num_ctx * num_parallel),
            layer((self.window_cells if window else num_ctx) * num_parallel, bool(window)),
        ]
        self.cache = KVCache(
            self.layers,  # type: ignore[arg-type]
            num_ctx=num_ctx,
            num_parallel=num_parallel,
            window=window,
            window_cells=self.window_cells,
            storage=self,
            **options,
        )
        self.stories: dict[Sequence, Story] = {}

    @property
    def nbytes(self) -> int:
        return sum(tensor.rows.nbytes for each in self.layers for tensor in (each.keys, each.values))

    def resize(self, num_cells: int) -> None:
        """As ``Storage.resize``: tensors that hold what the first cells of the old ones hold."""
        for each in self.layers[: 1 if self.window else 2]:
            for tensor in (each.keys, each.values):
                rows = np.full((num_cells, tensor.rows.shape[1]), 170, np.uint8)
                kept = min(num_cells, len(tensor.rows))
                rows[:kept] = tensor.rows[:kept]
                tensor.rows = rows

    def open(self, tokens: list[int] | None = None) -> Sequence | None:
        ids = None if tokens is None else np.array(tokens, np.int32)
        promised = 0 if ids is None else self.cache.longest_prefix(ids)
        sequence = self.cache.open(ids)
        if sequence is not None:
            assert sequence.num_reused == sequence.num_past == promised
            self.stories[sequence] = Story()
            self._tell(sequence, [] if tokens is None else tokens[:promised])
        return sequence

    def opened(self, tokens: list[int] | None = None) -> Sequence:
        sequence = self.open(tokens)
        assert sequence is not None
        return sequence

    def started(self, tokens: list[int]) -> Sequence:
        """A sequence that has stored all of ``tokens``."""
        sequence = self.opened(tokens)
        self.step([(sequence, tokens[sequence.num_past :])])
        return sequence

    def fill(self, sequence: Sequence, tokens: list[int], chunk: int) -> None:
        """Stores ``tokens`` in steps of ``chunk``."""
        for start in range(0, len(tokens), chunk):
            self.step([(sequence, tokens[start : start + chunk])])

    def step(self, runs: list[tuple[Sequence, list[int]]]) -> None:
        self.cache.place([(sequence, len(tokens)) for sequence, tokens in runs])
        batch = Batch.of([(sequence, tokens, "none") for sequence, tokens in runs])
        for sequence, tokens in runs:
            self._tell(sequence, tokens)
        for index, each in enumerate(self.layers):
            own = batch.own(batch.sliding_cells if self.window and index else batch.cells)
            told = [
                self.stories[sequence].stored[p][index]
                for (sequence, _), segment in zip(runs, batch.segments, strict=True)
                for p in range(segment.first_position, segment.first_position + segment.stop - segment.start)
            ]
            for cell, (key, value) in zip(own, told, strict=True):
                each.keys.rows[cell] = np.frombuffer(key, np.uint8)
                each.values.rows[cell] = np.frombuffer(value, np.uint8)
        self.check()  # that the first of them find what they see
        for sequence, tokens in runs:
            self.cache.advance(sequence, tokens)

    def shift(self, sequence: Sequence, num_keep: int, num_discard: int) -> None:
        """Turning a key by a position is adding 1 to its bytes."""
        self.cache.shift(sequence, num_keep, num_discard, self.rotate(num_discard))
        story = self.stories[sequence]
        del story.tokens[num_keep : num_keep + num_discard], story.stored[num_keep : num_keep + num_discard]
        for position in range(num_keep, len(story.stored)):
            story.stored[position] = [
                (bytes((byte + num_discard) % 256 for byte in key), value) for key, value in story.stored[position]
            ]

    def rotate(self, num_discard: int) -> Callable[[Any, Int32Array], None]:
        def rotate(layer: Any, cells: Int32Array) -> None:
            layer.keys.rows[cells] += np.uint8(num_discard % 256)

        return rotate

    def close(self, sequence: Sequence, keep: bool = True) -> None:
        self.cache.close(sequence, keep)
        del self.stories[sequence]

    def check(self) -> None:
        """Every position that a next token sees holds what was stored for it, and what was stored beyond it too."""
        self.cache.check_integrity()
        for sequence, story in self.stories.items():
            num_stored = len(story.tokens)
            assert sequence.stored.tolist() == story.tokens[: sequence.num_past]
            for index, each in enumerate(self.layers):
                slides = bool(self.window and index)
                cells = sequence.sliding_cells if slides else sequence.cells
                first = max(0, sequence.num_past + 1 - self.window) if slides else 0
                for position in range(first, num_stored):
                    found = each.keys.rows[cells[position]], each.values.rows[cells[position]]
                    assert tuple(map(bytes, found)) == story.stored[position][index], (index, position)

    def state(self) -> Any:
        """Everything there is, to be compared."""
        pools = [
            (k.pool._owners.tolist(), k.pool._holes.starts[:], k.pool._holes.lengths[:]) for k in self.cache._kinds
        ]
        sequences = [*self.cache._open, *self.cache._prefixes]
        tables = [(s, s.num_past, [(t.first, t.end, t.cells.tolist()) for t in s.tables]) for s in sequences]
        tensors = [t.rows.tobytes() for each in self.layers for t in (each.keys, each.values)]
        return pools, tables, [s.tokens.tolist() for s in sequences], tensors, self.cache.stats()

    def _tell(self, sequence: Sequence, tokens: list[int]) -> None:
        story = self.stories[sequence]
        for token in tokens:
            story.tokens.append(token)
            ids = np.array(story.tokens, np.int32)
            story.stored.append(
                [
                    (content(ids, index, 0, KEY_BYTES).tobytes(), content(ids, index, 1, VALUE_BYTES).tobytes())
                    for index in range(len(self.layers))
                ]
            )
