"""Stop strings: the text ends before the earliest place where any of them begins, wherever token boundaries fall.

Text is released as soon as it is certain that no stop string begins in it, so nothing is ever taken back.
"""

from __future__ import annotations

from collections.abc import Iterable


class StopScanner:
    """Passes text through until a stop string occurs.

    The result does not depend on how the text is cut into pieces: everything released by ``push`` and ``finish``
    together is the text up to the earliest position at which one of the stop strings begins, or all of it. Of several
    that begin there the shortest is named: it is complete whenever another one is. Empty stop strings are ignored.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = sorted((stop for stop in stops if stop), key=len)
        self._held = ""
        self.stopped_by: str | None = None
        """The stop string that ended the text. Once set, nothing more is released."""

    def push(self, text: str) -> str:
        """Take the next piece; return the text that has become certain."""
        if self.stopped_by is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        begin, stop = self._earliest_match()
        maybe = self._earliest_beginning(begin)
        if stop is not None and maybe == begin:
            self.stopped_by = stop
            certain, self._held = self._held[:begin], ""
        else:
            # A match waits while a longer stop string that begins before it may still complete.
            certain, self._held = self._held[:maybe], self._held[maybe:]
        return certain

    def finish(self) -> str:
        """No more text will come: what was held for a stop string that did not complete is released."""
        begin, stop = self._earliest_match()
        if self.stopped_by is None:
            self.stopped_by = stop
        certain, self._held = self._held[:begin], ""
        return certain

    def _earliest_match(self) -> tuple[int, str | None]:
        """Where the first whole stop string begins, and the shortest one there; the text's length and None without."""
        best, which = len(self._held), None
        for stop in self._stops:
            position = self._held.find(stop, 0, best + len(stop))
            if 0 <= position < best:
                best, which = position, stop
        return best, which

    def _earliest_beginning(self, limit: int) -> int:
        """The first position before ``limit`` from which the text to its end begins some stop string, or limit."""
        for stop in self._stops:
            position = self._held.find(stop[0], max(0, len(self._held) - len(stop) + 1), limit)
            while 0 <= position < limit:
                if stop.startswith(self._held[position:]):
                    limit = position
                    break
                position = self._held.find(stop[0], position + 1, limit)
        return limit
