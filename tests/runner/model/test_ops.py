"""Rotary tables against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runner.model.ops import RotaryTable, frequencies
from runner.model.spec import RopeSpec


def spec(**changes: object) -> RopeSpec:
    values: dict[str, object] = {"layout": "neox", "num_dims": 8, "base": 10000.0, "original_context": 4096}
    return RopeSpec(**{**values, **changes})  # type: ignore[arg-type]


def test_the_first_pair_turns_one_radian_per_position() -> None:
    table = RotaryTable(spec())(np.array([0, 1, 3], np.int32))
    assert table[:, 0].tolist() == pytest.approx([1.0, math.cos(1), math.cos(3)], abs=1e-7)
    assert table[:, 4].tolist() == pytest.approx([0.0, math.sin(1), math.sin(3)], abs=1e-7)
    assert table[1, 7] == pytest.approx(math.sin(10000 ** (-6 / 8)), abs=1e-9)


def test_linear_scaling_divides_positions() -> None:
    plain = RotaryTable(spec())(np.array([5], np.int32))
    scaled = RotaryTable(spec(scaling="linear", factor=4.0))(np.array([20], np.int32))
    np.testing.assert_allclose(scaled, plain, atol=1e-7)


def test_frequency_factors_divide_one_by_one_and_must_be_as_many_as_pairs() -> None:
    factors = np.array([1, 2, 4, 8], np.float32)
    plain, _ = frequencies(spec(), None)
    divided, _ = frequencies(spec(), factors)
    np.testing.assert_allclose(divided * factors, plain)
    with pytest.raises(ValueError, match="3 factors; 4 are needed"):
        frequencies(spec(), factors[:3])


def test_yarn_keeps_fast_pairs_interpolates_slow_ones_and_grows_the_magnitude() -> None:
    plain, _ = frequencies(spec(num_dims=64, base=1e6), None)
    yarn, magnitude = frequencies(spec(num_dims=64, base=1e6, scaling="yarn", factor=8.0), None)
    assert yarn[0] == plain[0]
    assert yarn[-1] == pytest.approx(plain[-1] / 8)
    assert (np.diff(plain / yarn) >= -1e-12).all()
    assert magnitude == pytest.approx(1 + 0.1 * math.log(8))


def test_positions_far_out_keep_their_precision() -> None:
    table = RotaryTable(spec())(np.array([1_000_003], np.int32))
    assert table[0, 0] == pytest.approx(math.cos(1_000_003), abs=1e-7)
