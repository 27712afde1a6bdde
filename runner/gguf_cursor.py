"""Reads the plain values of a GGUF header. Nothing is touched before it is known to lie inside the file."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

MAX_HEADER_BYTES = 128 << 20
"""Metadata and tensor list together. The largest vocabularies in use need about 20 MiB; the limit bounds the time and
memory that a hostile (say sparse) file can cost."""

_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from


class GGUFError(ValueError):
    """A file that is not a usable GGUF file. The message says what was found, what is allowed, and where."""

    def __init__(self, message: str, path: Path, offset: int | None = None) -> None:
        super().__init__(f"{message} ({path}{'' if offset is None else f', byte {offset}'})")
        self.path = path
        self.offset = offset


class Cursor:
    """A position in a header.

    Holds after every call: ``position <= end <= len(buffer)``. Every method that would leave these bounds raises
    ``GGUFError`` instead, before anything is read or allocated.
    """

    __slots__ = ("buffer", "end", "path", "position", "subject")

    def __init__(self, buffer: mmap.mmap, path: Path) -> None:
        self.buffer = buffer
        self.path = path
        self.position = 0
        self.end = min(len(buffer), MAX_HEADER_BYTES)
        self.subject = "the file header"  # what is being read, for messages

    def error(self, message: str, offset: int | None = None) -> GGUFError:
        """The error to raise about ``subject``; ``offset`` defaults to the current position."""
        return GGUFError(f"{self.subject}: {message}", self.path, self.position if offset is None else offset)

    def require(self, num_bytes: int, what: str) -> None:
        """Raises unless ``num_bytes`` more bytes lie inside the header."""
        left = self.end - self.position
        if num_bytes > left:
            where = "in the file" if self.end == len(self.buffer) else f"of the {MAX_HEADER_BYTES} a header may have"
            raise self.error(f"{what} needs {num_bytes} bytes, {left} are left {where}")

    def u32(self, what: str) -> int:
        if self.position + 4 > self.end:
            self.require(4, what)
        value: int = _U32(self.buffer, self.position)[0]
        self.position += 4
        return value

    def u64(self, what: str) -> int:
        if self.position + 8 > self.end:
            self.require(8, what)
        value: int = _U64(self.buffer, self.position)[0]
        self.position += 8
        return value

    def take(self, num_bytes: int, what: str) -> bytes:
        self.require(num_bytes, what)
        start = self.position
        self.position = start + num_bytes
        return self.buffer[start : self.position]

    def name(self, what: str, max_bytes: int) -> str:
        """A key or a tensor name: valid UTF-8 of at most ``max_bytes`` bytes."""
        start = self.position
        length = self.u64(f"the length of {what}")
        if length > max_bytes:
            raise self.error(f"{what} has {length} bytes, at most {max_bytes} are allowed", start)
        data = self.take(length, what)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8: {data[:64]!r}", start + 8 + error.start) from None
