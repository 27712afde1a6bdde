"""Parses one GGUF file's header: metadata and tensor list, each entry checked against the file it stands in.

Format: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runner.ggml_types import REMOVED, TYPES, GGMLType, row_bytes
from runner.gguf_cursor import Cursor
from runner.gguf_strings import read_strings

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MIN_ALIGNMENT, MAX_ALIGNMENT = 8, 1 << 21  # up to a huge page
MAX_KEY_BYTES = (1 << 16) - 1
MAX_NAME_BYTES = 64
MAX_DIMENSIONS = 4
MAX_STRING_BYTES = 16 << 20  # of one metadata text; the longest in use, chat templates, have some 20 KiB

_MIN_ENTRY_BYTES = 8 + 4 + 1  # empty key, type, one byte
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # empty name, one dimension
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    number: struct.Struct("<" + code)
    for number, code in {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}.items()
}
_DTYPES: Mapping[int, np.dtype[Any]] = {
    _BOOL: np.dtype("?"),
    **{number: np.dtype(scalar.format) for number, scalar in _SCALARS.items()},
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies. ``shape`` is in GGUF order: columns (contiguous), rows, experts."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    shard: int  # index of the file of a split set
    offset: int  # in that file, in bytes
    nbytes: int


@dataclass(frozen=True, slots=True)
class Split:
    """One file's place in a set. A model in one file is number 0 of 1."""

    number: int
    count: int
    num_tensors: int | None  # of the whole set


@dataclass(frozen=True, slots=True)
class Header:
    version: int
    metadata: dict[str, Any]
    split: Split
    tensors: dict[str, TensorInfo]


def read_header(buffer: mmap.mmap, path: Path) -> Header:
    """Parses the header of the file mapped in ``buffer``. Arrays in the result are views into it. Raises GGUFError."""
    cursor = Cursor(buffer, path)
    version = _read_version(cursor)
    num_tensors = cursor.u64("the number of tensors")
    num_entries = cursor.u64("the number of metadata entries")
    cursor.require(num_entries * _MIN_ENTRY_BYTES, f"a list of {num_entries} metadata entries")
    metadata = _read_metadata(cursor, num_entries)
    split = _read_split(cursor, metadata)
    cursor.subject = "the tensor list"
    cursor.require(num_tensors * _MIN_TENSOR_BYTES, f"a list of {num_tensors} tensors")
    tensors = _read_tensors(cursor, num_tensors, metadata.get("general.alignment", DEFAULT_ALIGNMENT), split.number)
    return Header(version, metadata, split, tensors)


def _read_version(cursor: Cursor) -> int:
    magic = cursor.take(4, "the magic number")
    if magic != b"GGUF":
        raise cursor.error(f"not a GGUF file: it begins with {magic!r}, not b'GGUF'", 0)
    version = cursor.u32("the version")
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if 0 < swapped < 1 << 16 and version >= 1 << 16:
        raise cursor.error(f"a big-endian file of version {swapped}; only little-endian files can be read", 4)
    if version not in VERSIONS:
        raise cursor.error(f"version {version}; versions {' and '.join(map(str, VERSIONS))} can be read", 4)
    return version


# ---- metadata ----------------------------------------------------------------------------------


