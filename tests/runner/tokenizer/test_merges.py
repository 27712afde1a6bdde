"""Merges: a sequence of pairs that are made when needed."""

from __future__ import annotations

import pytest

from runner.tokenizer.merges import Merges


def test_it_is_a_sequence_of_pairs() -> None:
    merges = Merges(["a", "b", "c"], ["x", "y", "z"])
    assert len(merges) == 3
    assert list(merges) == [("a", "x"), ("b", "y"), ("c", "z")]
    assert merges[-1] == ("c", "z")
    assert merges[1:] == [("b", "y"), ("c", "z")]


def test_every_left_part_needs_a_right_part() -> None:
    with pytest.raises(ValueError, match="2 left parts and 1 right parts"):
        Merges(["a", "b"], ["x"])
