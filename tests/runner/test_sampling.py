"""Sampling against its definition, written out over the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runner import sampling
from runner.protocol import SamplingOptions
from runner.random import uniform
from runner.sampling import (
    LOWEST_LOG_PROBABILITY,
    BrokenLogitsError,
    RecentTokens,
    log_probabilities,
    sample,
)

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Definition:
    """The two kernels as their definition; counts how much was asked for."""

    def __init__(self) -> None:
        self.largest_k = 0

    def top_k(self, logits: Floats, k: int) -> tuple[NDArray[np.int32], Floats]:
        self.largest_k = max(self.largest_k, k)
        ids = np.argsort(-logits, kind="stable")[:k].astype(np.int32)
        return ids, logits[ids]

    def log_sum_exp(self, logits: Floats) -> float:
        values = logits.astype(np.float64)
        return float(np.logaddexp.reduce(values))


KERNELS = Definition()


def softmax(values: Doubles) -> Doubles:
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def shares(logits: Floats, options: SamplingOptions, recent: Sequence[int] = ()) -> Doubles:
    """The probability of every token by the definition: one filter after the other, each over what is left."""
    values = logits.astype(np.float64)
    for token in set(recent):
        count = recent.count(token)
        value = values[token]
        value = value / options.repeat_penalty if value > 0 else value * options.repeat_penalty
        values[token] = value - count * options.frequency_penalty - options.presence_penalty
    order = np.argsort(-values, kind="stable")
    if options.top_k > 0:
        order = order[: options.top_k]
    if options.typical_p < 1:
        p = softmax(values[order])
        surprise = -np.log(p)
        by_distance = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
        kept = 1 + int((np.cumsum(p[by_distance]) <= options.typical_p).sum())
        order = order[np.sort(by_distance[:kept])]
    p = softmax(values[order])
    is_kept = np.ones(order.size, bool)
    if options.top_p < 1:
        is_kept &= np.cumsum(p) - p < options.top_p
    if options.min_p > 0:
        is_kept &= p >= options.min_p * p[0]
    is_kept[0] = True
    order = order[is_kept]
    result = np.zeros(logits.size)
    if options.temperature == 0:
        result[order[0]] = 1
    else:
        result[order] = softmax(values[order] / options.temperature)
    return result


def token_by_definition(p: Doubles, values: Floats, draw: float) -> int:
    order = np.argsort(-values, kind="stable")
    order = order[p[order] > 0]
    return int(order[min(np.searchsorted(np.cumsum(p[order]), draw, side="right"), order.size - 1)])


def is_near_an_edge(p: Doubles, draw: float) -> bool:
    """Whether rounding may put the draw into the neighbour's share."""
    cumulative = np.cumsum(np.sort(p)[::-1])
    return bool(np.abs(cumulative - draw).min() < 1e-5)


LOGITS = st.lists(st.integers(-400, 400), min_size=1, max_size=40, unique=True).map(
    lambda ints: np.array(ints, np.float32) / np.float32(37)
)
OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.3, 0.8, 1.0, 2.5]),
    top_k=st.sampled_from([-1, 0, 1, 3, 10, 100]),
    top_p=st.sampled_from([0.0, 0.123, 0.517, 0.9371, 1.0]),
    min_p=st.sampled_from([0.0, 0.0517, 0.31]),
    typical_p=st.sampled_from([1.0, 0.2731, 0.8173]),
)


@settings(deadline=None)
@given(LOGITS, OPTIONS, st.floats(0, 1, exclude_max=True), st.sampled_from([1, 4, 256]))
def test_the_token_is_the_one_of_the_definition(
    logits: Floats, options: SamplingOptions, draw: float, first: int
) -> None:
    p = shares(logits, options)
    before = logits.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "FIRST_CANDIDATES", first)
        token = sample(logits, options, draw, KERNELS)
    assert p[token] > 0
    if not is_near_an_edge(p, draw):
        assert token == token_by_definition(p, logits, draw)
    assert np.array_equal(logits, before)


@settings(deadline=None)
@given(
    LOGITS,
    st.lists(st.integers(0, 1000), max_size=30),
    st.sampled_from([0.5, 1.0, 1.3]),
    st.sampled_from([0.0, 0.71, -0.4]),
    st.sampled_from([0.0, 0.53]),
    st.floats(0, 1, exclude_max=True),
)
def test_penalties_are_those_of_the_definition_and_leave_no_trace(
    logits: Floats, history: list[int], repeat: float, presence: float, frequency: float, draw: float
) -> None:
    tokens = [token % logits.size for token in history]
    options = SamplingOptions(
        temperature=1, top_p=1, repeat_penalty=repeat, presence_penalty=presence, frequency_penalty=frequency
    )
    before = logits.copy()
    recent = RecentTokens(options.repeat_last_n, tokens)
    token = sample(logits, options, draw, KERNELS, recent=recent)
    p = shares(logits, options, tokens)
    assert np.array_equal(logits, before)
    if not is_near_an_edge(p, draw):
        assert token == token_by_definition(p, p.astype(np.float32), draw)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40), st.sampled_from([-1, 0, 1, 3, 64]))
