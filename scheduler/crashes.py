"""Models whose runners keep dying are left alone for a while: 1 s after the second crash, then 2, 4 … 30 s.

The first crash costs nothing: the next request starts a new runner at once. Crashes are counted in a row: a request
that was served in between, or five minutes without a crash, end the row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from scheduler.errors import CrashLoopError

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0
FORGIVEN_S = 300.0  # without a crash, after which it starts from nothing

_OUT_OF_MEMORY = re.compile(
    r"out of (?:device |host )?memory|MemoryError|bad_alloc|failed to allocate|allocation failed|cudaMalloc failed"
    r"|(?:not enough|insufficient) memory|cannot allocate memory|requires more system memory",
    re.IGNORECASE,
)


def is_out_of_memory(last_words: str) -> bool:
    """Whether a process died for want of memory, as far as its last words tell.

    A bare SIGKILL does not count. Where the kernel can be seen to have done it, ``scheduler.oom_kills`` has said so.
    """
    return _OUT_OF_MEMORY.search(last_words) is not None


@dataclass(frozen=True, slots=True)
class _Record:
    count: int
    at_s: float
    last_words: str

    @property
    def pause_s(self) -> float:
        return 0.0 if self.count < 2 else min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self.count - 2, 16))


class Crashes:
    """Crashes by model file. ``now_s`` is the scheduler's clock."""

    def __init__(self) -> None:
        self._records: dict[Path, _Record] = {}

    def add(self, path: Path, now_s: float, last_words: str) -> None:
        """One more crash."""
        old = self._records.get(path)
        count = old.count if old is not None and now_s - old.at_s < FORGIVEN_S else 0
        self._records[path] = _Record(count + 1, now_s, last_words)

    def forgive(self, path: Path) -> None:
        """It has served a request: the next crash will be the first."""
        self._records.pop(path, None)

    def check(self, path: Path, now_s: float) -> None:
        """Raises CrashLoopError while the model is to be left alone."""
        record = self._records.get(path)
        if record is None:
            return
        if now_s - record.at_s >= FORGIVEN_S:
            del self._records[path]
            return
        rest_s = record.at_s + record.pause_s - now_s
        if rest_s > 0:
            raise CrashLoopError(record.count, rest_s, record.last_words)
