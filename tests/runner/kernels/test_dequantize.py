"""Dequantization of the types that gguf-py does not know, by hand; rounding to bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.ggml_types import BY_NAME
from runner.kernels.dequantize import convert_to_bfloat16, dequantize, to_bfloat16


def block(scale: float, payload: list[int]) -> np.ndarray:
    return np.concatenate([np.array([scale], np.float16).view(np.uint8), np.array(payload, np.uint8)])


def test_q1_0_sets_plus_and_clears_minus_the_scale() -> None:
    values = dequantize(BY_NAME["Q1_0"].id, block(0.5, [0b00000101] + [0] * 15), 128)
    assert values.shape == (1, 128)
    assert values[0, :4].tolist() == [0.5, -0.5, 0.5, -0.5]


def test_q2_0_subtracts_one_from_each_two_bit_code() -> None:
    values = dequantize(BY_NAME["Q2_0"].id, block(2.0, [0b11100100] + [0] * 15), 64)
    assert values[0, :5].tolist() == [-2.0, 0.0, 2.0, 4.0, -2.0]


def test_bfloat16_conversion_works_in_rows_of_any_type() -> None:
    raw = np.concatenate([block(1.0, [0b00000101] + [0] * 15), block(3.0, [255] * 16)])
    half = convert_to_bfloat16(BY_NAME["Q1_0"].id, raw, 128).view(np.uint16).astype(np.uint32) << 16
    np.testing.assert_array_equal(half.view(np.float32).reshape(2, 128), dequantize(BY_NAME["Q1_0"].id, raw, 128))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bfloat16_is_the_nearest_value_and_ties_go_to_even(value: float) -> None:
    bits = int(np.float32(value).view(np.uint32))
    got = int(to_bfloat16(np.array([value], np.float32)).view(np.uint16)[0])
    low, remainder = bits >> 16, bits & 0xFFFF
    wanted = low + (remainder > 0x8000 or (remainder == 0x8000 and low & 1))
    assert got == wanted


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_special_values_survive(value: float) -> None:
    got = (to_bfloat16(np.array([value], np.float32)).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_equal(got[0], np.float32(value))
