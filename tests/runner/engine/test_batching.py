"""Prompts share a step fairly, and never make running sequences wait for long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engine.batching import NUM_MIXED_STEPS, SMALLEST_CHUNK, ChunkBudget, fair_shares


@pytest.mark.parametrize(
    ("room", "wanted", "shares"),
    [
        (10, [], []),
        (0, [5, 5], [0, 0]),
        (-3, [5], [0]),
        (10, [4], [4]),
        (10, [20], [10]),
        (10, [20, 20], [5, 5]),
        (11, [20, 20, 20], [4, 4, 3]),
        (10, [2, 20, 20], [2, 4, 4]),
        (9, [20, 1, 1, 20], [4, 1, 1, 3]),
        (100, [3, 4], [3, 4]),
        (5, [0, 9], [0, 5]),
    ],
)
def test_shares(room: int, wanted: list[int], shares: list[int]) -> None:
    assert fair_shares(room, wanted) == shares


@given(st.integers(0, 600), st.lists(st.integers(0, 5000), max_size=20))
def test_shares_use_all_room_and_nobody_gets_two_more_than_another_who_wants_more(room: int, wanted: list[int]) -> None:
    shares = fair_shares(room, wanted)
    assert sum(shares) == min(room, sum(wanted))
    assert all(share <= want for share, want in zip(shares, wanted, strict=True))
    unmet = [share for share, want in zip(shares, wanted, strict=True) if share < want]
    assert not unmet or max(shares) <= min(unmet) + 1


class Machine:
    """Steps take ``fixed`` seconds for each generating sequence and ``each`` for a prompt token."""

    def __init__(self, budget: ChunkBudget, fixed: float, each: float) -> None:
        self.budget = budget
        self.fixed = fixed
        self.each = each

    def step(self, num_generating: int, num_left: int = 1_000_000) -> tuple[int, float]:
        tokens = min(self.budget.tokens(num_generating), num_left)
        seconds = self.fixed * num_generating + self.each * tokens
        self.budget.observe(num_generating, tokens, seconds)
        return tokens, seconds


def test_without_generating_sequences_a_prompt_takes_the_whole_batch() -> None:
    assert ChunkBudget(512).tokens(0) == 512


def test_the_first_step_beside_a_prompt_measures_and_the_next_are_small() -> None:
    machine = Machine(ChunkBudget(512), fixed=0.02, each=0.001)
    assert [machine.step(1)[0] for _ in range(2)] == [0, 16]


@pytest.mark.parametrize(("fixed", "each"), [(0.02, 0.0001), (0.02, 0.001), (0.05, 0.002), (0.001, 0.0001)])
@pytest.mark.parametrize("num_generating", [1, 7])
def test_steps_with_prompt_tokens_come_to_last_what_they_may(fixed: float, each: float, num_generating: int) -> None:
    machine = Machine(ChunkBudget(512), fixed, each)
    lasted = [machine.step(num_generating)[1] for _ in range(40)]
    assert max(lasted) <= 3 * fixed * num_generating
    expected = min(2.25 * fixed * num_generating, fixed * num_generating + each * (512 - num_generating))
    assert lasted[-1] == pytest.approx(expected, rel=0.1)


def test_a_prompt_never_starves_even_where_any_chunk_takes_too_long() -> None:
    machine = Machine(ChunkBudget(512), fixed=0.001, each=1.0)
    assert [machine.step(1)[0] for _ in range(5)][-1] == SMALLEST_CHUNK


def test_the_usual_time_is_measured_again_from_time_to_time() -> None:
    machine = Machine(ChunkBudget(512), fixed=0.02, each=0.001)
    tokens = [machine.step(2)[0] for _ in range(3 * NUM_MIXED_STEPS)]
    assert tokens.count(0) == 3


def test_the_end_of_a_prompt_does_not_make_chunks_larger() -> None:
    machine = Machine(ChunkBudget(512), fixed=0.02, each=0.001)
    for _ in range(20):
        machine.step(1)
    before = machine.budget.tokens(1)
    machine.step(1, num_left=1)
    assert machine.budget.tokens(1) == before


def test_a_budget_never_exceeds_the_batch() -> None:
    machine = Machine(ChunkBudget(8), fixed=1.0, each=0.000001)
    assert max(machine.step(3)[0] for _ in range(20)) == 5