def _read_metadata(cursor: Cursor, num_entries: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(num_entries):
        start = cursor.position
        cursor.subject = f"metadata entry {index}"
        key = cursor.name("the key", MAX_KEY_BYTES)
        cursor.subject = f"metadata {_shown(key)}"
        if key in metadata:
            raise cursor.error("the key occurs twice", start)
        type_id = cursor.u32("the value's type")
        start = cursor.position
        metadata[key] = _read_value(cursor, type_id)
        if key in _CHECKS:
            _CHECKS[key](cursor, metadata[key], start)
    return metadata


def _read_value(cursor: Cursor, type_id: int) -> Any:
    scalar = _SCALARS.get(type_id)
    if scalar is not None:
        return scalar.unpack(cursor.take(scalar.size, "the value"))[0]
    read = _READERS.get(type_id)
    if read is None:
        raise cursor.error(f"unknown value type {type_id}, 0 to 12 are known", cursor.position - 4)
    return read(cursor)


def _read_bool(cursor: Cursor) -> bool:
    value = cursor.take(1, "the value")[0]
    if value > 1:
        raise cursor.error(f"a truth value of {value}, 0 and 1 are allowed", cursor.position - 1)
    return bool(value)


def _read_string(cursor: Cursor) -> str:
    length = cursor.u64("the length of the text")
    if length > MAX_STRING_BYTES:
        raise cursor.error(f"a text of {length} bytes, at most {MAX_STRING_BYTES} are allowed", cursor.position - 8)
    return cursor.take(length, "the text").decode(errors="replace")


def _read_array(cursor: Cursor) -> Any:
    type_id = cursor.u32("the type of the elements")
    count = cursor.u64("the number of elements")
    if type_id == _STRING:
        return read_strings(cursor, count)
    if type_id == _ARRAY:
        raise cursor.error("an array of arrays; the elements must be numbers or texts", cursor.position - 12)
    dtype = _DTYPES.get(type_id)
    if dtype is None:
        raise cursor.error(f"unknown element type {type_id}, 0 to 12 are known", cursor.position - 12)
    cursor.require(count * dtype.itemsize, f"an array of {count} {dtype.name}")
    start = cursor.position
    cursor.position += count * dtype.itemsize
    if type_id == _BOOL and count and np.frombuffer(cursor.buffer, np.uint8, count, start).max() > 1:
        raise cursor.error("an array of truth values holds others than 0 and 1", start)
    return _view(cursor.buffer, dtype, count, start)


def _view(buffer: mmap.mmap, dtype: np.dtype[Any], count: int, start: int) -> np.ndarray[Any, np.dtype[Any]]:
    if count == 0:  # frombuffer refuses an empty view at the end of the file
        array = np.empty(0, dtype)
        array.flags.writeable = False
        return array
    return np.frombuffer(buffer, dtype, count, start)


_READERS: Mapping[int, Callable[[Cursor], Any]] = {_BOOL: _read_bool, _STRING: _read_string, _ARRAY: _read_array}


def _check_alignment(cursor: Cursor, value: Any, offset: int) -> None:
    if type(value) is not int or not MIN_ALIGNMENT <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.error(
            f"{_shown(value)}; a power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT} is allowed", offset
        )


def _check_count(cursor: Cursor, value: Any, offset: int) -> None:
    if type(value) is not int or value < 0:
        raise cursor.error(f"{_shown(value)}; a whole number of 0 or more is allowed", offset)


_CHECKS: Mapping[str, Callable[[Cursor, Any, int], None]] = {
    "general.alignment": _check_alignment,
    "split.no": _check_count,
    "split.count": _check_count,
    "split.tensors.count": _check_count,
}


def _read_split(cursor: Cursor, metadata: Mapping[str, Any]) -> Split:
    count: int = metadata.get("split.count", 0)
    if count <= 1:
        return Split(0, 1, metadata.get("split.tensors.count"))
    cursor.subject = f"a file of a set of {count}"
    for key in ("split.no", "split.tensors.count"):
        if key not in metadata:
            raise cursor.error(f"metadata '{key}' is missing")
    number: int = metadata["split.no"]
    if number >= count:
        raise cursor.error(f"'split.no' is {number}, 0 to {count - 1} are allowed")
    return Split(number, count, metadata["split.tensors.count"])


# ---- tensors -----------------------------------------------------------------------------------


def _read_tensors(cursor: Cursor, num_tensors: int, alignment: int, shard: int) -> dict[str, TensorInfo]:
    listed: dict[str, tuple[TensorInfo, int]] = {}  # with the position of the entry
    for index in range(num_tensors):
        start = cursor.position
        cursor.subject = f"tensor {index}"
        info = _read_tensor(cursor, alignment, shard)
        if info.name in listed:
            raise cursor.error("the name occurs twice", start)
        listed[info.name] = (info, start)
    data_start = -(-cursor.position // alignment) * alignment
    placed = {name: _place(cursor, info, start, data_start) for name, (info, start) in listed.items()}
    _check_overlap(cursor, placed, listed)
    return placed


def _read_tensor(cursor: Cursor, alignment: int, shard: int) -> TensorInfo:
    """One entry of the list; its ``offset`` still counts from the start of the data."""
    name = cursor.name("the name", MAX_NAME_BYTES)
    cursor.subject = f"tensor {_shown(name)}"
    shape = _read_shape(cursor)
    type_id = cursor.u32("the type")
    if type_id not in TYPES:
        removed = f" ({REMOVED[type_id]}, which GGUF no longer has)" if type_id in REMOVED else ""
        raise cursor.error(f"unknown type {type_id}{removed}; known are {_known_types()}", cursor.position - 4)
    type_ = TYPES[type_id]
    if shape[0] % type_.block_size:
        raise cursor.error(f"{shape[0]} columns; {type_.name} comes in blocks of {type_.block_size}")
    offset = cursor.u64("the offset")
    if offset % alignment:
        raise cursor.error(f"offset {offset} is not a multiple of the alignment, {alignment}", cursor.position - 8)
    return TensorInfo(name, type_, shape, shard, offset, row_bytes(type_, shape[0]) * math.prod(shape[1:]))


def _read_shape(cursor: Cursor) -> tuple[int, ...]:
    num_dimensions = cursor.u32("the number of dimensions")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise cursor.error(f"{num_dimensions} dimensions, 1 to {MAX_DIMENSIONS} are allowed", cursor.position - 4)
    shape = struct.unpack(f"<{num_dimensions}Q", cursor.take(8 * num_dimensions, "the shape"))
    if 0 in shape:
        raise cursor.error(f"shape {shape} has no elements", cursor.position - 8 * num_dimensions)
    return shape


def _place(cursor: Cursor, info: TensorInfo, start: int, data_start: int) -> TensorInfo:
    """The entry with its offset in the file, which is known when the whole list was read."""
    size = len(cursor.buffer)
    offset = data_start + info.offset
    if offset + info.nbytes > size:
        cursor.subject = f"tensor {_shown(info.name)}"
        found = f"{info.type.name} {info.shape} takes bytes {offset} to {offset + info.nbytes}"
        raise cursor.error(f"{found}, the file has {size}", start)
    return TensorInfo(info.name, info.type, info.shape, info.shard, offset, info.nbytes)


def _check_overlap(
    cursor: Cursor, placed: Mapping[str, TensorInfo], listed: Mapping[str, tuple[TensorInfo, int]]
) -> None:
    end, before = 0, ""
    for info in sorted(placed.values(), key=lambda info: info.offset):
        if info.offset < end:
            cursor.subject = f"tensor {_shown(info.name)}"
            found = f"begins at byte {info.offset}, inside {_shown(before)}, which ends at {end}"
            raise cursor.error(found, listed[info.name][1])
        end, before = info.offset + info.nbytes, info.name


def _known_types() -> str:
    return ", ".join(f"{number} {type_.name}" for number, type_ in TYPES.items())


def _shown(value: object) -> str:
    """A value of the file in a message, which must not grow with it."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"
