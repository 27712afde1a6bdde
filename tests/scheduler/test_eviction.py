"""Whom to unload: tables of candidates and needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.footprint import CPU, DeviceName
from scheduler.eviction import Candidate, Rank, cheapest, choose, freed

A, B = DeviceName("sim0", "sim"), DeviceName("sim1", "sim")
LEAVING, IDLE, BUSY, PINNED = Rank


def candidate(name, held, rank=IDLE, idle_s=10.0, reload_s=1.0):
    return Candidate(Path(name), rank, idle_s, reload_s, held if isinstance(held, dict) else {A: held})


def needing(**bytes_by_device):
    devices = {"a": A, "b": B, "cpu": CPU}
    return lambda freed: all(freed.get(devices[name], 0) >= n for name, n in bytes_by_device.items())


def names(candidates):
    return "".join(sorted(str(each.path) for each in candidates))


@pytest.mark.parametrize(
    ("candidates", "need", "chosen"),
    [
        ([candidate("x", 5), candidate("y", 5)], {"a": 11}, ""),  # not even all of them
        ([candidate("x", 5), candidate("y", 5)], {"a": 10}, "xy"),
        ([candidate("x", 4), candidate("y", 4), candidate("z", 8)], {"a": 8}, "z"),  # one rather than two
        ([candidate("x", 4), candidate("y", 9), candidate("z", 8)], {"a": 8}, "y"),  # equal in cost: by name
        ([candidate("x", 8, idle_s=5), candidate("y", 8, idle_s=50)], {"a": 8}, "y"),  # idle for longer
        ([candidate("x", 8, reload_s=60), candidate("y", 8, reload_s=2)], {"a": 8}, "y"),  # quicker to have again
        # Loads in 60 s, but nobody has asked for it in an hour; the other loads in 5 s and was used a second ago.
        ([candidate("x", 8, idle_s=3600, reload_s=60), candidate("y", 8, idle_s=1, reload_s=5)], {"a": 8}, "x"),
        # Only what is freed where it is needed counts.
        ([candidate("x", {A: 2, CPU: 99}, idle_s=999), candidate("y", {A: 8})], {"a": 8}, "y"),
        ([candidate("x", {A: 8}), candidate("y", {B: 8}), candidate("z", {A: 4, B: 4})], {"a": 4, "b": 4}, "z"),
        ([candidate("x", {A: 8}), candidate("y", {B: 8}), candidate("z", {A: 4, B: 4})], {"a": 8, "b": 4}, "xy"),
        # Busy and pinned ones only where all others are not enough.
        ([candidate("x", 8, BUSY), candidate("y", 4), candidate("z", 4)], {"a": 8}, "yz"),
        ([candidate("x", 8, PINNED), candidate("y", 8, BUSY)], {"a": 8}, "y"),
        ([candidate("x", 8, BUSY), candidate("y", 4)], {"a": 8}, "x"),
        ([candidate("x", 8, PINNED), candidate("y", 4, BUSY)], {"a": 9}, "xy"),
        ([candidate("x", 8, BUSY), candidate("y", 8, BUSY), candidate("z", 2)], {"a": 10}, "xz"),
        # What goes anyway costs nothing.
        ([candidate("x", 8, LEAVING, idle_s=0), candidate("y", 8, idle_s=999)], {"a": 8}, "x"),
        ([candidate("x", 4, LEAVING), candidate("y", 8)], {"a": 8}, "y"),
    ],
)
def test_the_choice(candidates, need, chosen):
    assert names(choose(candidates, needing(**need))) == chosen
    assert names(choose(candidates[::-1], needing(**need))) == chosen


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([], None),
        ([candidate("x", 99, idle_s=5), candidate("y", 1, idle_s=50)], "y"),
        ([candidate("x", 1, BUSY), candidate("y", 1, PINNED)], "x"),
        ([candidate("x", 1, LEAVING), candidate("y", 1, idle_s=999)], "x"),
    ],
)
def test_where_only_the_number_matters(candidates, chosen):
    found = cheapest(candidates)
    assert (found and str(found.path)) == chosen


def test_many_small_ones_are_found_with_few_questions():
    candidates = [candidate(f"{i:02}", 1, idle_s=i) for i in range(24)]
    asked = []

    def makes_room(freed):
        asked.append(freed)
        return freed[A] >= 10

    chosen = choose(candidates, makes_room)
    assert [str(each.path) for each in chosen] == [f"{i:02}" for i in range(23, 13, -1)]  # the ten idle for longest
    assert len(asked) < 100


sizes = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([LEAVING, IDLE, BUSY, PINNED]), st.floats(0, 1e6)), max_size=7
)


@given(sizes, st.integers(1, 40))
def test_nobody_goes_needlessly(rows, need):
    candidates = [candidate(str(i), held, rank, idle_s) for i, (held, rank, idle_s) in enumerate(rows)]
    makes_room = needing(a=need)
    chosen = choose(candidates, makes_room)
    assert bool(chosen) == makes_room(freed(candidates))
    if chosen:
        assert makes_room(freed(chosen))
        for each in chosen:
            assert not makes_room(freed([other for other in chosen if other is not each]))
        highest = max(each.rank for each in chosen)
        assert not makes_room(freed([each for each in candidates if each.rank < highest]))
