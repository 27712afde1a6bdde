"""The cache of the reference kernels: block formats and rotation of ``runner.cache_types`` by definition, in NumPy.

Bytes are the same as the fast kernels'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from runner.cache_types import CACHE_TYPES, cache_row_bytes
from runner.kernels.dequantize import dequantize, to_bfloat16

Bytes = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]


class ReferenceCache:
    """Cells in ``storage``, (num_cells, bytes of a cell); see ``runner.kernels.CacheTensor``."""

    def __init__(self, type_name: str, num_heads: int, length: int, storage: Bytes) -> None:
        if type_name not in CACHE_TYPES:
            raise ValueError(f"cache type {type_name!r} is unknown; there are {', '.join(CACHE_TYPES)}")
        cell_bytes = cache_row_bytes(type_name, num_heads, length)
        self.type_name = type_name
        self.num_heads = num_heads
        self.length = length
        self.num_cells = storage.nbytes // cell_bytes
        self.nbytes = self.num_cells * cell_bytes
        self.rows = storage[: self.nbytes].reshape(self.num_cells, cell_bytes)

    def load(self, cells: Int32Array) -> Float32Array:
        """What the cells hold, (cells, heads, length)."""
        values = dequantize(CACHE_TYPES[self.type_name].id, self.rows[cells].reshape(-1), self.num_heads * self.length)
        return values.reshape(-1, self.num_heads, self.length)

    def store(self, cells: Int32Array, values: Float32Array) -> None:
        """Rounds values (cells, heads, length) to the cache's type."""
        self.rows[cells] = _ENCODERS[self.type_name](values.astype(np.float32)).reshape(len(cells), -1)


def hadamard(x: Float32Array) -> None:
    """Every block of the largest power of two that divides the last dimension, in place: butterflies of growing stride.

    Raises:
        ValueError: the dimension is no multiple of 64.
    """
    size = x.shape[-1] & -x.shape[-1]
    if size < 64:
        raise ValueError(f"heads of {x.shape[-1]} values cannot be rotated; a multiple of 64 is needed")
    stride = 1
    while stride < size:
        pairs = x.reshape(-1, 2, stride)  # a view: x is contiguous
        pairs[:, 0], pairs[:, 1] = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
        stride *= 2
    x *= np.float32(1 / np.sqrt(size))


def _to_q8_0(values: Float32Array) -> Bytes:
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.rint(blocks * _inverse(scale)).astype(np.int8)
    return np.hstack([scale.astype(np.float16).view(np.uint8), codes.view(np.uint8)])


def _to_q4_0(values: Float32Array) -> Bytes:
    """Codes of values 0 … 15 are the low halves of the bytes, those of 16 … 31 the high ones."""
    blocks = values.reshape(-1, 32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = extreme / np.float32(-8)
    codes = np.minimum(blocks * _inverse(scale) + np.float32(8.5), np.float32(15)).astype(np.uint8)
    return np.hstack([scale.astype(np.float16).view(np.uint8), codes[:, :16] | codes[:, 16:] << 4])


def _inverse(scale: Float32Array) -> Float32Array:
    """0 where the scale is 0, or so small that its inverse is not finite."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


_ENCODERS: Mapping[str, Callable[[Float32Array], Bytes]] = MappingProxyType(
    {
        "f32": lambda values: values.reshape(-1).view(np.uint8),
        "f16": lambda values: values.astype(np.float16).reshape(-1).view(np.uint8),
        "bf16": to_bfloat16,
        "q8_0": _to_q8_0,
        "q4_0": _to_q4_0,
    }
)
