"""Arrays of strings in GGUF metadata: found when the file is opened, decoded when they are read.

A vocabulary has some 400 000 strings, and a reader that only wants the scalars behind them must still step over each
one, for the format gives no total length. So only the positions are collected at first.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
import numpy.typing as npt

from runner.gguf_cursor import Cursor

Positions = npt.NDArray[np.int64]

_U64 = struct.Struct("<Q").unpack_from

# What one scan looks at grows while scans pay: a file made to spoil them costs at most 1.3 times the plain walk.
_MIN_SCAN_BYTES = 1 << 12
_MAX_SCAN_BYTES = 1 << 18  # 10 ms for 408 000 strings; with 64 KiB or 1 MiB it took 12 and 13
_MIN_STEPS = 64  # strings walked one by one where a scan found little, at first …
_MAX_STEPS = 1024  # … and at most


class StringArray(Sequence[str]):
    """A read-only sequence of strings that are decoded when asked for.

    ``array[i]``, iteration and ``texts()`` give text, with U+FFFD in place of bytes that are not UTF-8; ``raw(i)`` and
    ``raws()`` give the exact bytes. The strings stay readable after the file object was closed.
    """

    __slots__ = ("_buffer", "_positions")

    def __init__(self, buffer: mmap.mmap, positions: Positions) -> None:
        """String i takes ``positions[i] … positions[i + 1]``: eight bytes of length, then its own."""
        self._buffer = buffer
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions) - 1

    def raw(self, index: int) -> bytes:
        """The bytes of one string. Raises IndexError."""
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"index {index} of {size} strings")
        index %= size
        return self._buffer[int(self._positions[index]) + 8 : int(self._positions[index + 1])]

    def raws(self) -> list[bytes]:
        """The bytes of all strings; several times as fast as asking for each."""
        data, positions = self._block()
        return [data[start + 8 : end] for start, end in pairwise(positions)]

    def texts(self) -> list[str]:
        """All strings, decoded."""
        data, positions = self._block()
        try:
            return [data[start + 8 : end].decode() for start, end in pairwise(positions)]
        except UnicodeDecodeError:  # naming the error handler makes every call slower
            return [data[start + 8 : end].decode(errors="replace") for start, end in pairwise(positions)]

    def _block(self) -> tuple[bytes, list[int]]:
        first = int(self._positions[0])
        return self._buffer[first : int(self._positions[-1])], (self._positions - first).tolist()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.raw(index).decode(errors="replace")

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts())

    def __repr__(self) -> str:
        return f"<StringArray of {len(self)}: {self[:3]!r}{' …' if len(self) > 3 else ''}>"


def read_strings(cursor: Cursor, count: int) -> StringArray:
    """Steps over ``count`` strings at the cursor. Raises GGUFError when one of them ends outside the header."""
    cursor.require(8 * count, f"an array of {count} strings")
    positions = np.empty(count + 1, np.int64)
    positions[0] = cursor.position
    done, num_bytes, num_steps = 0, _MIN_SCAN_BYTES, _MIN_STEPS
    while done < count:
        at = int(positions[done])
        if count - done > _MIN_STEPS:
            ends = find_run(cursor.buffer, at, min(at + num_bytes, cursor.end))[: count - done]
            positions[done + 1 : done + 1 + len(ends)] = ends
            done += len(ends)
            if len(ends) and 2 * (int(ends[-1]) - at) > num_bytes:
                num_bytes, num_steps = min(4 * num_bytes, _MAX_SCAN_BYTES), _MIN_STEPS
                continue
            num_bytes, num_steps = _MIN_SCAN_BYTES, min(2 * num_steps, _MAX_STEPS)
        steps = _walk(cursor, int(positions[done]), done, min(count, done + num_steps))
        positions[done + 1 : done + 1 + len(steps)] = steps
        done += len(steps)
    cursor.position = int(positions[count])
    return StringArray(cursor.buffer, positions)


def _walk(cursor: Cursor, at: int, first: int, stop: int) -> list[int]:
    """The ends of strings ``first`` to ``stop - 1``, of which the first begins at ``at``, read one by one."""
    ends = []
    buffer, end = cursor.buffer, cursor.end
    last = end - 8
    for index in range(first, stop):
        if at > last:
            raise cursor.error(f"string {index} has no room for its length, the header ends at byte {end}", at)
        length = _U64(buffer, at)[0]
        following = at + 8 + length
        if following > end:
            raise cursor.error(f"string {index} has {length} bytes, {end - at - 8} are left", at)
        ends.append(following)
        at = following
    return ends


def find_run(buffer: mmap.mmap, start: int, end: int) -> Positions:
    """The ends of consecutive strings, the first of which begins at ``start``: all that one scan proves, perhaps none.

    The length of a short string is one byte and seven zeros, so every byte before seven zeros is a guess. From a guess
    that is right (the first is ``start``) its length leads to the next string; where that is the next guess, it is
    right too. So nothing is taken on trust, and one vectorised comparison walks the run. It stops at a string of 256
    bytes or more, an empty string, zeros in a text, or ``end``.

    Needs ``start <= end``; every end returned leaves room for one more length before ``end``.
    """
    data = np.frombuffer(buffer, np.uint8, end - start, start)
    zero = data[1:] == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    guesses = np.flatnonzero(four[:-3] & four[3:])
    if not len(guesses) or guesses[0] != 0:
        return np.empty(0, np.int64)
    ends: Positions = guesses[:-1] + 8 + data[guesses[:-1]]
    wrong = np.flatnonzero(ends != guesses[1:])
    return ends[: wrong[0] if len(wrong) else None] + start
