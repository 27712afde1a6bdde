"""What a cell of every cache type takes, and which heads are rotated."""

from __future__ import annotations

from typing import get_args

import pytest

from runner.cache_types import CACHE_TYPES, cache_row_bytes, is_rotated
from runner.protocol import CacheType


def test_the_types_are_those_of_the_wire() -> None:
    assert set(CACHE_TYPES) == set(get_args(CacheType))


@pytest.mark.parametrize(
    ("type_name", "nbytes"), [("f32", 2048), ("f16", 1024), ("bf16", 1024), ("q8_0", 544), ("q4_0", 288)]
)
def test_a_cell_of_8_heads_of_64_values_by_hand(type_name: str, nbytes: int) -> None:
    """Blocks of 32 values take 34 bytes as q8_0 and 18 as q4_0; there are 16 of them."""
    assert cache_row_bytes(type_name, 8, 64) == nbytes


@pytest.mark.parametrize("length", [80, 16, 33])
def test_heads_that_are_no_whole_blocks_are_refused_with_both_numbers(length: int) -> None:
    with pytest.raises(ValueError, match=f"type q8_0 needs heads of a multiple of 32 values, found {length}"):
        cache_row_bytes("q8_0", 8, length)
    assert cache_row_bytes("f16", 8, length) == 16 * length


@pytest.mark.parametrize(
    ("type_name", "length", "expected"),
    [
        ("q8_0", 64, True),
        ("q4_0", 128, True),
        ("q4_0", 192, True),
        ("q8_0", 96, False),  # whole blocks, but no power of two of at least 64 divides it
        ("q8_0", 32, False),
        ("f16", 64, False),
        ("bf16", 128, False),
        ("f32", 128, False),
    ],
)
def test_quantized_keys_of_whole_64s_are_rotated(type_name: str, length: int, expected: bool) -> None:
    assert is_rotated(type_name, length) is expected
