"""Matrix products on packed weights: right against gguf-py, and the same bits in whatever form, batch, instruction set
and number of threads."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.testing import assert_array_equal

from runner.kernels import Matrix, _cpu

FLOAT_TYPES = ("F32", "F16", "BF16")
HALF_FLOATS = {  # where in a block its f16 scales lie
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
}
TYPES = (*HALF_FLOATS, *FLOAT_TYPES)
BATCHES = (1, 2, 3, 5, 8, 13, 33)
ROWS = (1, 16, 37, 96)


def cols_of(name: str) -> int:
    """A size with an incomplete last unit where the type allows one."""
    block = GGML_QUANT_SIZES[GGMLQuantizationType[name]][0]
    return {1: 99, 32: 32 * 11, 256: 256 * 2}[block]


def random_rows(name: str, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Random GGUF rows (rows, bytes): random codes and sub-scales under finite block scales."""
    rng = np.random.default_rng(seed)
    type_ = GGMLQuantizationType[name]
    if name in FLOAT_TYPES:
        return quantize(rng.standard_normal((rows, cols), np.float32), type_).reshape(rows, -1).view(np.uint8)
    columns, size = GGML_QUANT_SIZES[type_]
    blocks = rng.integers(0, 256, (rows * cols // columns, size), dtype=np.uint8)
    for at in HALF_FLOATS[name]:
        scales = rng.uniform(-0.02, 0.02, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    if name == "MXFP4":
        blocks[:, 0] = rng.integers(118, 126, len(blocks))
    return blocks.reshape(rows, -1)


def dequantized(name: str, raw: np.ndarray) -> np.ndarray:
    return np.asarray(dequantize(raw, GGMLQuantizationType[name]), np.float32).reshape(len(raw), -1)


def aligned(size: int, offset: int = 0) -> np.ndarray:
    memory = np.full(size + 128, 0xAA, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    return memory[start : start + size]


def packed(name: str, raw: np.ndarray, cols: int) -> Matrix:
    type_id = int(GGMLQuantizationType[name])
    storage = aligned(_cpu.packed_bytes(type_id, len(raw), cols))
    return _cpu.pack(type_id, len(raw), cols, raw.reshape(-1), storage)


def activations(tokens: int, cols: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((tokens, cols), np.float32)


def quantized_activations(x: np.ndarray) -> np.ndarray:
    """What the kernels multiply: int8 by blocks of 32, times their scale, in double precision."""
    blocks = x.reshape(len(x), -1, 32)
    peak = np.abs(blocks).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    scale: np.ndarray = (peak / np.float32(127)).astype(np.float64)
    rounded: np.ndarray = np.rint(blocks * inverse) * scale
    return rounded.reshape(x.shape)


def product(x: np.ndarray, matrix: Matrix, bias: np.ndarray | None = None, form: str = "auto") -> np.ndarray:
    out = np.full((len(x), matrix.rows), np.nan, np.float32)
    _cpu.linear(x, [matrix], [out], [bias], form=form)
    return out


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", TYPES)
def test_products_match_numpy_on_the_same_quantized_activations(isa: str, name: str, rows: int) -> None:
    cols = cols_of(name)
    raw = random_rows(name, rows, cols)
    weights, matrix = dequantized(name, raw).astype(np.float64), packed(name, raw, cols)
    bias = np.random.default_rng(5).standard_normal(rows, np.float32)
    for tokens in BATCHES:
        x = activations(tokens, cols)
        exact = x.astype(np.float64) if name in FLOAT_TYPES else quantized_activations(x)
        expected, magnitude = exact @ weights.T, np.abs(exact) @ np.abs(weights.T)
        for form in ("direct", "panel"):
            assert np.all(np.abs(product(x, matrix, form=form) - expected) <= 1e-6 * magnitude)
            with_bias = product(x, matrix, bias, form)
            assert np.all(np.abs(with_bias - expected - bias) <= 1e-6 * (magnitude + np.abs(bias)))


@pytest.mark.parametrize("name", TYPES)
def test_a_token_has_the_same_bits_in_every_form_batch_and_thread_count(isa: str, name: str) -> None:
    cols = cols_of(name)
    matrix = packed(name, random_rows(name, 37, cols), cols)
    x = activations(33, cols)
    expected = product(x, matrix, form="panel")
    for num_threads in (1, 2, 3):
        _cpu.set_num_threads(num_threads)
        for tokens in BATCHES:
            for form in ("auto", "direct", "panel"):
                assert_array_equal(product(x[:tokens], matrix, form=form), expected[:tokens])
    assert_array_equal(product(x[20:29], matrix), expected[20:29])


@pytest.mark.parametrize("name", TYPES)
def test_instruction_sets_with_fused_multiply_add_agree_to_the_bit(name: str, fused_isas: list[str]) -> None:
    cols = cols_of(name)
    matrix, x = packed(name, random_rows(name, 37, cols), cols), activations(13, cols)
    results = []
    for isa in fused_isas:
        _cpu.set_isa(isa)
        results.append(product(x, matrix))
    for result in results[1:]:
        assert_array_equal(result, results[0])


@pytest.mark.skipif("amx" not in _cpu.available_isas(), reason="this machine has no AMX")
@pytest.mark.parametrize("name", HALF_FLOATS)
def test_matrix_tiles_give_the_bits_of_the_vector_instructions(name: str) -> None:
    """Batches around the tiles' widths, one panel and two side by side, rows and columns that fill none of them."""
    cols = cols_of(name)
    for rows in (16, 37):
        matrix = packed(name, random_rows(name, rows, cols), cols)
        x = activations(64, cols)
        _cpu.set_isa("avx512vnni")
        expected = product(x, matrix, form="panel")
        _cpu.set_isa("amx")
        for num_threads in (1, 3):
            _cpu.set_num_threads(num_threads)
            for tokens in (1, 2, 3, 5, 8, 13, 16, 17, 33, 64):
                assert_array_equal(product(x[:tokens], matrix, form="panel"), expected[:tokens])


def test_instruction_sets_can_be_chosen_and_an_unknown_one_is_refused_with_those_there_are() -> None:
    available = _cpu.available_isas()
    for name in available:
        _cpu.set_isa(name)
        assert _cpu.active_isa() == name
    with pytest.raises(
        ValueError, match=f"instruction set 'mmx' is not available; this machine has {', '.join(available)}"
    ):
        _cpu.set_isa("mmx")


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "MXFP4", "BF16"])
def test_passes_over_many_columns_do_not_change_a_bit(isa: str, name: str) -> None:
    """4352 columns are two whole passes of the panel form and a part."""
    matrix, x = packed(name, random_rows(name, 40, 4352), 4352), activations(9, 4352)
    assert_array_equal(product(x, matrix, form="panel"), product(x, matrix, form="direct"))


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F16"])
def test_tokens_that_threads_share_out_do_not_change_a_bit(isa: str, name: str) -> None:
    """One panel and 200 tokens: more threads than panels, so that the tokens are cut too."""
    _cpu.set_num_threads(5)
    matrix, x = packed(name, random_rows(name, 16, 256), 256), activations(200, 256)
    together = product(x, matrix)
    assert_array_equal(together, np.concatenate([product(x[i : i + 8], matrix) for i in range(0, 200, 8)]))


def test_several_matrices_of_mixed_types_share_one_call(isa: str) -> None:
    x = activations(6, 256)
    matrices = [packed(name, random_rows(name, 16 + i, 256), 256) for i, name in enumerate(("Q4_K", "F32", "Q8_0"))]
    outs = [np.empty((6, m.rows), np.float32) for m in matrices]
    bias = np.arange(17, dtype=np.float32)
    _cpu.linear(x, matrices, outs, [None, bias, None])
    assert_array_equal(outs[0], product(x, matrices[0]))
    assert_array_equal(outs[1], product(x, matrices[1], bias))
    assert_array_equal(outs[2], product(x, matrices[2]))


def test_a_block_worked_by_hand(isa: str) -> None:
    """Q4_K: d = 1/2, dmin = 1/4, first scale 3, first minimum 2, all codes 5: values 0.5 * 3 * 5 - 0.25 * 2 = 7.

    Other scales and minima are 0, so a row is 32 sevens and 224 zeros. With x = 127 on the first block's first column
    and 1 on its second, the activations' scale is 1 and the product 7 * 128.
    """
    block = np.zeros(144, np.uint8)
    block[0:4] = np.array([0.5, 0.25], np.float16).view(np.uint8)
    block[4], block[8], block[16:48] = 3, 2, 0x05
    x = np.zeros((1, 256), np.float32)
    x[0, :2] = 127, 1
    assert product(x, packed("Q4_K", block[None], 256)).tolist() == [[896.0]]
    out = np.empty((1, 256), np.float32)
    _cpu.embed(12, block, 256, np.zeros(1, np.int32), out, 2.0)
    assert out[0].tolist() == [14.0] * 32 + [0.0] * 224


@pytest.mark.parametrize("name", ["Q8_0", "IQ4_NL", "Q6_K", "Q5_1", "MXFP4"])
def test_extreme_codes_do_not_saturate(isa: str, name: str) -> None:
    """Every code at an end of its range against activations of +127 and -127."""
    rows = []
    for code in (0x00, 0x08, 0x80, 0x7F, 0x77, 0xFF):
        raw = random_rows(name, 1, 256, seed=code)
        keep = random_rows(name, 1, 256, seed=code).reshape(-1, GGML_QUANT_SIZES[GGMLQuantizationType[name]][1])
        blocks = raw.reshape(keep.shape)
        blocks[:] = code
        for at in HALF_FLOATS[name]:
            blocks[:, at : at + 2] = keep[:, at : at + 2]
        if name == "MXFP4":
            blocks[:, 0] = 120
        rows.append(raw[0])
    raw = np.stack(rows)
    x = np.stack([np.full(256, 1, np.float32), np.full(256, -1, np.float32), np.tile([1, -1], 128).astype(np.float32)])
    expected = quantized_activations(x) @ dequantized(name, raw).T.astype(np.float64)
    matrix = packed(name, raw, 256)
    for form in ("direct", "panel"):
        np.testing.assert_allclose(product(x, matrix, form=form), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 3e-37, 1e37])
def test_activations_of_any_size_stay_finite(isa: str, value: float) -> None:
    x = np.zeros((2, 64), np.float32)
    x[0, 3] = value
    result = product(x, packed("Q8_0", random_rows("Q8_0", 16, 64), 64))
    assert np.isfinite(result).all()
    assert not result[1].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_are_not_hidden(isa: str, value: float) -> None:
    x = np.ones((9, 64), np.float32)
    x[4, 40] = value
    matrix = packed("Q4_0", random_rows("Q4_0", 16, 64), 64)
    for form in ("direct", "panel"):
        result = product(x, matrix, form=form)
        assert np.isnan(result[4]).all()
        assert np.isfinite(np.delete(result, 4, axis=0)).all()


@pytest.mark.parametrize("name", TYPES)
def test_embedded_rows_are_what_gguf_py_dequantizes(name: str) -> None:
    cols = cols_of(name)
    raw = random_rows(name, 12, cols)
    ids = np.array([3, 0, 11, 3, 5, 6, 7, 8, 9], np.int32)
    for count in (1, 9):
        out = np.full((count, cols), np.nan, np.float32)
        _cpu.embed(int(GGMLQuantizationType[name]), raw.reshape(-1), cols, ids[:count], out)
        assert_array_equal(out.view(np.uint32), dequantized(name, raw)[ids[:count]].view(np.uint32))
        _cpu.embed(int(GGMLQuantizationType[name]), raw.reshape(-1), cols, ids[:count], out, 1.7)
        assert_array_equal(out, dequantized(name, raw)[ids[:count]] * np.float32(1.7))


def test_embedded_rows_are_what_ggml_dequantizes(shared: Path) -> None:
    """Blocks with ggml's own values; the blocks of random bytes reach the corners of every format."""
    index = json.loads((shared / "oracle/quants/index.json").read_text())["types"]
    seen = set()
    with np.load(shared / "oracle/quants/blocks.npz") as arrays:
        for name, facts in index.items():
            type_name = name.rsplit("_", 1)[0]
            if type_name not in TYPES:
                continue
            raw, expected = arrays[f"{name}_raw"], arrays[f"{name}_f32"]
            out = np.empty_like(expected)
            ids = np.arange(len(raw), dtype=np.int32)
            _cpu.embed(facts["type_id"], raw.reshape(-1), facts["block_size"], ids, out)
            assert_array_equal(out.view(np.uint32), expected.view(np.uint32), err_msg=name)
            seen.add(type_name)
    assert seen == set(TYPES)


def test_a_matrix_takes_about_what_it_takes_in_the_file() -> None:
    for name in TYPES:
        size = random_rows(name, 1, 4096).size * 256
        assert size <= _cpu.packed_bytes(int(GGMLQuantizationType[name]), 256, 4096) <= size * 1.02


def test_a_matrix_knows_its_shape_and_keeps_its_storage() -> None:
    matrix, raw = packed("Q8_0", random_rows("Q8_0", 5, 64), 64), random_rows("Q8_0", 5, 64)
    assert (matrix.type_name, matrix.rows, matrix.cols, matrix.nbytes) == ("Q8_0", 5, 64, 1088)
    gc.collect()
    expected = quantized_activations(activations(1, 64)) @ dequantized("Q8_0", raw).T
    np.testing.assert_allclose(product(activations(1, 64), matrix), expected, rtol=1e-4, atol=1e-5)


def test_packing_reads_only_its_source_and_writes_only_its_storage() -> None:
    raw = random_rows("Q6_K", 3, 256)
    page = np.frombuffer(raw.tobytes(), np.uint8)  # read-only
    size = _cpu.packed_bytes(14, 3, 256)
    memory = aligned(size + 64)
    _cpu.pack(14, 3, 256, page, memory[:size])
    assert (memory[size:] == 0xAA).all()


class TestRefusals:
    """Whatever does not fit is refused with what was found and what is allowed."""

    raw = random_rows("Q4_K", 16, 256).reshape(-1)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((99, 1, 256), r"type 99 cannot be packed; known are Q4_0 \(2\), "),
            ((12, 1, 100), r"100 columns of Q4_K; allowed are positive multiples of 256"),
            ((2, 1, 16), r"16 columns of Q4_0; allowed are positive multiples of 32"),
            ((12, 1, 0), r"0 columns of Q4_K"),
            ((12, 1, -256), r"-256 columns of Q4_K"),
            ((12, 0, 256), r"0 rows; allowed are 1 to"),
            ((12, 1 << 40, 256), r"1099511627776 rows; allowed are 1 to"),
        ],
    )
    def test_sizes(self, arguments: tuple[int, int, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            _cpu.packed_bytes(*arguments)

    def test_sources_and_storage(self) -> None:
        size = _cpu.packed_bytes(12, 16, 256)
        with pytest.raises(ValueError, match=r"source has shape \(2303,\); it must be \(2304,\)"):
            _cpu.pack(12, 16, 256, self.raw[:-1], aligned(size))
        with pytest.raises(ValueError, match=r"storage has shape \(2368,\); it must be \(2304,\)"):
            _cpu.pack(12, 16, 256, self.raw, aligned(size + 64))
        with pytest.raises(ValueError, match=r"storage lies 16 bytes past a multiple of 64"):
            _cpu.pack(12, 16, 256, self.raw, aligned(size, offset=16))
        with pytest.raises(ValueError, match=r"source must be uint8"):
            _cpu.pack(12, 16, 256, self.raw.view(np.int8), aligned(size))
        with pytest.raises(ValueError, match=r"source must be C-contiguous"):
            _cpu.pack(12, 16, 256, np.repeat(self.raw, 2)[::2], aligned(size))

    def test_products(self) -> None:
        matrix = packed("Q4_K", self.raw.reshape(16, -1), 256)
        x, out = np.zeros((2, 256), np.float32), np.zeros((2, 16), np.float32)
        with pytest.raises(ValueError, match=r"x has 512 columns; matrices\[0\] has 256"):
            _cpu.linear(np.zeros((1, 512), np.float32), [matrix], [out])
        with pytest.raises(ValueError, match=r"outs\[0\] has shape \(2, 16\); it must be \(1, 16\)"):
            _cpu.linear(x[:1], [matrix], [out])
        with pytest.raises(ValueError, match=r"x must be float32"):
            _cpu.linear(x.astype(np.float64), [matrix], [out])
        with pytest.raises(ValueError, match=r"x has 1 dimensions; it must have 2"):
            _cpu.linear(x[0], [matrix], [out])
        with pytest.raises(ValueError, match=r"outs\[0\] must be C-contiguous"):
            _cpu.linear(x, [matrix], [np.zeros((16, 2), np.float32).T])
        with pytest.raises(ValueError, match=r"2 outs for 1 matrices"):
            _cpu.linear(x, [matrix], [out, out])
        with pytest.raises(ValueError, match=r"0 biases for 1 matrices"):
            _cpu.linear(x, [matrix], [out], [])
        with pytest.raises(ValueError, match=r"biases\[0\] has shape \(2,\); it must be \(16,\)"):
            _cpu.linear(x, [matrix], [out], [np.zeros(2, np.float32)])
        with pytest.raises(ValueError, match=r"form 'fast' is not known; known are auto, direct, panel"):
            _cpu.linear(x, [matrix], [out], form="fast")

    def test_embeddings(self) -> None:
        out = np.zeros((1, 256), np.float32)
        for bad in (-1, 16):
            with pytest.raises(ValueError, match=rf"ids\[0\] is {bad}; allowed are 0 to 15"):
                _cpu.embed(12, self.raw, 256, np.array([bad], np.int32), out)
        with pytest.raises(ValueError, match=r"ids must be int32"):
            _cpu.embed(12, self.raw, 256, np.array([0], np.int64), out)
        with pytest.raises(ValueError, match=r"source has 2303 bytes; it must be whole rows of 144"):
            _cpu.embed(12, self.raw[:-1], 256, np.array([0], np.int32), out)
        with pytest.raises(ValueError, match=r"out has shape \(1, 256\); it must be \(2, 256\)"):
            _cpu.embed(12, self.raw, 256, np.array([0, 1], np.int32), out)
