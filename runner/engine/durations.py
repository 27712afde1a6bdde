"""Durations counted in buckets: what a Prometheus histogram is made of."""

from __future__ import annotations

from bisect import bisect_left

from runner.protocol import Histogram

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Durations:
    """Added by one thread; any thread may read a ``histogram`` (it may miss what is being added at that moment)."""

    def __init__(self, bounds: tuple[float, ...] = BOUNDS_S) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total_s += seconds

    def histogram(self) -> Histogram:
        return Histogram(bounds=self._bounds, counts=tuple(self._counts), total_s=self._total_s)
