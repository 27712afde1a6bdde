"""Which finished sequence a prompt goes on from, and which are kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cache.cells import Table
from runner.cache.prefixes import Prefixes, can_resume, num_common
from runner.sequence import Sequence

TOKENS = st.lists(st.integers(0, 2), max_size=8)


def ids(tokens: object) -> np.ndarray:
    return np.array(tokens, np.int32)


def finished(tokens: list[int], sliding_first: int | None = None) -> Sequence:
    """``sliding_first``: what is still held in sliding layers begins there."""
    tables: tuple[Table, ...] = ()
    if sliding_first is not None:
        tables = (Table(ids([])), Table(ids([]), sliding_first, len(tokens)))
    return Sequence(num_past=len(tokens), tokens=ids([*tokens, 99]), tables=tables)


def test_a_prompt_goes_on_from_the_longest_common_beginning() -> None:
    prefixes = Prefixes()
    short, long = finished([1, 2, 3, 9, 9, 9]), finished([1, 2, 3, 4, 8])
    for sequence in (short, long, finished([7, 1, 2, 3, 4, 5])):
        prefixes.add(sequence)
    assert prefixes.longest(ids([1, 2, 3, 4, 5, 6])) == (long, 4)
    assert prefixes.longest(ids([1, 2, 3, 9, 5, 6])) == (short, 4)
    assert prefixes.longest(ids([2, 2])) == (None, 0)


def test_the_last_token_of_a_prompt_is_left_to_be_computed() -> None:
    prefixes = Prefixes()
    sequence = finished([1, 2, 3])
    prefixes.add(sequence)
    assert prefixes.longest(ids([1, 2, 3])) == (sequence, 2)
    assert prefixes.longest(ids([1])) == (None, 0)
    assert prefixes.longest(ids([])) == (None, 0)


def test_what_lies_after_the_stored_tokens_does_not_count() -> None:
    prefixes = Prefixes()
    prefixes.add(finished([1, 2]))  # its array goes on with 99
    assert prefixes.longest(ids([1, 2, 99, 5]))[1] == 2


def test_other_sequences_are_looked_at_too() -> None:
    prefixes = Prefixes()
    prefixes.add(finished([1, 2]))
    other = finished([1, 2, 3])
    assert prefixes.longest(ids([1, 2, 3, 4]), [other]) == (other, 3)


def test_a_longer_one_takes_the_place_of_its_beginning() -> None:
    prefixes = Prefixes()
    first, other, longer = finished([1, 2]), finished([1, 3]), finished([1, 2, 3])
    assert prefixes.add(first) == prefixes.add(other) == []
    assert prefixes.add(longer) == [first]
    assert list(prefixes) == [other, longer]


def test_a_beginning_of_what_is_kept_is_not_kept_but_counts_as_use() -> None:
    prefixes = Prefixes()
    long, other, again = finished([1, 2, 3]), finished([4]), finished([1, 2])
    prefixes.add(long)
    prefixes.add(other)
    assert prefixes.add(again) == [again]
    assert list(prefixes) == [other, long]


def test_the_least_recently_used_goes_when_there_are_too_many() -> None:
    prefixes = Prefixes(max_prefixes=2)
    first, second, third = finished([1]), finished([2]), finished([3])
    prefixes.add(first)
    prefixes.add(second)
    prefixes.touch(first)
    assert prefixes.add(third) == [second]
    assert prefixes.pop_oldest() is first
    assert prefixes.clear() == [third]
    assert len(prefixes) == 0


def test_none_is_kept_where_none_may_be() -> None:
    sequence = finished([1])
    assert Prefixes(max_prefixes=0).add(sequence) == [sequence]


# ---- sliding windows


@pytest.mark.parametrize(
    ("first", "length", "is_possible"),
    [
        (0, 1, True),
        (0, 10, True),
        (7, 10, True),  # position 10 sees 7 to 10
        (8, 10, False),
        (7, 9, False),
        (1, 3, False),  # position 3 sees 0 to 3
    ],
)
def test_a_window_of_four_must_still_be_held_before_the_point_of_return(
    first: int, length: int, is_possible: bool
) -> None:
    assert can_resume(finished(list(range(10)), first), length, window=4) is is_possible


def test_a_sequence_that_has_let_go_of_the_window_gives_way_to_one_that_holds_it() -> None:
    prefixes = Prefixes(window=3)
    lost, held = finished([1, 2, 3, 4, 5, 6, 7, 8], 5), finished([1, 2, 3, 9], 0)
    prefixes.add(held)
    prefixes.add(lost)
    assert prefixes.longest(ids([1, 2, 3, 4, 5, 6, 7, 8, 9])) == (lost, 8)
    assert prefixes.longest(ids([1, 2, 3, 4, 5, 0])) == (held, 3)


def test_a_beginning_stays_where_the_longer_one_cannot_be_resumed_at_its_end() -> None:
    prefixes = Prefixes(window=3)
    start, longer, close = finished([1, 2, 3], 1), finished([1, 2, 3, 4, 5, 6], 3), finished([1, 2, 3, 4], 1)
    assert prefixes.add(start) == prefixes.add(longer) == []
    assert prefixes.add(close) == [start]


# ---- at random


@given(TOKENS, TOKENS)
def test_the_common_beginning_is_that_of_the_definition(one: list[int], other: list[int]) -> None:
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert num_common(ids(one), ids(other)) == expected


@given(st.lists(TOKENS, max_size=12), TOKENS, st.integers(0, 4))
def test_no_better_beginning_is_overlooked_and_none_covers_another(
    kept: list[list[int]], prompt: list[int], max_prefixes: int
) -> None:
    prefixes = Prefixes(max_prefixes=max_prefixes)
    alive: list[Sequence] = []
    for tokens in kept:
        sequence = finished(tokens)
        gone = prefixes.add(sequence)
        alive = [each for each in (*alive, sequence) if each not in gone]
        assert sorted(map(id, alive)) == sorted(map(id, prefixes))  # who is not returned is still there
    assert len(prefixes) <= max_prefixes
    stored = [each.stored.tolist() for each in prefixes]
    assert not [(a, b) for i, a in enumerate(stored) for j, b in enumerate(stored) if i != j and b[: len(a)] == a]
    best = max((num_common(ids(each), ids(prompt[:-1])) for each in stored), default=0)
    found, length = prefixes.longest(ids(prompt))
    assert length == best
    assert (found is None) == (best == 0)
