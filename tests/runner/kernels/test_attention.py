"""Attention against NumPy, and the same bits for a row in any company, on any threads, in any cells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from runner.kernels import _cpu
from runner.kernels.reference import ReferenceKernels

REFERENCE = ReferenceKernels()


@dataclass(frozen=True)
class Problem:
    """The inputs of one call: sequences lie one after the other in ``cells``, each row belongs to one of them."""

    q: np.ndarray  # (T, H, D)
    k_cache: np.ndarray  # (cells, KH, D)
    v_cache: np.ndarray  # (cells, KH, DV)
    cells: np.ndarray
    rows: np.ndarray  # (T, 3)
    softcap: float = 0.0

    def run(self) -> np.ndarray:
        out = np.full((len(self.q), self.q.shape[1], self.v_cache.shape[2]), np.nan, np.float32)
        scale = self.q.shape[2] ** -0.5
        _cpu.attention(self.q, self.k_cache, self.v_cache, self.cells, self.rows, scale, self.softcap, out)
        return out

    def expected(self) -> np.ndarray:
        out = np.empty((len(self.q), self.q.shape[1], self.v_cache.shape[2]), np.float32)
        scale = self.q.shape[2] ** -0.5
        REFERENCE.attention(self.q, self.k_cache, self.v_cache, self.cells, self.rows, scale, self.softcap, out)
        return out

    def take(self, rows: np.ndarray) -> Problem:
        return replace(self, q=self.q[rows], rows=self.rows[rows])

    def move_cells(self, rng: np.random.Generator) -> Problem:
        """The same keys and values in other cells."""
        new_cell = rng.permutation(len(self.k_cache)).astype(np.int32)
        k_cache, v_cache = np.empty_like(self.k_cache), np.empty_like(self.v_cache)
        k_cache[new_cell], v_cache[new_cell] = self.k_cache, self.v_cache
        return replace(self, k_cache=k_cache, v_cache=v_cache, cells=new_cell[self.cells])


def problem(
    rows: list[tuple[int, int, int]],
    shape: tuple[int, int, int, int] = (4, 2, 32, 32),
    dtype: type = np.float16,
    softcap: float = 0.0,
    seed: int = 0,
) -> Problem:
    """Normal random values; every cell of the cache is used once. shape: heads, key-value heads, D, DV."""
    rng = np.random.default_rng(seed)
    heads, kv_heads, key_length, value_length = shape
    num_cells = max(offset + end for offset, _, end in rows)
    return Problem(
        q=rng.standard_normal((len(rows), heads, key_length)).astype(np.float32),
        k_cache=rng.standard_normal((num_cells, kv_heads, key_length)).astype(dtype),
        v_cache=rng.standard_normal((num_cells, kv_heads, value_length)).astype(dtype),
        cells=rng.permutation(num_cells).astype(np.int32),
        rows=np.array(rows, np.int32),
        softcap=softcap,
    )


def causal(tokens: int, past: int = 0, offset: int = 0, window: int = 1 << 30) -> list[tuple[int, int, int]]:
    return [(offset, max(0, past + t + 1 - window), past + t + 1) for t in range(tokens)]


SHAPES = [
    (4, 2, 32, 32),
    (8, 2, 64, 64),
    (5, 5, 80, 80),
    (4, 1, 96, 128),
    (14, 2, 128, 128),
    (3, 1, 17, 5),
    (2, 1, 256, 256),
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_causal_attention_matches_numpy(isa: str, shape: tuple[int, int, int, int], dtype: type) -> None:
    given_ = problem(causal(20, past=60), shape, dtype)
    assert_allclose(given_.run(), given_.expected(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(0, 0, 1)], id="one position"),
        pytest.param([(0, 0, 2500)], id="a long row"),
        pytest.param([(0, 0, 150)] * 40, id="bidirectional"),
        pytest.param(causal(70, past=30, window=33), id="sliding window"),
        pytest.param(causal(5, past=1300, window=1100), id="a window over chunks"),
        pytest.param([(100 * s, 0, 1 + 9 * s) for s in range(9)], id="a decode step of nine sequences"),
        pytest.param(causal(30) + causal(3, past=64, offset=30) + [(97, 0, 5)], id="a mixed batch"),
    ],
)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_every_mask_matches_numpy(isa: str, rows: list[tuple[int, int, int]], softcap: float) -> None:
    given_ = problem(rows, softcap=softcap)
    assert_allclose(given_.run(), given_.expected(), rtol=1e-5, atol=2e-6)


def test_two_positions_worked_by_hand(isa: str) -> None:
    """Scores 0 and ln 3 weigh the values 1 and 5 by 1/4 and 3/4: 4."""
    k_cache, v_cache = np.zeros((2, 1, 1), np.float32), np.array([[[5]], [[1]]], np.float32)
    k_cache[0] = np.log(3)
    out = np.empty((1, 1, 1), np.float32)
    rows, cells = np.array([[0, 0, 2]], np.int32), np.array([1, 0], np.int32)
    _cpu.attention(np.ones((1, 1, 1), np.float32), k_cache, v_cache, cells, rows, 1.0, 0.0, out)
    assert out[0, 0, 0] == pytest.approx(4.0, rel=1e-6)


def test_far_scores_do_not_overflow(isa: str) -> None:
    """Scores in the thousands, the greatest first or last."""
    for order in (1, -1):
        given_ = problem([(0, 0, 200)], (1, 1, 16, 16), np.float32)
        k_cache = np.ascontiguousarray(np.linspace(0, 1000, 200, dtype=np.float32)[::order, None, None].repeat(16, 2))
        given_ = replace(given_, k_cache=k_cache, q=np.ones((1, 1, 16), np.float32))
        assert_allclose(given_.run(), given_.expected(), rtol=1e-4, atol=1e-6)


def test_a_row_that_sees_nothing_is_zero(isa: str) -> None:
    given_ = problem([(0, 0, 70), (0, 5, 5), (0, 0, 3), (0, 64, 64)])
    out = given_.run()
    assert_array_equal(out[[1, 3]], 0)
    assert_allclose(out[[0, 2]], given_.take(np.array([0, 2])).expected(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_a_row_does_not_see_cannot_reach_it(isa: str, bad: float) -> None:
    """Positions from 40 on are not numbers; rows that end before are as if they were alone, with others beside them."""
    given_ = problem(causal(80))
    expected = given_.take(np.arange(40)).run()
    given_.k_cache[given_.cells[40:]] = bad
    given_.v_cache[given_.cells[40:]] = bad
    assert_array_equal(given_.run()[:40], expected)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    rows: list[tuple[int, int, int]] = []
    for _ in range(draw(st.integers(1, 4))):
        offset = max((o + e for o, _, e in rows), default=0)
        past = draw(st.sampled_from([0, 1, 50, 63, 64, 130, 1000, 1030]))
        window = draw(st.sampled_from([1 << 30, 1, 40, 100]))
        rows += causal(draw(st.sampled_from([1, 2, 7, 40])), past, offset, window)
    heads = draw(st.sampled_from([(1, 1), (4, 2), (7, 1), (6, 6)]))
    lengths = draw(st.sampled_from([(16, 16), (8, 24), (20, 33)]))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    return problem(rows, heads + lengths, dtype, draw(st.sampled_from([0.0, 3.0])), draw(st.integers(0, 9)))


@settings(deadline=None, max_examples=25)
@given(problems(), st.randoms(use_true_random=False))
def test_a_row_has_the_same_bits_in_any_company(given_: Problem, random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    _cpu.set_num_threads(1)
    expected = given_.run()
    for threads in (2, 5):
        _cpu.set_num_threads(threads)
        assert_array_equal(given_.run(), expected)
    some = np.sort(rng.permutation(len(given_.q))[: rng.integers(1, len(given_.q) + 1)])
    assert_array_equal(given_.take(some).run(), expected[some])
    shuffled = rng.permutation(len(given_.q))
    assert_array_equal(given_.take(shuffled).run(), expected[shuffled])
    assert_array_equal(given_.move_cells(rng).run(), expected)
    alone = np.array([rng.integers(len(given_.q))])
    assert_array_equal(given_.take(alone).run(), expected[alone])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_instruction_sets_agree_in_every_bit(
    fused_isas: list[str], shape: tuple[int, int, int, int], dtype: type
) -> None:
    given_ = problem(causal(9, past=1100), shape, dtype, softcap=4.0)
    results = []
    for isa in fused_isas:
        _cpu.set_isa(isa)
        results.append(given_.run())
    for result in results[1:]:
        assert_array_equal(result, results[0])


GOOD = problem(causal(2, past=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.array([[0, 0, 5], [0, 0, 6]], np.int32)}, r"rows\[1\] is \(0, 0, 6\); .* offset \+ end <= 5"),
        ({"rows": np.array([[0, 4, 3], [0, 0, 5]], np.int32)}, r"rows\[0\] is \(0, 4, 3\); 0 <= first <= end"),
        ({"rows": np.array([[-1, 0, 3], [0, 0, 5]], np.int32)}, r"rows\[0\] is \(-1, 0, 3\)"),
        ({"rows": GOOD.rows.astype(np.int64)}, r"rows is dtype 'l' \(2, 3\); it must be int32"),
        ({"cells": np.array([0, 1, 2, 3, 5], np.int32)}, r"cells holds 5; the cache has cells 0 to 4"),
        ({"cells": np.array([0, 1, -7, 3, 4], np.int32)}, r"cells holds -7"),
        (
            {"q": np.zeros((2, 3, 32), np.float32)},
            r"q is float32 \(2, 3, 32\); its heads must be a multiple of the cache's 2",
        ),
        (
            {"q": np.zeros((2, 4, 31), np.float32)},
            r"k_cache is float16 \(5, 2, 32\); its shape must be \(any, any, 31\)",
        ),
        ({"v_cache": GOOD.v_cache.astype(np.float32)}, r"v_cache is float32 \(5, 2, 32\); it must be float16"),
        ({"k_cache": GOOD.k_cache.astype(np.float64)}, r"k_cache is dtype 'd' .*; it must be float16 or float32"),
    ],
)
def test_wrong_inputs_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GOOD, **change).run()
