"""Rotary positions and the cache's store against NumPy."""

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


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("tokens", [1, 3, 300])
def test_store_kv_writes_its_cells_and_no_other(isa: str, dtype: type, tokens: int) -> None:
    k = RNG.standard_normal((tokens, 2, 20)).astype(np.float32)
    v = RNG.standard_normal((tokens, 2, 7)).astype(np.float32)
    k_cache, v_cache = np.full((tokens + 5, 2, 20), 9, dtype), np.full((tokens + 5, 2, 7), 9, dtype)
    cells = RNG.permutation(tokens + 5)[:tokens].astype(np.int32)
    _cpu.store_kv(k, v, k_cache, v_cache, cells)
    assert_array_equal(k_cache[cells], k.astype(dtype))
    assert_array_equal(v_cache[cells], v.astype(dtype))
    others = np.setdiff1d(np.arange(tokens + 5), cells)
    assert (k_cache[others] == 9).all()
    assert (v_cache[others] == 9).all()


def test_every_half_is_reached_and_read_back_exactly(isa: str) -> None:
    """Halves, the points between neighbours and their float neighbours round as NumPy rounds them: ties to even."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        middles = ((halves[:-1].astype(np.float64) + halves[1:].astype(np.float64)) / 2).astype(np.float32)[:-1]
        values = np.concatenate([halves, middles, np.nextafter(middles, 0), np.nextafter(middles, 1e9), -halves])
        values = np.append(values, np.float32([65519.996, 65520, 1e30, 5e-8, 1e-40, np.inf, -np.inf]))
        expected = values.astype(np.float16)
    k = values.astype(np.float32).reshape(1, 1, -1)
    cache = np.empty(k.shape, np.float16)
    _cpu.store_kv(k, k, cache, cache.copy(), np.zeros(1, np.int32))
    assert_array_equal(cache.view(np.uint16)[0, 0], expected.view(np.uint16))


def test_not_a_number_stays_not_a_number_in_the_cache(isa: str) -> None:
    k = np.full((1, 1, 17), np.nan, np.float32)
    cache = np.zeros((1, 1, 17), np.float16)
    _cpu.store_kv(k, k, cache, cache.copy(), np.zeros(1, np.int32))
    assert np.isnan(cache).all()


@pytest.mark.parametrize("cell", [-1, 4])
def test_a_cell_outside_of_the_cache_is_refused(cell: int) -> None:
    k, cache = np.zeros((2, 1, 4), np.float32), np.zeros((4, 1, 4), np.float16)
    with pytest.raises(ValueError, match=rf"cells holds {cell}; the cache has cells 0 to 3"):
        _cpu.store_kv(k, k, cache, cache.copy(), np.array([0, cell], np.int32))
