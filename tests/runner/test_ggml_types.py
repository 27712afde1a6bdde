"""The type table against gguf-py's, and the size of a row."""

from __future__ import annotations

import gguf
import pytest

from runner.ggml_types import BY_NAME, REMOVED, TYPES, row_bytes

# gguf-py counts the scales of Q8_1 as floats; ggml stores them as halves. The type never stands in a file.
_DIFFERENT = {"Q8_1": (32, 36)}
_NEWER = {"Q2_0"}


def test_every_type_of_gguf_py_is_there_with_its_sizes() -> None:
    for theirs, sizes in gguf.GGML_QUANT_SIZES.items():
        ours = TYPES[int(theirs)]
        assert ours.name == theirs.name
        assert (ours.block_size, ours.type_size) == _DIFFERENT.get(theirs.name, sizes)


def test_no_type_is_there_that_gguf_py_does_not_know() -> None:
    assert {t.name for t in TYPES.values()} - {t.name for t in gguf.GGML_QUANT_SIZES} <= _NEWER


def test_names_and_numbers_are_unique_and_removed_numbers_are_gone() -> None:
    assert len(BY_NAME) == len(TYPES)
    assert all(TYPES[t.id] is t and BY_NAME[t.name] is t for t in TYPES.values())
    assert not REMOVED.keys() & TYPES.keys()


@pytest.mark.parametrize(
    ("name", "num_columns", "expected"),
    [("F32", 3, 12), ("F16", 3, 6), ("Q4_0", 64, 36), ("Q8_0", 64, 68), ("Q6_K", 512, 420), ("MXFP4", 32, 17)],
)
def test_a_row_takes_its_whole_blocks(name: str, num_columns: int, expected: int) -> None:
    assert row_bytes(BY_NAME[name], num_columns) == expected


def test_a_row_of_broken_blocks_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"100 columns of Q4_K .* 256"):
        row_bytes(BY_NAME["Q4_K"], 100)


def test_bits_per_value() -> None:
    assert BY_NAME["Q4_K"].bits_per_value == 4.5
