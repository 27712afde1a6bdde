"""The types in which a cache holds keys and values: what a head and a cell of one layer take.

A cell is one token position's keys, or its values, of all heads, one head after the other; each head is a whole number
of GGML blocks. Quantized keys are rotated by a Walsh-Hadamard transform before they are stored (and queries with them,
so that no score changes): it spreads single large values over the whole head, and the blocks lose less.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from runner.ggml_types import BY_NAME, GGMLType

CACHE_TYPES: Mapping[str, GGMLType] = MappingProxyType(
    {name: BY_NAME[name.upper()] for name in ("f32", "f16", "bf16", "q8_0", "q4_0")}
)
"""Name in requests → the format of its blocks."""

MIN_ROTATED = 64
"""Values of the smallest block that is rotated."""


class CacheTypeError(ValueError):
    """A type of which the model's heads are no whole number of blocks."""


def cache_row_bytes(type_name: str, num_heads: int, length: int) -> int:
    """Bytes of one cell of one layer: ``num_heads`` heads of ``length`` values.

    Raises:
        CacheTypeError: the length is no whole number of the type's blocks; the message names both.
    """
    type_ = CACHE_TYPES[type_name]
    if length % type_.block_size:
        raise CacheTypeError(
            f"a cache of type {type_name} needs heads of a multiple of {type_.block_size} values, found {length}"
        )
    return num_heads * (length // type_.block_size) * type_.type_size


def is_rotated(type_name: str, length: int) -> bool:
    """Whether keys of heads of ``length`` values are rotated before they are stored."""
    return CACHE_TYPES[type_name].block_size > 1 and length % MIN_ROTATED == 0
