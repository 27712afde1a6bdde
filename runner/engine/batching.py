"""How many prompt tokens a step takes, and whose: pure rules, with durations as input."""

from __future__ import annotations

from collections.abc import Sequence

FACTOR = 2.25
"""A step with prompt tokens may take this many times as long as one without them. Below the promised 3, because steps
scatter."""
SMALLEST_CHUNK = 8
FIRST_CHUNK = 16
NUM_MIXED_STEPS = 64
"""Steps with prompt tokens after which one without them is taken, to see how long that lasts by now."""
SMOOTHING = 0.25


def fair_shares(room: int, wanted: Sequence[int]) -> list[int]:
    """``room`` tokens divided among those who want ``wanted``: equal shares, and what one does not need goes to others.

    Nobody gets more than wanted; what cannot be divided goes to those who came first. The shares add up to
    ``min(room, sum(wanted))``.
    """
    left = max(0, room)
    level = 0  # what everybody may have who wants it
    for num_before, want in enumerate(sorted(wanted)):
        level = left // (len(wanted) - num_before)
        if want > level:
            break
        left -= want
    shares = [min(want, level) for want in wanted]
    rest = min(max(0, room), sum(wanted)) - sum(shares)
    for index, want in enumerate(wanted):
        if rest and shares[index] < want:
            shares[index] += 1
            rest -= 1
    return shares


class ChunkBudget:
    """Keeps the time between two tokens of running sequences within ``FACTOR`` of what it is without prompts.

    It learns from the steps themselves: those without prompt tokens say what is usual (for each number of generating
    sequences), those with prompt tokens whether the budget was too large or too small. What it decides changes how
    long things take, never what comes out: results do not depend on the size of chunks.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._chunk = float(min(FIRST_CHUNK, max_tokens))
        self._quiet_s: dict[int, float] = {}
        self._num_mixed = 0

    def tokens(self, num_generating: int) -> int:
        """Prompt tokens that the next step may take beside ``num_generating`` sequences. 0: it should measure."""
        room = max(0, self._max_tokens - num_generating)
        if not num_generating:
            return room
        if num_generating not in self._quiet_s or self._num_mixed >= NUM_MIXED_STEPS:
            return 0
        return min(room, int(self._chunk))

    def observe(self, num_generating: int, num_prompt_tokens: int, seconds: float) -> None:
        """A step has taken ``seconds``."""
        if not num_generating:
            return
        if not num_prompt_tokens:
            before = self._quiet_s.get(num_generating, seconds)
            self._quiet_s[num_generating] = before + SMOOTHING * (seconds - before)
            self._num_mixed = 0
            return
        self._num_mixed += 1
        quiet_s = self._quiet_s.get(num_generating)
        if quiet_s is None or num_prompt_tokens < min(int(self._chunk), self._max_tokens - num_generating):
            return  # the end of a prompt says nothing about whole chunks
        extra_s = max(seconds - quiet_s, 1e-9)
        change = min(2.0, max(0.5, (FACTOR - 1.0) * quiet_s / extra_s))
        self._chunk = min(float(self._max_tokens), max(float(SMALLEST_CHUNK), self._chunk * change))