def test_recent_tokens_are_the_last_ones(tokens: list[int], window: int) -> None:
    recent = RecentTokens(window, tokens)
    last = tokens if window < 0 else tokens[-window:] if window else []
    assert dict(recent.counts) == {token: last.count(token) for token in last}


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=1, top_k=0, top_p=1),
        SamplingOptions(temperature=0.7, top_k=5, top_p=0.9),
        SamplingOptions(temperature=1.8, top_k=0, top_p=0.8, min_p=0.02),
        SamplingOptions(temperature=1, top_k=0, top_p=1, typical_p=0.6),
        SamplingOptions(temperature=1, top_k=0, top_p=1, presence_penalty=0.5, repeat_penalty=1.4),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(options: SamplingOptions) -> None:
    logits = np.random.default_rng(5).normal(0, 2, 30).astype(np.float32)
    history = [3, 3, 8, 21]
    penalties = options.presence_penalty or options.repeat_penalty != 1
    p = shares(logits, options, history if penalties else ())
    recent = RecentTokens(64, history)
    num_draws = 4000
    drawn = [sample(logits, options, uniform(11, i), KERNELS, recent=recent) for i in range(num_draws)]
    counts = np.bincount(drawn, minlength=30)
    assert not counts[p == 0].any()
    expected = p[p > 0] * num_draws
    is_rare = expected < 5
    found = np.append(counts[p > 0][~is_rare], counts[p > 0][is_rare].sum())
    wanted = np.append(expected[~is_rare], expected[is_rare].sum() + 1e-9)
    freedom = found.size - 1
    assert ((found - wanted) ** 2 / wanted)[wanted > 1].sum() < freedom + 4 * math.sqrt(2 * freedom) + 4


@pytest.mark.parametrize("options", [SamplingOptions(temperature=0), SamplingOptions(temperature=1, top_k=1)])
def test_greedy_takes_the_best_and_of_equals_the_lower_id(options: SamplingOptions) -> None:
    logits = np.array([1, 7, 3, 7], np.float32)
    assert sample(logits, options, 0.999, KERNELS) == 1


def test_greedy_is_after_the_penalties() -> None:
    logits = np.array([1, 7, 6], np.float32)
    options = SamplingOptions(temperature=0, presence_penalty=2)
    assert sample(logits, options, 0, KERNELS, recent=RecentTokens(64, [1])) == 2


def test_the_repeat_penalty_lowers_negative_logits_too() -> None:
    logits = np.array([-1.0, -1.5], np.float32)
    options = SamplingOptions(temperature=0, repeat_penalty=2)
    assert sample(logits, options, 0, KERNELS, recent=RecentTokens(64, [0])) == 1


def test_forbidden_tokens_are_never_returned_and_the_logits_come_back() -> None:
    logits = np.array([9, 8, 1], np.float32)
    before = logits.copy()
    for options in (SamplingOptions(temperature=0), SamplingOptions(temperature=5), SamplingOptions(top_k=0, top_p=1)):
        assert {sample(logits, options, d / 9, KERNELS, forbidden=(0, 1)) for d in range(9)} == {2}
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("options", [SamplingOptions(temperature=0), SamplingOptions(), SamplingOptions(top_k=0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_an_error(options: SamplingOptions, bad: float) -> None:
    logits = np.array([1, bad, 2], np.float32)
    with pytest.raises(BrokenLogitsError, match="token 1"):
        sample(logits, options, 0.5, KERNELS)


def test_logits_without_any_finite_value_are_an_error() -> None:
    with pytest.raises(BrokenLogitsError):
        sample(np.full(4, -np.inf, np.float32), SamplingOptions(), 0.5, KERNELS)


def test_a_penalty_that_breaks_the_logits_is_an_error_and_leaves_no_trace() -> None:
    logits = np.array([1, 2], np.float32)
    options = SamplingOptions(presence_penalty=-1e39)
    with pytest.raises(BrokenLogitsError):
        sample(logits, options, 0.5, KERNELS, recent=RecentTokens(64, [0]))
    assert logits.tolist() == [1, 2]


@pytest.mark.parametrize("temperature", [1e-40, 1e-6, 1e12, 1e300])
@pytest.mark.parametrize("top_k", [0, 3])
def test_extreme_temperatures_are_no_error(temperature: float, top_k: int) -> None:
    logits = np.array([1, 3, -np.inf, 2], np.float32)
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=1)
    drawn = {sample(logits, options, draw, KERNELS) for draw in (0.0, 0.4, 0.999)}
    assert drawn == ({1} if temperature < 1 else {0, 1, 3})


def test_only_as_many_candidates_are_sorted_as_the_nucleus_needs() -> None:
    kernels = Definition()
    logits = np.random.default_rng(1).normal(0, 3, 50_000).astype(np.float32)
    sample(logits, SamplingOptions(top_k=0, top_p=0.5), 0.5, kernels)
    assert kernels.largest_k < 5_000
    kernels = Definition()
    sample(logits, SamplingOptions(temperature=1, top_k=0, top_p=1), 0.2, kernels)
    assert kernels.largest_k < 5_000


def test_a_flat_distribution_is_drawn_over_all_of_the_vocabulary() -> None:
    logits = np.zeros(5000, np.float32)
    options = SamplingOptions(temperature=1, top_k=0, top_p=1)
    drawn = [sample(logits, options, draw, KERNELS) for draw in (0.0, 0.25, 0.5, 0.99999)]
    assert drawn == pytest.approx([0, 1250, 2500, 4999], abs=1)


def test_log_probabilities_are_of_the_raw_logits() -> None:
    logits = np.array([2, 5, 1, 4], np.float32)
    expected = np.log(softmax(logits.astype(np.float64)))
    found = log_probabilities(logits, 2, 3, KERNELS)
    assert found.chosen == pytest.approx(expected[2])
    assert found.top_ids == (1, 3, 0)
    assert found.top == pytest.approx(expected[[1, 3, 0]])
    assert log_probabilities(logits, 2, 0, KERNELS).top == ()
    assert len(log_probabilities(logits, 2, 20, KERNELS).top) == 4


def test_the_log_of_zero_is_a_number_that_json_has() -> None:
    found = log_probabilities(np.array([0, -np.inf], np.float32), 1, 2, KERNELS)
    assert found.chosen == LOWEST_LOG_PROBABILITY == found.top[1]
