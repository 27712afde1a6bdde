"""Attention against NumPy, and the same bits for a row in any company, on any threads, in any cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from runner.cache_types import CACHE_TYPES
from runner.kernels import CacheTensor, _cpu
from tests.runner.kernels.caches import REFERENCE, empty_like, filled, twin

BOTH_FLOAT = [("f16", "f16"), ("f32", "f32")]
PAIRS = list(product(CACHE_TYPES, CACHE_TYPES))


@dataclass(frozen=True)
class Problem:
    """The inputs of one call: sequences lie one after the other in ``cells``, each row belongs to one of them."""

    q: np.ndarray  # (T, H, D)
    keys: CacheTensor  # (KH, D)
    values: CacheTensor  # (KH, DV)
    cells: np.ndarray
    rows: np.ndarray  # (T, 3)
    softcap: float = 0.0

    def run(self) -> np.ndarray:
        return self._run(_cpu.attention, self.keys, self.values)

    def expected(self) -> np.ndarray:
        return self._run(REFERENCE.attention, twin(self.keys), twin(self.values))

    def _run(self, attention: Callable[..., None], keys: CacheTensor, values: CacheTensor) -> np.ndarray:
        out = np.full((len(self.q), self.q.shape[1], values.length), np.nan, np.float32)
        attention(self.q, keys, values, self.cells, self.rows, self.q.shape[2] ** -0.5, self.softcap, out)
        return out

    def take(self, rows: np.ndarray) -> Problem:
        return replace(self, q=self.q[rows], rows=self.rows[rows])

    def move_cells(self, rng: np.random.Generator) -> Problem:
        """The same keys and values in other cells."""
        new_cell = rng.permutation(self.keys.num_cells).astype(np.int32)
        keys, values = empty_like(self.keys), empty_like(self.values)
        keys.rows[new_cell], values.rows[new_cell] = self.keys.rows, self.values.rows
        return replace(self, keys=keys, values=values, cells=new_cell[self.cells])


def problem(
    rows: list[tuple[int, int, int]],
    shape: tuple[int, int, int, int] = (4, 2, 32, 32),
    types: tuple[str, str] = ("f16", "f16"),
    softcap: float = 0.0,
    seed: int = 0,
) -> Problem:
    """Normal random values; every cell of the cache is used once. shape: heads, key-value heads, D, DV."""
    rng = np.random.default_rng(seed)
    heads, kv_heads, key_length, value_length = shape
    num_cells = max(offset + end for offset, _, end in rows)
    return Problem(
        q=rng.standard_normal((len(rows), heads, key_length)).astype(np.float32),
        keys=filled(types[0], rng.standard_normal((num_cells, kv_heads, key_length))),
        values=filled(types[1], rng.standard_normal((num_cells, kv_heads, value_length))),
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


@pytest.mark.parametrize("types", BOTH_FLOAT, ids="-".join)
@pytest.mark.parametrize("shape", SHAPES)
def test_causal_attention_matches_numpy(isa: str, shape: tuple[int, int, int, int], types: tuple[str, str]) -> None:
    given_ = problem(causal(20, past=60), shape, types)
    assert_allclose(given_.run(), given_.expected(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("types", PAIRS, ids="-".join)
@pytest.mark.parametrize("lengths", [(64, 64), (96, 128), (256, 32)], ids=str)
def test_every_pair_of_types_matches_numpy(isa: str, lengths: tuple[int, int], types: tuple[str, str]) -> None:
    given_ = problem([*causal(5, past=66, window=60), (71, 0, 9)], (6, 2, *lengths), types)
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
    keys = filled("f32", np.array([[[np.log(3)]], [[0]]]))
    values = filled("f32", np.array([[[5]], [[1]]]))
    out = np.empty((1, 1, 1), np.float32)
    rows, cells = np.array([[0, 0, 2]], np.int32), np.array([1, 0], np.int32)
    _cpu.attention(np.ones((1, 1, 1), np.float32), keys, values, cells, rows, 1.0, 0.0, out)
    assert out[0, 0, 0] == pytest.approx(4.0, rel=1e-6)


def test_far_scores_do_not_overflow(isa: str) -> None:
    """Scores in the thousands, the greatest first or last."""
    for order in (1, -1):
        given_ = problem([(0, 0, 200)], (1, 1, 16, 16), ("f32", "f32"))
        keys = filled("f32", np.linspace(0, 1000, 200)[::order, None, None].repeat(16, 2))
        given_ = replace(given_, keys=keys, q=np.ones((1, 1, 16), np.float32))
        assert_allclose(given_.run(), given_.expected(), rtol=1e-4, atol=1e-6)


def test_a_row_that_sees_nothing_is_zero(isa: str) -> None:
    given_ = problem([(0, 0, 70), (0, 5, 5), (0, 0, 3), (0, 64, 64)])
    out = given_.run()
    assert_array_equal(out[[1, 3]], 0)
    assert_allclose(out[[0, 2]], given_.take(np.array([0, 2])).expected(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("type_name", CACHE_TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_a_row_does_not_see_cannot_reach_it(isa: str, bad: float, type_name: str) -> None:
    """Positions from 40 on are not numbers; rows that end before are as if they were alone, with others beside them."""
    given_ = problem(causal(80), types=(type_name, type_name))
    expected = given_.take(np.arange(40)).run()
    hidden = np.full((40, 2, 32), bad, np.float32)
    _cpu.store_kv(hidden, hidden, given_.keys, given_.values, given_.cells[40:])
    assert_array_equal(given_.run()[:40], expected)


@pytest.mark.parametrize("type_name", CACHE_TYPES)
def test_what_a_lone_row_does_not_see_cannot_reach_it(isa: str, type_name: str) -> None:
    """The same where only one row looks: positions before and after its window are not numbers."""
    given_ = problem([(0, 30, 41)], types=(type_name, type_name))
    expected = given_.run()
    hidden = np.full((30, 2, 32), np.nan, np.float32)
    _cpu.store_kv(hidden, hidden, given_.keys, given_.values, given_.cells[:30])
    assert_array_equal(given_.run(), expected)


@pytest.mark.parametrize("type_name", CACHE_TYPES)
@pytest.mark.parametrize("heads", [(4, 2), (8, 1), (3, 3)], ids=str)
def test_few_query_vectors_read_the_cells_and_many_a_copy_of_them_with_the_same_bits(
    isa: str, type_name: str, heads: tuple[int, int]
) -> None:
    given_ = problem(causal(40, past=90, window=77), (*heads, 64, 96), (type_name, type_name))
    expected = given_.run()
    for row in (0, 7, 38):
        assert_array_equal(given_.take(np.array([row])).run()[0], expected[row])


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    rows: list[tuple[int, int, int]] = []
    for _ in range(draw(st.integers(1, 4))):
        offset = max((o + e for o, _, e in rows), default=0)
        past = draw(st.sampled_from([0, 1, 50, 63, 64, 130, 1000, 1030]))
        window = draw(st.sampled_from([1 << 30, 1, 40, 100]))
        rows += causal(draw(st.sampled_from([1, 2, 7, 40])), past, offset, window)
    heads = draw(st.sampled_from([(1, 1), (4, 2), (7, 1), (6, 6)]))
    types = draw(st.tuples(st.sampled_from(list(CACHE_TYPES)), st.sampled_from(list(CACHE_TYPES))))
    lengths = draw(st.sampled_from([(16, 16), (8, 24), (20, 33)] if {"f16", "f32", "bf16"} >= {*types} else [(64, 32)]))
    return problem(rows, heads + lengths, types, draw(st.sampled_from([0.0, 3.0])), draw(st.integers(0, 9)))


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
@pytest.mark.parametrize("types", BOTH_FLOAT, ids="-".join)
def test_instruction_sets_agree_in_every_bit(
    fused_isas: list[str], shape: tuple[int, int, int, int], types: tuple[str, str]
) -> None:
    agree(fused_isas, problem(causal(9, past=1100), shape, types, softcap=4.0))


@pytest.mark.parametrize("type_name", CACHE_TYPES)
def test_instruction_sets_agree_on_every_type(fused_isas: list[str], type_name: str) -> None:
    agree(fused_isas, problem(causal(9, past=1100), (6, 2, 96, 64), (type_name, type_name)))


def agree(fused_isas: list[str], given_: Problem) -> None:
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
            r"q is float32 \(2, 3, 32\); keys have cells of 2 heads of 32 values: heads must be a multiple",
        ),
        (
            {"q": np.zeros((2, 4, 31), np.float32)},
            r"q is float32 \(2, 4, 31\); keys have cells of 2 heads of 32 values: .* values the same",
        ),
        (
            {"values": filled("f16", np.zeros((5, 1, 32)))},
            r"keys have cells of 2 heads of 32 values, but values have cells of 1 heads of 32 values",
        ),
        ({"values": filled("f16", np.zeros((4, 2, 32)))}, r"cells holds 4; the cache has cells 0 to 3"),
    ],
)
def test_wrong_inputs_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GOOD, **change).run()  # type: ignore[arg-type]


def test_an_array_in_the_place_of_a_cache_is_refused() -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        replace(GOOD, keys=np.zeros((5, 2, 32), np.float32)).run()  # type: ignore[arg-type]
