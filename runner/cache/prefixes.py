"""Finished sequences whose cells are kept, and which of them a new prompt can go on from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from runner.sequence import Int32Array, Sequence

MAX_PREFIXES = 64


class Prefixes:
    """At most ``max_prefixes`` sequences, least recently used first. None of them is covered by another.

    ``window`` is what sliding layers see, 0 without such layers. Cells belong to the caller: what a method returns or
    hands out, the caller has to release.
    """

    def __init__(self, window: int = 0, max_prefixes: int = MAX_PREFIXES) -> None:
        self._window = window
        self._max_prefixes = max_prefixes
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def add(self, sequence: Sequence) -> list[Sequence]:
        """Keeps a finished sequence. Returns those that are not kept any more, it itself perhaps among them.

        A sequence goes when another has its tokens and more, and can be resumed where it ends; and the least recently
        used goes when there are too many.
        """
        if not self._max_prefixes:
            return [sequence]
        for other in self._sequences:
            if self._covers(other, sequence):
                self.touch(other)
                return [sequence]
        gone = [other for other in self._sequences if self._covers(sequence, other)]
        self._sequences = [other for other in self._sequences if other not in gone]
        self._sequences.append(sequence)
        if len(self._sequences) > self._max_prefixes:
            gone.append(self.pop_oldest())
        return gone

    def touch(self, sequence: Sequence) -> None:
        """Makes it the most recently used. One that is not kept is left alone."""
        if sequence in self._sequences:
            self._sequences.remove(sequence)
            self._sequences.append(sequence)

    def pop_oldest(self) -> Sequence:
        """Raises IndexError when there is none."""
        return self._sequences.pop(0)

    def clear(self) -> list[Sequence]:
        gone, self._sequences = self._sequences, []
        return gone

    def longest(self, tokens: Int32Array, others: Iterable[Sequence] = ()) -> tuple[Sequence | None, int]:
        """Which sequence a prompt of ``tokens`` can go on from, and after how many tokens; (None, 0) if from none.

        The last token is always left to be computed, for its logits. ``others`` are looked at as well.
        """
        return self.best_of((*reversed(self._sequences), *others), tokens)

    def best_of(self, sequences: Iterable[Sequence], tokens: Int32Array) -> tuple[Sequence | None, int]:
        """The same among ``sequences`` alone."""
        found, length = None, 0
        for sequence in sequences:
            common = num_common(sequence.stored, tokens[:-1])
            if common > length and can_resume(sequence, common, self._window):
                found, length = sequence, common
        return found, length

    def _covers(self, sequence: Sequence, other: Sequence) -> bool:
        length = other.num_past
        return num_common(sequence.stored, other.stored) == length and can_resume(sequence, length, self._window)


def num_common(one: Int32Array, other: Int32Array) -> int:
    """How many tokens both begin with."""
    length = min(one.size, other.size)
    if not length or one[0] != other[0]:
        return 0
    differs = one[:length] != other[:length]
    first = int(differs.argmax())
    return first if differs[first] else length


def can_resume(sequence: Sequence, length: int, window: int) -> bool:
    """Whether a token at position ``length`` finds all that it sees: in sliding layers the window that it ends.

    An earlier position needs earlier cells, so a sequence that cannot be resumed here cannot be resumed before either.
    """
    return not window or sequence.tables[-1].first <= max(0, length + 1 - window)
