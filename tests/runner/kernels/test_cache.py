"""Cells of every type: what is stored against NumPy, byte for byte, rotation, and the shift of keys."""

from __future__ import annotations

import gguf.quants
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from runner.cache_types import CACHE_TYPES, cache_row_bytes
from runner.kernels import CacheTensor, _cpu
from runner.kernels.dequantize import dequantize
from tests.runner.kernels.caches import REFERENCE, empty_like, filled, twin

RNG = np.random.default_rng(0)
QUANTIZED = ("q8_0", "q4_0")


def new_cache(type_name: str, num_cells: int, num_heads: int, length: int, fill: int = 9) -> CacheTensor:
    storage = np.full(num_cells * cache_row_bytes(type_name, num_heads, length), fill, np.uint8)
    return _cpu.cache(type_name, num_heads, length, storage)


def store_one(type_name: str, values: np.ndarray) -> np.ndarray:
    """The bytes of one cell that holds ``values`` as one head."""
    k = values.astype(np.float32).reshape(1, 1, -1)
    keys = new_cache(type_name, 1, 1, k.size)
    _cpu.store_kv(k, k, keys, empty_like(keys), np.zeros(1, np.int32))
    return keys.rows[0]


@pytest.mark.parametrize("key_type", CACHE_TYPES)
@pytest.mark.parametrize("tokens", [1, 3, 300])
def test_store_kv_writes_its_cells_and_no_other(isa: str, key_type: str, tokens: int) -> None:
    value_type = "f16" if key_type == "f32" else "f32"
    length = 64 if key_type in QUANTIZED else 20
    k = RNG.standard_normal((tokens, 2, length)).astype(np.float32)
    v = RNG.standard_normal((tokens, 2, 7)).astype(np.float32)
    keys, values = new_cache(key_type, tokens + 5, 2, length), new_cache(value_type, tokens + 5, 2, 7)
    cells = RNG.permutation(tokens + 5)[:tokens].astype(np.int32)
    _cpu.store_kv(k, v, keys, values, cells)
    for cache, stored in ((keys, k), (values, v)):
        expected = empty_like(cache)
        twin(expected).store(cells, stored)
        assert_array_equal(cache.rows[cells], expected.rows[cells])
        assert (np.delete(cache.rows, cells, axis=0) == 9).all()


