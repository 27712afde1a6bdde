"""Merges of byte-pair encoding: which two tokens become one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

Merge = tuple[str, str]


class Merges(Sequence[Merge]):
    """Left and right parts, most important merge first.

    The pairs exist only while they are iterated over: to make half a million tuples takes longer than to use them.
    """

    def __init__(self, lefts: list[str], rights: list[str]) -> None:
        """Raises ValueError for lists of different lengths."""
        if len(lefts) != len(rights):
            raise ValueError(f"{len(lefts)} left parts and {len(rights)} right parts")
        self._lefts = lefts
        self._rights = rights

    def __len__(self) -> int:
        return len(self._lefts)

    def __iter__(self) -> Iterator[Merge]:
        return zip(self._lefts, self._rights, strict=True)

    @overload
    def __getitem__(self, index: int) -> Merge: ...
    @overload
    def __getitem__(self, index: slice) -> list[Merge]: ...
    def __getitem__(self, index: int | slice) -> Merge | list[Merge]:
        if isinstance(index, slice):
            return list(zip(self._lefts[index], self._rights[index], strict=True))
        return self._lefts[index], self._rights[index]
