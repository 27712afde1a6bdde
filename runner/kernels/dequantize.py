"""Raw GGUF bytes to float32, by definition, in NumPy.

gguf-py knows most types; the two one- and two-bit types that it only sizes are written here. Layouts were checked
against ggml's own output on quantized and random blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from runner.ggml_types import TYPES, GGMLType, row_bytes

Bytes = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

CHUNK_VALUES = 1 << 22


def dequantize(type_id: int, source: Bytes, cols: int) -> Float32Array:
    """Rows of raw bytes as float32, shape (rows, cols).

    Raises:
        ValueError: the type cannot be dequantized.
    """
    type_ = TYPES[type_id]
    rows = np.ascontiguousarray(source).reshape(-1, row_bytes(type_, cols))
    own = _OWN.get(type_.name)
    values = own(rows.reshape(-1, type_.type_size)) if own else _with_gguf_py(type_, rows)
    return values.astype(np.float32, copy=False).reshape(-1, cols)


def to_bfloat16(values: Float32Array) -> Bytes:
    """Float32 rounded to nearest even bfloat16, as bytes. Infinities and NaN stay what they are."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    special = (bits & 0x7F800000) == 0x7F800000
    return np.where(special, bits >> 16, rounded).astype(np.uint16).view(np.uint8).reshape(-1)


def convert_to_bfloat16(type_id: int, source: Bytes, cols: int) -> Bytes:
    """Raw rows of any type as bfloat16 bytes, a few MiB at a time, so that no float32 copy of a whole matrix exists."""
    row_size = row_bytes(TYPES[type_id], cols)
    rows = np.ascontiguousarray(source).reshape(-1, row_size)
    step = max(1, CHUNK_VALUES // cols)
    converted = np.empty((len(rows), 2 * cols), np.uint8)
    for start in range(0, len(rows), step):
        chunk = dequantize(type_id, rows[start : start + step].reshape(-1), cols)
        converted[start : start + step] = to_bfloat16(chunk).reshape(-1, 2 * cols)
    return converted.reshape(-1)


def _with_gguf_py(type_: GGMLType, rows: Bytes) -> Float32Array:
    import gguf.quants  # not needed for files whose types are all native

    try:
        return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(type_.id))
    except NotImplementedError:
        raise ValueError(f"tensors of type {type_.name} cannot be dequantized") from None


def _q1_0(blocks: Bytes) -> Float32Array:
    """128 values: an f16 scale, then one bit a value, low bits first; set is +scale, clear is −scale."""
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return (np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32) * 2 - 1) * scale


def _q2_0(blocks: Bytes) -> Float32Array:
    """64 values: an f16 scale, then two bits a value, low bits first; code − 1 times the scale."""
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    codes = (blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    return (codes.reshape(len(blocks), -1).astype(np.float32) - 1) * scale


_OWN: MappingProxyType[str, Callable[[Bytes], Float32Array]] = MappingProxyType({"Q1_0": _q1_0, "Q2_0": _q2_0})
