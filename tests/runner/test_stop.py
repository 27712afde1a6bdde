"""Stop strings: the earliest position wins, however the text is cut into pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.stop import StopScanner

LETTERS = st.text("ab<", max_size=30)
STOPS = st.lists(st.text("ab<", max_size=4), max_size=4)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def cut_by_definition(text: str, stops: list[str]) -> tuple[str, str | None]:
    found = [(text.find(stop), len(stop)) for stop in stops if stop and stop in text]
    if not found:
        return text, None
    position, length = min(found)
    return text[:position], text[position : position + length]


@settings(deadline=None, max_examples=500)
@given(LETTERS, STOPS, st.lists(st.integers(0, 40), max_size=12))
def test_the_result_is_the_definition_for_any_cutting(text: str, stops: list[str], cuts: list[int]) -> None:
    scanner = StopScanner(stops)
    released = "".join(map(scanner.push, pieces_of(text, cuts))) + scanner.finish()
    assert (released, scanner.stopped_by) == cut_by_definition(text, stops)


@settings(deadline=None)
@given(LETTERS, STOPS)
def test_text_is_held_only_while_it_may_begin_a_stop(text: str, stops: list[str]) -> None:
    scanner = StopScanner(stops)
    released = ""
    for end in range(1, len(text) + 1):
        released += scanner.push(text[end - 1])
        held = text[len(released) : end]
        if scanner.stopped_by is not None:
            break
        assert not held or any(stop.startswith(held) or held.startswith(stop) for stop in stops if stop)


def test_the_earliest_position_wins_over_the_order_of_the_list() -> None:
    scanner = StopScanner(["world", "lo"])
    assert scanner.push("hello world") == "hel"
    assert scanner.stopped_by == "lo"


def test_of_stops_that_begin_together_the_shortest_is_named_however_the_text_is_cut() -> None:
    for pieces in (["b<"], ["b", "<"]):
        scanner = StopScanner(["b<", "b"])
        assert "".join(map(scanner.push, pieces)) == ""
        assert scanner.stopped_by == "b"


def test_a_match_waits_for_a_longer_stop_that_begins_before_it() -> None:
    scanner = StopScanner(["c", "bcd"])
    assert [scanner.push(letter) for letter in "abc"] == ["a", "", ""]
    assert scanner.stopped_by is None
    assert scanner.push("d") == ""
    assert scanner.stopped_by == "bcd"


def test_a_match_that_waited_in_vain_still_stops() -> None:
    scanner = StopScanner(["c", "bcd"])
    assert "".join(map(scanner.push, "abcx")) == "ab"
    assert scanner.stopped_by == "c"
    again = StopScanner(["c", "bcd"])
    assert again.push("abc") + again.finish() == "ab"
    assert again.stopped_by == "c"


def test_nothing_is_released_after_a_stop() -> None:
    scanner = StopScanner(["."])
    assert scanner.push("a.b") == "a"
    assert (scanner.push("more"), scanner.finish()) == ("", "")


@pytest.mark.parametrize("stops", [[], [""], ["", ""]])
def test_without_stops_text_passes_at_once(stops: list[str]) -> None:
    scanner = StopScanner(stops)
    assert scanner.push("any text") == "any text"
    assert scanner.stopped_by is None


def test_a_long_hostile_stop_is_no_trap() -> None:
    scanner = StopScanner(["a" * 20000 + "b"])
    released = "".join(scanner.push("a" * 50) for _ in range(600))
    assert len(released) + len(scanner.finish()) == 30000
