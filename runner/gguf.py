"""GGUF files: one file or a split set, mapped into memory, checked when opened, read without copies.

    with open_gguf("model.gguf") as file:
        file.architecture, file.metadata["llama.block_count"]
        rows = file.data("token_embd.weight")

Everything in a file is taken as hostile: whatever is wrong with it ends in one ``GGUFError``, before anything is
allocated for it.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from runner.gguf_cursor import GGUFError
from runner.gguf_header import Header, TensorInfo, read_header
from runner.gguf_strings import StringArray

__all__ = ["GGUFError", "GGUFFile", "StringArray", "TensorInfo", "open_gguf"]

_SHARD_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class GGUFFile:
    """An open GGUF file or split set. Everything in it was checked; nothing of it was copied.

    ``metadata`` values are int, float, bool, str, read-only NumPy arrays (numbers; they may lie at odd addresses) or
    ``StringArray``. The metadata of a set is that of its first file. What this object handed out (arrays, texts) stays
    valid after ``close``; a map of a file is given back when the last view of it is gone. Whoever replaces the file
    must write a new one and rename it: bytes cut from a mapped file kill the process that touches them.
    """

    def __init__(self, shards: tuple[Path, ...], headers: list[Header], maps: list[mmap.mmap]) -> None:
        """Use ``open_gguf``."""
        self.path = shards[0]
        self.shards = shards
        self.version = headers[0].version
        self.metadata: Mapping[str, Any] = MappingProxyType(headers[0].metadata)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(_join_tensors(shards, headers))
        self.file_bytes = sum(map(len, maps))
        self._maps: tuple[mmap.mmap, ...] | None = tuple(maps)

    @property
    def architecture(self) -> str:
        """``general.architecture``. Raises GGUFError where the file has none."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise GGUFError(f"metadata 'general.architecture' must be a text, found {value!r:.100}", self.path)
        return value

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor: read-only, one-dimensional, a view into the file.

        Raises KeyError for a tensor that the file does not have, ValueError after ``close``.
        """
        if self._maps is None:
            raise ValueError(f"{self.path} is closed")
        info = self.tensors[name]
        return np.frombuffer(self._maps[info.shard], np.uint8, info.nbytes, info.offset)

    def close(self) -> None:
        """No tensor data can be asked for afterwards. May be called again."""
        self._maps = None

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GGUFFile {str(self.path)!r}: {len(self.tensors)} tensors, {self.file_bytes} bytes>"


def open_gguf(path: str | Path) -> GGUFFile:
    """Opens a GGUF file; any file of a split set opens the whole set.

    Raises GGUFError for anything that is wrong with the files, one of a set that is missing included, and OSError
    (FileNotFoundError, PermissionError) where ``path`` itself cannot be opened.
    """
    path = Path(path)
    buffer = _map(path)
    header = read_header(buffer, path)
    if header.split.count == 1:
        return GGUFFile((path,), [header], [buffer])
    shards: list[Path] = []
    headers: list[Header] = []
    maps: list[mmap.mmap] = []
    for shard in _shard_paths(path, header):
        is_open = len(shards) == header.split.number
        shards.append(shard)
        maps.append(buffer if is_open else _map_shard(shard))
        headers.append(header if is_open else read_header(maps[-1], shard))
    _check_set(shards, headers)
    return GGUFFile(tuple(shards), headers, maps)


def _map(path: Path) -> mmap.mmap:
    # A pipe in the models folder must not block the server, hence O_NONBLOCK until it is known to be a file.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise GGUFError("not a regular file", path)
        if status.st_size == 0:
            raise GGUFError("the file is empty", path, 0)
        return mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


# ---- split sets --------------------------------------------------------------------------------


def _shard_paths(path: Path, header: Header) -> Iterator[Path]:
    """The files of the set that ``path`` belongs to, which its name must say as its metadata does."""
    split = header.split
    match = _SHARD_NAME.fullmatch(path.name)
    ending = f"-{split.number + 1:05}-of-{split.count:05}.gguf"
    if match is None or not path.name.endswith(ending):
        found = f"file {split.number + 1} of a set of {split.count} by its metadata"
        raise GGUFError(f"{found}, so its name must end in {ending!r}", path)
    prefix = match["prefix"]
    for number in range(1, split.count + 1):
        yield path.with_name(f"{prefix}-{number:05}-of-{split.count:05}.gguf")


def _map_shard(path: Path) -> mmap.mmap:
    try:
        return _map(path)
    except FileNotFoundError:
        raise GGUFError("a file of the set is missing", path) from None


def _check_set(shards: Sequence[Path], headers: list[Header]) -> None:
    expected = headers[0].split
    for index, (path, header) in enumerate(zip(shards, headers, strict=True)):
        split = header.split
        if (split.number, split.count, split.num_tensors) != (index, expected.count, expected.num_tensors):
            found = f"split.no, split.count, split.tensors.count are {split.number}, {split.count}, {split.num_tensors}"
            raise GGUFError(f"{found}; the set needs {index}, {expected.count}, {expected.num_tensors}", path)
    num_tensors = sum(len(header.tensors) for header in headers)
    if num_tensors != expected.num_tensors:
        raise GGUFError(
            f"the set has {num_tensors} tensors, 'split.tensors.count' says {expected.num_tensors}", shards[0]
        )


def _join_tensors(shards: Sequence[Path], headers: list[Header]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for path, header in zip(shards, headers, strict=True):
        for name, info in header.tensors.items():
            if name in tensors:
                raise GGUFError(f"tensor {name!r} is also in {shards[tensors[name].shard].name}", path)
            tensors[name] = info
    return tensors
