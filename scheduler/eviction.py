"""Whom to unload for room: the fewest, and among as few the cheapest to do without. Pure.

What a model costs when it goes is the time to load it again, discounted by how long nobody has wanted it: somebody who
has waited twice as long is about half as likely to come next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import combinations, islice
from pathlib import Path

from scheduler.reservations import Bytes, total

_START_S = 1.0  # every reload costs a process start and somebody's patience, however small the model
_MAX_TOGETHER = 3
_MAX_CHECKS = 64  # of whole sets, each a layout of some milliseconds; then one by one

MakesRoom = Callable[[Bytes], bool]


class Rank(IntEnum):
    """Who goes first, whatever the cost. A higher rank is touched only where all lower ones are not enough."""

    LEAVING = 0  # goes anyway
    IDLE = 1
    BUSY = 2  # takes no new requests, and goes when those under way are done
    PINNED = 3  # somebody has asked for it to stay for ever


@dataclass(frozen=True, slots=True)
class Candidate:
    """A loaded model that could go."""

    path: Path
    rank: Rank
    idle_s: float  # since its last request
    reload_s: float  # as measured when it was loaded
    held: Bytes

    @property
    def cost(self) -> float:
        return (self.reload_s + _START_S) / (self.idle_s + _START_S)


def freed(candidates: Sequence[Candidate]) -> Bytes:
    """What they hold together."""
    return total(candidate.held for candidate in candidates)


def cheapest(candidates: Sequence[Candidate]) -> Candidate | None:
    """The one to go where only their number matters."""
    return min(candidates, key=_order, default=None)


def choose(candidates: Sequence[Candidate], makes_room: MakesRoom) -> tuple[Candidate, ...]:
    """The set to unload: of the lowest ranks that can make room, the fewest of the highest ranks, then the fewest.

    Among sets that are equal in this, the one of least cost. Empty: not even all of them make room.
    ``makes_room`` tells whether these freed bytes would be enough; more bytes must never be worse.
    """
    for rank in sorted({candidate.rank for candidate in candidates}):
        allowed = [candidate for candidate in candidates if candidate.rank <= rank]
        if makes_room(freed(allowed)):
            return _smallest(allowed, makes_room)
    return ()


def _smallest(allowed: list[Candidate], makes_room: MakesRoom) -> tuple[Candidate, ...]:
    for some in islice(_small_sets(allowed), _MAX_CHECKS):
        if makes_room(freed(some)):
            return some
    return _without_needless(allowed, makes_room)


def _small_sets(allowed: list[Candidate]) -> Iterator[tuple[Candidate, ...]]:
    """Sets of up to three, the best first."""
    sets = [some for size in range(1, _MAX_TOGETHER + 1) for some in combinations(allowed, size)]
    return iter(sorted(sets, key=_badness))


def _badness(some: tuple[Candidate, ...]) -> tuple[int, int, int, float, list[str]]:
    pinned = sum(candidate.rank is Rank.PINNED for candidate in some)
    busy = sum(candidate.rank is Rank.BUSY for candidate in some)
    return pinned, busy, len(some), sum(candidate.cost for candidate in some), sorted(str(c.path) for c in some)


def _without_needless(allowed: list[Candidate], makes_room: MakesRoom) -> tuple[Candidate, ...]:
    """All of them, less everyone without whom the others are enough; the dearest are spared first."""
    going = sorted(allowed, key=_order)
    for candidate in reversed(list(going)):
        rest = [each for each in going if each is not candidate]
        if rest and makes_room(freed(rest)):
            going = rest
    return tuple(going)


def _order(candidate: Candidate) -> tuple[Rank, float, str]:
    return candidate.rank, candidate.cost, str(candidate.path)
