"""Top-k and log-sum-exp of logits against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from runner.kernels import _cpu

VOCABULARY = 151_936


def expected_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Stable order by descending value, NaN last."""
    return np.argsort(np.where(np.isnan(logits), np.inf, -logits), kind="stable")[: k if k > 0 else None]


def ordered(logits: np.ndarray) -> np.ndarray:
    """NaN must come after -inf, which a sort by value cannot say."""
    ids = expected_top_k(logits, 0)
    return np.concatenate([ids[~np.isnan(logits[ids])], ids[np.isnan(logits[ids])]])


@pytest.mark.parametrize("k", [1, 40, 1000, 30_000, VOCABULARY, 0, -1, VOCABULARY + 5])
@pytest.mark.parametrize("decimals", [1, 7])
def test_top_k_of_a_vocabulary(isa: str, k: int, decimals: int) -> None:
    """One decimal makes ties by the thousand: they come by ascending id."""
    logits = np.round(np.random.default_rng(abs(k)).standard_normal(VOCABULARY) * 3, decimals).astype(np.float32)
    ids, values = _cpu.top_k(logits, k)
    expected = expected_top_k(logits, k)
    assert ids.dtype == np.int32
    assert_array_equal(ids, expected)
    assert_array_equal(values, logits[expected])


@pytest.mark.parametrize("step", [1, -1, 0])
def test_top_k_of_ordered_logits(isa: str, step: int) -> None:
    """Ascending logits renew every threshold; equal ones none."""
    logits = np.arange(20_000, dtype=np.float32) * step
    ids, _ = _cpu.top_k(logits, 10)
    assert_array_equal(ids, expected_top_k(logits, 10))


SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 3e38, 1e-45])


@settings(deadline=None, max_examples=100)
@given(arrays(np.float32, st.integers(1, 80), elements=SPECIAL), st.integers(-1, 90))
def test_special_values_keep_their_order(logits: np.ndarray, k: int) -> None:
    ids, values = _cpu.top_k(logits, k)
    expected = ordered(logits + 0.0)  # -0 and 0 are equal
    expected = expected[: k if k > 0 else None]
    assert_array_equal(ids, expected)
    assert_array_equal(values, logits[expected])


@pytest.mark.parametrize("num_numbers", [3, 5000])
def test_not_a_number_comes_last_in_a_large_vocabulary(isa: str, num_numbers: int) -> None:
    logits = np.full(50_000, np.nan, np.float32)
    places = np.random.default_rng(0).permutation(50_000)[:num_numbers]
    logits[places] = np.random.default_rng(1).standard_normal(num_numbers)
    ids, _ = _cpu.top_k(logits, 20)
    assert_array_equal(ids, ordered(logits)[:20])


@pytest.mark.parametrize("size", [1, 15, 16, 17, 16_384, 16_385, VOCABULARY])
def test_log_sum_exp_matches_numpy(isa: str, size: int) -> None:
    logits = (np.random.default_rng(size).standard_normal(size) * 5 + 40).astype(np.float32)
    peak = float(logits.max())
    expected = peak + math.log(np.exp(logits.astype(np.float64) - peak).sum())
    assert_allclose(_cpu.log_sum_exp(logits), expected, rtol=0, atol=1e-6)


def test_log_sum_exp_has_the_same_bits_with_any_threads(fused_isas: list[str]) -> None:
    logits = np.random.default_rng(0).standard_normal(VOCABULARY).astype(np.float32)
    results = set()
    for isa in fused_isas:
        _cpu.set_isa(isa)
        for threads in (1, 2, 3):
            _cpu.set_num_threads(threads)
            results.add(_cpu.log_sum_exp(logits))
    assert len(results) == 1


def test_log_sum_exp_of_infinities(isa: str) -> None:
    assert _cpu.log_sum_exp(np.full(40, -np.inf, np.float32)) == -math.inf
    assert _cpu.log_sum_exp(np.array([0, np.inf], np.float32)) == math.inf
    assert math.isnan(_cpu.log_sum_exp(np.array([0, np.nan] * 20, np.float32)))


def test_no_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits is float32 \(0,\); at least one value is needed"):
        _cpu.log_sum_exp(np.empty(0, np.float32))
