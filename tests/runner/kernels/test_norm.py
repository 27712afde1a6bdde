"""Norms and sums against NumPy, and the same bits for a row in any company."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from runner.kernels import _cpu
from runner.kernels.reference import ReferenceKernels

REFERENCE = ReferenceKernels()
EPS = 1e-5
DIMS = [1, 7, 16, 63, 64, 100, 2048]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm_matches_numpy(isa: str, dim: int, weighted: bool) -> None:
    x, weight = normal(5, dim), normal(dim, seed=1) if weighted else None
    out, expected = np.empty_like(x), np.empty_like(x)
    _cpu.rms_norm(x, weight, EPS, out)
    REFERENCE.rms_norm(x, weight, EPS, expected)
    assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_rms_norm_of_a_row_worked_by_hand(isa: str) -> None:
    """Mean square of (3, 4) is 12.5; with eps 3.5 the divisor is 4."""
    out = np.empty((1, 2), np.float32)
    _cpu.rms_norm(np.array([[3, 4]], np.float32), np.array([1, 2], np.float32), 3.5, out)
    assert_array_equal(out, [[0.75, 2.0]])


@pytest.mark.parametrize("dim", DIMS)
def test_add_rms_norm_is_add_then_rms_norm(isa: str, dim: int) -> None:
    residual, delta, weight = normal(5, dim), normal(5, dim, seed=1), normal(dim, seed=2)
    added, expected, out = residual + delta, np.empty_like(residual), np.empty_like(residual)
    _cpu.rms_norm(added, weight, EPS, expected)
    _cpu.add_rms_norm(residual, delta, weight, EPS, out)
    assert_array_equal(residual, added)
    assert_array_equal(out, expected)


@pytest.mark.parametrize("dim", DIMS[1:])
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm_matches_numpy(isa: str, dim: int, biased: bool) -> None:
    x, weight, bias = normal(5, dim) + 3, normal(dim, seed=1), normal(dim, seed=2) if biased else None
    out, expected = np.empty_like(x), np.empty_like(x)
    _cpu.layer_norm(x, weight, bias, EPS, out)
    REFERENCE.layer_norm(x, weight, bias, EPS, expected)
    assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_layer_norm_may_work_in_place(isa: str) -> None:
    x, out = normal(3, 50), np.empty((3, 50), np.float32)
    _cpu.layer_norm(x, None, None, EPS, out)
    _cpu.layer_norm(x, None, None, EPS, x)
    assert_array_equal(x, out)


@pytest.mark.parametrize("size", [1, 33, 40_000])
def test_add_matches_numpy(isa: str, size: int) -> None:
    x, delta = normal(2, size), normal(2, size, seed=1)
    expected = x + delta
    _cpu.add(x, delta)
    assert_array_equal(x, expected)


def test_rows_have_the_same_bits_alone_and_shared_among_threads(fused_isas: list[str]) -> None:
    x, weight, bias = normal(400, 300), normal(300, seed=1), normal(300, seed=2)
    results = []
    for isa in fused_isas:
        _cpu.set_isa(isa)
        for threads in (1, 3):
            _cpu.set_num_threads(threads)
            rms, layer = np.empty_like(x), np.empty_like(x)
            _cpu.rms_norm(x, weight, EPS, rms)
            _cpu.layer_norm(x, weight, bias, EPS, layer)
            results.append((rms, layer))
    for rms, layer in results:
        assert_array_equal(rms, results[0][0])
        assert_array_equal(layer, results[0][1])
    for row in (0, 399):
        alone = np.empty((1, 300), np.float32)
        _cpu.rms_norm(x[row : row + 1], weight, EPS, alone)
        assert_array_equal(alone[0], results[0][0][row])


X = np.zeros((2, 8), np.float32)
READ_ONLY = X.copy()
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, None, EPS, np.empty((2, 9), np.float32)), r"out is float32 \(2, 9\); its shape must be \(2, 8\)"),
        ((X, None, EPS, np.empty((2, 8))), r"out is dtype 'd' \(2, 8\); it must be float32"),
        ((X, np.zeros(7, np.float32), EPS, X), r"weight is float32 \(7,\); its shape must be \(8,\)"),
        ((X[:, ::2], None, EPS, X), r"x must be a C-contiguous array: "),
        ((X, None, EPS, READ_ONLY), r"out must be a C-contiguous, writable array: "),
        ((X[0], None, EPS, X), r"x is float32 \(8,\); its shape must be \(any, any\)"),
    ],
)
def test_wrong_arrays_are_refused_by_value(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _cpu.rms_norm(*arguments)


def test_what_is_no_array_is_refused_by_type() -> None:
    with pytest.raises(TypeError, match="x is a list; a NumPy array is needed"):
        _cpu.add([1.0], X)