@pytest.mark.parametrize("type_name", CACHE_TYPES)
@settings(deadline=None, max_examples=60)
@given(values=arrays(np.float32, 64, elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_every_value_is_stored_as_numpy_stores_it(type_name: str, values: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        expected = empty_like(new_cache(type_name, 1, 1, 64))
        twin(expected).store(np.zeros(1, np.int32), values.reshape(1, 1, -1))
    for isa in _cpu.available_isas():
        _cpu.set_isa(isa)
        assert_array_equal(store_one(type_name, values), expected.rows[0], err_msg=isa)


@pytest.mark.parametrize(("type_name", "type_"), [("q8_0", "Q8_0"), ("q4_0", "Q4_0")])
def test_blocks_are_those_of_model_files(isa: str, type_name: str, type_: str) -> None:
    """Against gguf-py, whose q8_0 rounds halves away from zero; random values have none."""
    values = RNG.standard_normal((50, 256)).astype(np.float32)
    expected = gguf.quants.quantize(values, GGMLQuantizationType[type_])
    assert_array_equal(np.stack([store_one(type_name, row) for row in values]), expected)


def test_a_block_of_q8_0_worked_by_hand(isa: str) -> None:
    """The greatest magnitude, 254, gives the scale 2; ties go to even codes."""
    block = store_one("q8_0", np.float32([-254, 3, 5, 4, -1, *[0] * 27]))
    assert block[:2].view(np.float16)[0] == 2
    assert block[2:].view(np.int8)[:6].tolist() == [-127, 2, 2, 2, 0, 0]


def test_a_block_of_q4_0_worked_by_hand(isa: str) -> None:
    """The first of the greatest magnitudes, 16, gives the scale -2: 16 is code 0, -16 would be 16 and becomes 15; codes
    of zeros are 8. Values 0 ... 15 lie in the low halves."""
    block = store_one("q4_0", np.float32([16, -16, 2, *[0] * 13, -6, *[0] * 15]))
    assert block[:2].view(np.float16)[0] == -2
    assert block[2:6].tolist() == [0x0 | 0xB0, 0xF | 0x80, 0x7 | 0x80, 0x88]


@pytest.mark.parametrize("type_name", QUANTIZED)
@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-39, np.nan, np.inf])
def test_blocks_without_a_usable_scale_are_stored_as_something(isa: str, type_name: str, value: float) -> None:
    """Zeros and what is too small become zeros; what is not a number stays so, at least somewhere in its block."""
    stored = store_one(type_name, np.full(32, value, np.float32))
    read = dequantize(CACHE_TYPES[type_name].id, stored, 32)
    assert np.isfinite(read).all() == np.isfinite(value)
    if np.isfinite(value):
        assert_array_equal(read, 0)


def test_every_half_is_reached(isa: str) -> None:
    """Halves, the points between neighbours and their float neighbours round as NumPy rounds them: ties to even."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        middles = ((halves[:-1].astype(np.float64) + halves[1:].astype(np.float64)) / 2).astype(np.float32)[:-1]
        values = np.concatenate([halves, middles, np.nextafter(middles, 0), np.nextafter(middles, 1e9), -halves])
        values = np.append(values, np.float32([65519.996, 65520, 1e30, 5e-8, 1e-40, np.inf, -np.inf]))
        expected = values.astype(np.float16)
    assert_array_equal(store_one("f16", values).view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16"])
def test_not_a_number_stays_not_a_number_in_the_cache(isa: str, type_name: str) -> None:
    quiet_and_signalling = np.array([0x7FC00000, 0x7F800001, 0xFF800001] * 6, np.uint32).view(np.float32)
    stored = store_one(type_name, quiet_and_signalling)
    assert np.isnan(dequantize(CACHE_TYPES[type_name].id, stored, 18)).all()


@pytest.mark.parametrize("cell", [-1, 4])
def test_a_cell_outside_of_the_cache_is_refused(cell: int) -> None:
    k, keys = np.zeros((2, 1, 4), np.float32), new_cache("f16", 4, 1, 4)
    cells = np.array([0, cell], np.int32)
    with pytest.raises(ValueError, match=rf"cells holds {cell}; the cache has cells 0 to 3"):
        _cpu.store_kv(k, k, keys, keys, cells)
    with pytest.raises(ValueError, match=rf"cells holds {cell}; the cache has cells 0 to 3"):
        _cpu.shift_keys(keys, cells, np.zeros(4, np.float32), True, False)


def test_keys_of_another_shape_than_the_cells_are_refused() -> None:
    keys, cells = new_cache("f16", 4, 1, 4), np.zeros(1, np.int32)
    right, wrong = np.zeros((1, 1, 4), np.float32), np.zeros((1, 2, 2), np.float32)
    with pytest.raises(ValueError, match=r"k is float32 \(1, 2, 2\); keys have cells of 1 heads of 4 values"):
        _cpu.store_kv(wrong, right, keys, keys, cells)
    with pytest.raises(ValueError, match=r"v is float32 \(1, 2, 2\); values have cells of 1 heads of 4 values"):
        _cpu.store_kv(right, wrong, keys, keys, cells)


# ---- the storage


def test_a_cache_has_as_many_cells_as_its_storage_holds() -> None:
    storage = np.zeros(1000, np.uint8)
    cache = _cpu.cache("q8_0", 2, 64, storage)
    assert (cache.type_name, cache.num_cells, cache.num_heads, cache.length) == ("q8_0", 7, 2, 64)
    assert (cache.nbytes, cache.rows.shape) == (7 * 136, (7, 136))
    cache.rows[6, 135] = 5
    assert storage[7 * 136 - 1] == 5


def test_rows_keep_the_storage_alive() -> None:
    rows = _cpu.cache("f32", 1, 4, np.arange(64, dtype=np.uint8)).rows
    assert_array_equal(rows.reshape(-1), np.arange(64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("q5_1", 1, 32, np.zeros(64, np.uint8)), "cache type 'q5_1' is unknown; there are f32, f16, bf16, q8_0, q4_0"),
        (("q8_0", 1, 80, np.zeros(64, np.uint8)), "type q8_0 needs heads of a multiple of 32 values, found 80"),
        (("f16", 0, 32, np.zeros(64, np.uint8)), "0 heads of 32 values; 1 to 1048576"),
        (("f16", 1 << 40, 1 << 40, np.zeros(64, np.uint8)), "1 to 1048576 of each are allowed"),
        (("f16", 1, -4, np.zeros(64, np.uint8)), "1 heads of -4 values"),
        (("f16", 1, 4, np.zeros(64, np.int32)), "storage is int32 .*; it must be uint8"),
        (("f16", 1, 4, np.zeros((8, 8), np.uint8)), r"storage is uint8 \(8, 8\); its shape must be \(any,\)"),
        (("f16", 1, 4, np.zeros(64, np.uint8)[1:]), "storage lies 1 bytes past a multiple of 2; cells of type f16"),
        (("f32", 1, 4, np.zeros(64, np.uint8)[2:]), "storage lies 2 bytes past a multiple of 4"),
        (("f16", 1, 4, np.zeros(64, np.uint8)[::2]), "storage must be a C-contiguous, writable array"),
        (("f16", 1, 4, np.frombuffer(bytes(64), np.uint8)), "storage must be a C-contiguous, writable array"),
    ],
)
def test_storage_that_cannot_be_is_refused(arguments: tuple[str, int, int, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _cpu.cache(*arguments)


# ---- rotation


@pytest.mark.parametrize("length", [64, 128, 192, 256])
def test_the_rotation_matches_numpy_and_undoes_itself(isa: str, length: int) -> None:
    x = RNG.standard_normal((3, 4, length)).astype(np.float32)
    expected, rotated = x.copy(), x.copy()
    REFERENCE.hadamard(expected)
    _cpu.hadamard(rotated)
    assert_allclose(rotated, expected, atol=2e-6)
    assert np.abs(rotated - x).max() > 0.5
    _cpu.hadamard(rotated)
    assert_allclose(rotated, x, atol=2e-6)


def test_one_value_is_spread_over_its_block(isa: str) -> None:
    """The rotation of a unit vector is a row of the Hadamard matrix over its root, +-1/8 here; other blocks stay 0."""
    x = np.zeros((1, 1, 192), np.float32)
    x[0, 0, 64 + 5] = 1
    _cpu.hadamard(x)
    assert_array_equal(np.abs(x[0, 0].reshape(3, 64)), [[0.0] * 64, [0.125] * 64, [0.0] * 64])
    assert x[0, 0, 64:68].tolist() == [0.125, -0.125, 0.125, -0.125]


def test_scores_of_rotated_queries_and_keys_are_those_of_the_unrotated(isa: str) -> None:
    queries, keys = RNG.standard_normal((2, 5, 3, 192)).astype(np.float32)
    expected = np.einsum("thd,thd->th", queries, keys)
    _cpu.hadamard(queries)
    _cpu.hadamard(keys)
    assert_allclose(np.einsum("thd,thd->th", queries, keys), expected, atol=2e-5)


def test_tokens_are_rotated_to_the_same_bits_alone_and_among_others(fused_isas: list[str]) -> None:
    x = RNG.standard_normal((200, 8, 128)).astype(np.float32)
    results = []
    for isa in fused_isas:
        _cpu.set_isa(isa)
        together, alone = x.copy(), x[7:8].copy()
        _cpu.hadamard(together)
        _cpu.hadamard(alone)
        assert_array_equal(alone[0], together[7])
        results.append(together)
    for result in results[1:]:
        assert_array_equal(result, results[0])


@pytest.mark.parametrize("length", [32, 80, 96])
def test_heads_that_cannot_be_rotated_are_refused(length: int) -> None:
    message = f"heads of {length} values cannot be rotated; a multiple of 64 is needed"
    for kernels in (_cpu, REFERENCE):
        with pytest.raises(ValueError, match=message):
            kernels.hadamard(np.zeros((1, 1, length), np.float32))


# ---- the shift of keys


def turn(angles: np.ndarray) -> np.ndarray:
    return np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("type_name", CACHE_TYPES)
def test_shift_keys_matches_numpy_and_leaves_other_cells(isa: str, type_name: str, neox: bool, rotated: bool) -> None:
    keys = filled(type_name, RNG.standard_normal((300, 2, 64)))
    before, expected = keys.rows.copy(), filled(type_name, np.zeros((300, 2, 64)))
    expected.rows[:] = keys.rows
    cells, table = RNG.permutation(300)[:140].astype(np.int32), turn(RNG.uniform(-3, 3, 24))
    REFERENCE.shift_keys(twin(expected), cells, table, neox, rotated)
    _cpu.shift_keys(keys, cells, table, neox, rotated)
    step = {"f32": 1e-5, "f16": 4e-3, "bf16": 3e-2, "q8_0": 5e-2, "q4_0": 1.0}[type_name]  # one code of a value of 4
    mine, theirs = twin(keys).load(cells), twin(expected).load(cells)
    assert_allclose(mine, theirs, atol=step)
    assert np.abs(mine - theirs).mean() < 1e-3 * step or type_name == "f32"
    assert_array_equal(np.delete(keys.rows, cells, axis=0), np.delete(before, cells, axis=0))


@pytest.mark.parametrize("type_name", CACHE_TYPES)
def test_a_shift_there_and_back_stays_close(type_name: str) -> None:
    """Behind the rotation, as attention stores quantized keys."""
    original = RNG.standard_normal((20, 2, 128)).astype(np.float32)
    keys = filled(type_name, original)
    before = twin(keys).load(np.arange(20))
    angles = RNG.uniform(-3, 3, 64)
    cells = np.arange(20, dtype=np.int32)
    _cpu.shift_keys(keys, cells, turn(angles), True, type_name in QUANTIZED)
    assert np.abs(twin(keys).load(cells) - before).mean() > 0.5
    _cpu.shift_keys(keys, cells, turn(-angles), True, type_name in QUANTIZED)
    bound = {"f32": 1e-6, "f16": 1e-3, "bf16": 5e-3, "q8_0": 1.5e-2, "q4_0": 0.25}[type_name]
    assert np.sqrt(np.mean((twin(keys).load(cells) - before) ** 2)) < bound


def test_shifted_cells_have_the_same_bits_alone_and_on_every_instruction_set(fused_isas: list[str]) -> None:
    values, cells, table = (
        RNG.standard_normal((200, 8, 64)),
        np.arange(200, dtype=np.int32),
        turn(RNG.uniform(-3, 3, 32)),
    )
    results = []
    for isa in fused_isas:
        _cpu.set_isa(isa)
        together, alone = filled("q8_0", values), filled("q8_0", values)
        _cpu.shift_keys(together, cells, table, False, True)
        _cpu.shift_keys(alone, cells[7:8], table, False, True)
        assert_array_equal(alone.rows[7], together.rows[7])
        results.append(together.rows)
    for result in results[1:]:
        assert_array_equal(result, results[0])


@pytest.mark.parametrize(
    ("cells", "table", "rotated", "message"),
    [
        ([1, 1], 4, False, "cells holds 1 twice"),
        ([1], 5, False, r"table is float32 \(5,\); its length must be even and at most the head's 32"),
        ([1], 34, False, "its length must be even and at most the head's 32"),
        ([1], 4, True, "heads of 32 values cannot be rotated"),
    ],
)
def test_shifts_that_cannot_be_are_refused(cells: list[int], table: int, rotated: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _cpu.shift_keys(
            new_cache("f16", 4, 1, 32), np.array(cells, np.int32), np.zeros(table, np.float32), True, rotated
        )
