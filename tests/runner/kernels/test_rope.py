"""Rotary positions against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from runner.kernels import _cpu
from runner.kernels.reference import ReferenceKernels

REFERENCE = ReferenceKernels()
RNG = np.random.default_rng(0)


def table_of(tokens: int, n_rot: int) -> np.ndarray:
    angles = RNG.uniform(-np.pi, np.pi, (tokens, n_rot // 2))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize(("dim", "n_rot"), [(64, 64), (80, 80), (128, 64), (66, 50), (8, 2), (32, 0)])
def test_rope_matches_numpy(isa: str, dim: int, n_rot: int, neox: bool) -> None:
    x, table = RNG.standard_normal((3, 4, dim)).astype(np.float32), table_of(3, n_rot)
    expected = x.copy()
    REFERENCE.rope(expected, table, neox)
    _cpu.rope(x, table, neox)
    assert_allclose(x, expected, rtol=1e-6, atol=1e-6)
    assert_array_equal(x[..., n_rot:], expected[..., n_rot:])


@pytest.mark.parametrize(("neox", "expected"), [(True, [-3, -4, 1, 2]), (False, [-2, 1, -4, 3])])
def test_a_quarter_turn_worked_by_hand(isa: str, neox: bool, expected: list[float]) -> None:
    x = np.array([[[1, 2, 3, 4]]], np.float32)
    _cpu.rope(x, np.array([[0, 0, 1, 1]], np.float32), neox)
    assert_array_equal(x[0, 0], expected)


@pytest.mark.parametrize("neox", [True, False])
def test_tokens_have_the_same_bits_alone_and_shared_among_threads(neox: bool) -> None:
    x, table = RNG.standard_normal((200, 8, 64)).astype(np.float32), table_of(200, 64)
    alone = x[7:8].copy()
    _cpu.rope(x, table, neox)
    _cpu.rope(alone, table[7:8], neox)
    assert_array_equal(alone[0], x[7])


@pytest.mark.parametrize("columns", [3, 10])
def test_a_table_that_does_not_fit_is_refused(columns: int) -> None:
    with pytest.raises(ValueError, match=r"columns must be even and at most the head's 8"):
        _cpu.rope(np.zeros((1, 1, 8), np.float32), np.zeros((1, columns), np.float32), True)
