"""Durations fall into the bucket whose bound they do not exceed."""

from __future__ import annotations

import pytest

from runner.engine.durations import BOUNDS_S, Durations


def test_a_duration_on_a_bound_belongs_to_it_and_the_longest_to_none() -> None:
    durations = Durations((0.1, 1.0))
    for seconds in (0.0, 0.1, 0.10001, 1.0, 7.0):
        durations.add(seconds)
    histogram = durations.histogram()
    assert histogram.counts == (2, 2, 1)
    assert histogram.total_s == pytest.approx(8.20001)


def test_bounds_ascend() -> None:
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
    assert len(Durations().histogram().counts) == len(BOUNDS_S) + 1
