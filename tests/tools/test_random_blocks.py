"""Random tensors: their values as gguf-py reads them."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from runner.ggml_types import BY_NAME, row_bytes
from tools.random_blocks import RANDOM_TYPES, block_chunks, random_tensor

_NOT_IN_GGUF_PY = {"Q1_0", "Q2_0"}


@pytest.mark.parametrize("type_name", sorted(RANDOM_TYPES))
def test_values_have_the_spread_asked_for_and_no_bias(type_name: str) -> None:
    data = random_tensor(type_name, (256, 64), np.random.default_rng(3), 0.05)
    assert data.size == 64 * row_bytes(BY_NAME[type_name], 256)
    if type_name in _NOT_IN_GGUF_PY:
        return
    values = quants.dequantize(data.reshape(64, -1), GGMLQuantizationType[type_name])
    assert np.isfinite(values).all()
    assert 0.04 < values.std() < 0.065
    assert abs(values.mean()) < 0.005


@pytest.mark.parametrize("type_name", ["Q1_0", "Q2_0"])
def test_values_of_types_that_gguf_py_lacks_read_by_hand(type_name: str) -> None:
    data = random_tensor(type_name, (256, 64), np.random.default_rng(3), 0.05)
    blocks = data.reshape(-1, BY_NAME[type_name].type_size)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    if type_name == "Q1_0":
        values = scales * (2.0 * np.unpackbits(blocks[:, 2:], axis=1) - 1)
    else:
        fields = blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
        values = scales * (fields.reshape(len(blocks), -1).astype(np.float32) - 1)
    assert 0.04 < values.std() < 0.065
    assert abs(values.mean()) < 0.005


def test_a_type_of_activations_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="no random Q8_K"):
        random_tensor("Q8_K", (256, 1), np.random.default_rng(0), 1.0)


def test_broken_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of its block"):
        random_tensor("Q4_K", (128, 1), np.random.default_rng(0), 1.0)


def test_chunks_are_the_whole_tensor_and_the_same_each_time() -> None:
    pool = np.random.default_rng(0).integers(0, 256, 40 << 20, np.uint8)
    shape = (2048, 20_000)
    first = [chunk.copy() for chunk in block_chunks("Q4_K", shape, pool, 5, 0.02)]
    assert len(first) > 1
    assert sum(chunk.nbytes for chunk in first) == 20_000 * row_bytes(BY_NAME["Q4_K"], 2048)
    again = block_chunks("Q4_K", shape, pool, 5, 0.02)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
