"""Two sides measured in turns, and what is made of the figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tools.bench.worker import Figures

SETTLE_S = 0.3  # between two measurements: OpenMP's workers spin for some milliseconds before they sleep

Side = Callable[[], Figures]
Round = tuple[Figures, Figures]


def interleave(first: Side, second: Side, num_rounds: int) -> list[Round]:
    """The figures of both sides for each round, in an order that alternates, after a round that does not count."""
    rounds = []
    for number in range(-1, num_rounds):
        figures = {}
        for side in (first, second) if number % 2 else (second, first):
            time.sleep(SETTLE_S)
            figures[side] = side()
        if number >= 0:
            rounds.append((figures[first], figures[second]))
    return rounds


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of two sides: medians over the rounds, and the median of how many times better the first one is."""

    model: str
    job: str
    unit: str  # "tokens/s", or "ms", of which less is better
    first: float
    second: float
    ratio: float
    ratio_range: tuple[float, float]
    rounds: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, model: str, job: str, unit: str, rounds: Sequence[tuple[float, float]]) -> Row:
        is_time = unit.endswith("ms")
        ratios = [second / first if is_time else first / second for first, second in rounds]
        return cls(
            model, job, unit, median(a for a, _ in rounds), median(b for _, b in rounds), median(ratios),
            (min(ratios), max(ratios)), tuple(rounds),
        )  # fmt: skip

    def line(self) -> str:
        """The row in Markdown."""
        ratio = f"**{self.ratio:.2f}** ({self.ratio_range[0]:.2f} to {self.ratio_range[1]:.2f})"
        return f"| {self.model} | {self.job} | {self.first:.1f} | {self.second:.1f} | {self.unit} | {ratio} |"


def rows(model: str, job: str, rounds: Sequence[Round]) -> list[Row]:
    """A row for each figure that the rounds have."""
    return [Row.of(model, job, unit, [(a[unit], b[unit]) for a, b in rounds]) for unit in rounds[0][0]]
