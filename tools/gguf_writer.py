"""Writes GGUF files for the project's scripts and tests: any metadata, raw bytes, split sets, headers without data.

    write_gguf(path, {"general.architecture": "llama", ...}, [Tensor("output_norm.weight", "F32", (64,), ones)])

Tensors are written one after another, chunk by chunk, so a file may be larger than memory. A tensor without data
becomes a hole: the file has its full length and takes no room on the disk, enough for whoever reads headers only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runner.ggml_types import BY_NAME, GGMLType, row_bytes

Chunk = bytes | np.ndarray[Any, Any]

_VALUE_TYPES = {
    "uint8": 0,
    "int8": 1,
    "uint16": 2,
    "int16": 3,
    "uint32": 4,
    "int32": 5,
    "float32": 6,
    "bool": 7,
    "uint64": 10,
    "int64": 11,
    "float64": 12,
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """A tensor to write. ``shape`` is in GGUF order (columns first); ``data`` are its bytes in the file's own type."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    data: Chunk | Callable[[], Iterable[Chunk]] | None = None  # None: a hole

    @property
    def type(self) -> GGMLType:
        return BY_NAME[self.type_name]

    @property
    def nbytes(self) -> int:
        return row_bytes(self.type, self.shape[0]) * math.prod(self.shape[1:])

    def chunks(self) -> Iterable[Chunk]:
        if self.data is None:
            return ()
        return self.data() if callable(self.data) else (self.data,)


def write_gguf(
    path: str | Path, metadata: Mapping[str, Any], tensors: Sequence[Tensor], *, version: int = 3, alignment: int = 32
) -> Path:
    """Writes one file and returns its path.

    Metadata values: bool, int (u32, i32, u64 or i64, the first that holds it), float (f32), str, bytes, a NumPy scalar
    (its own type), a NumPy array, a list of str or bytes (an empty list too), of bool, int (i32) or float (f32).
    ``alignment`` is recorded where it is not the default. Raises ValueError when the metadata names one, or when a
    tensor's data has not the size its shape says.
    """
    path = Path(path)
    if "general.alignment" in metadata:
        raise ValueError("the alignment is an argument, not metadata")
    if alignment != 32:
        metadata = {**metadata, "general.alignment": np.uint32(alignment)}
    header = bytearray(struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _text(key) + _typed(value)
    offset = 0
    offsets = []
    for tensor in tensors:
        offsets.append(offset)
        header += _text(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        header += struct.pack("<IQ", tensor.type.id, offset)
        offset = _aligned(offset + tensor.nbytes, alignment)
    start = _aligned(len(header), alignment)
    with path.open("wb") as file:
        file.write(header)
        for tensor, offset in zip(tensors, offsets, strict=True):
            _write_data(file, tensor, start + offset)
        end = start + offsets[-1] + tensors[-1].nbytes if tensors else len(header)
        file.truncate(_aligned(end, alignment))
    return path


def write_split_gguf(
    path: str | Path, metadata: Mapping[str, Any], tensors: Sequence[Tensor], *, num_shards: int, alignment: int = 32
) -> list[Path]:
    """Writes a set of ``num_shards`` files beside ``path`` (``name.gguf`` gives ``name-00001-of-0000N.gguf``).

    The first has all metadata, the others the three ``split.*`` keys, as llama.cpp's own splitter writes them.
    """
    path = Path(path)
    bounds = [len(tensors) * n // num_shards for n in range(num_shards + 1)]
    paths = []
    for number in range(num_shards):
        split = {
            "split.no": np.uint16(number),
            "split.count": np.uint16(num_shards),
            "split.tensors.count": np.int32(len(tensors)),
        }
        shard = path.with_name(f"{path.stem}-{number + 1:05}-of-{num_shards:05}.gguf")
        part = tensors[bounds[number] : bounds[number + 1]]
        write_gguf(shard, split if number else {**metadata, **split}, part, alignment=alignment)
        paths.append(shard)
    return paths


def _write_data(file: BinaryIO, tensor: Tensor, start: int) -> None:
    file.seek(start)
    num_bytes = 0
    for chunk in tensor.chunks():
        num_bytes += file.write(np.ascontiguousarray(chunk).data if isinstance(chunk, np.ndarray) else chunk)
    if tensor.data is not None and num_bytes != tensor.nbytes:
        raise ValueError(f"tensor {tensor.name}: {num_bytes} bytes of data, its shape takes {tensor.nbytes}")


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    """A value with its type in front."""
    if isinstance(value, str | bytes):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, list | tuple):
        if all(isinstance(item, str | bytes) for item in value):
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
        value = _array(value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", _ARRAY, _VALUE_TYPES[value.dtype.name], value.size) + value.tobytes()
    scalar = value if isinstance(value, np.generic) else _scalar(value)
    return struct.pack("<I", _VALUE_TYPES[scalar.dtype.name]) + scalar.tobytes()


def _array(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    kinds = {bool: np.bool_, int: np.int32, float: np.float32}
    return np.array(values, kinds[type(values[0])])


def _scalar(value: float) -> np.generic:
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    for dtype in (np.uint32, np.int32, np.uint64, np.int64):
        if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            return dtype(value)
    raise ValueError(f"{value} fits no integer type of GGUF")
