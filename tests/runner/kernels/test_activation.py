"""Activations against NumPy in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from runner.kernels import _cpu

Gated = Callable[[np.ndarray, np.ndarray, np.ndarray], None]

VALUES = np.concatenate(
    [np.linspace(-12, 12, 4001), np.linspace(-1e-3, 1e-3, 101), [-1e30, -200, -88, -87, 87, 200, 1e18]]
).astype(np.float32)


def silu(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_exact(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.tolist()])


@pytest.mark.parametrize(("kernel", "activation"), [(_cpu.swiglu, silu), (_cpu.geglu, gelu_tanh)])
def test_gated_activations_match_numpy(isa: str, kernel: Gated, activation: Callable[[np.ndarray], np.ndarray]) -> None:
    gate, up = VALUES[None], np.full((1, VALUES.size), 0.75, np.float32)
    out = np.empty_like(gate)
    kernel(gate, up, out)
    assert_allclose(out[0], activation(VALUES.astype(np.float64)) * 0.75, rtol=6e-7, atol=1e-6)


def test_gelu_matches_the_error_function(isa: str) -> None:
    out = np.empty((1, VALUES.size), np.float32)
    _cpu.gelu(VALUES[None], out)
    assert_allclose(out[0], gelu_exact(VALUES.astype(np.float64)), rtol=4e-7, atol=2e-7)


@pytest.mark.parametrize("kernel", [_cpu.swiglu, _cpu.geglu])
def test_zero_gives_zero_and_not_a_number_stays(isa: str, kernel: Gated) -> None:
    gate, up = np.array([[0, np.nan, 1]], np.float32), np.ones((1, 3), np.float32)
    out = np.empty_like(gate)
    kernel(gate, up, out)
    assert out[0, 0] == 0
    assert np.isnan(out[0, 1])
    assert out[0, 2] > 0.5


def test_elements_have_the_same_bits_wherever_they_stand(fused_isas: list[str]) -> None:
    """Neither the place in a row, nor the number of threads, nor the instruction set shows in a result."""
    x = np.random.default_rng(0).standard_normal((40, 1003)).astype(np.float32) * 3
    for kernel in (_cpu.swiglu, _cpu.geglu):
        _cpu.set_isa(fused_isas[0])
        expected = np.empty_like(x)
        kernel(x, x, expected)
        for isa in fused_isas:
            _cpu.set_isa(isa)
            row = np.empty((1, 1001), np.float32)
            kernel(x[3:4, 2:].copy(), x[3:4, 2:].copy(), row)
            assert_array_equal(row[0], expected[3, 2:])


def test_the_output_may_be_the_input(isa: str) -> None:
    x = VALUES[None].copy()
    out = np.empty_like(x)
    _cpu.gelu(x, out)
    _cpu.gelu(x, x)
    assert_array_equal(x, out)


def test_shapes_must_agree() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"up is float32 \(3, 2\); its shape must be \(2, 3\)"):
        _cpu.swiglu(x, x.reshape(3, 2), x)
