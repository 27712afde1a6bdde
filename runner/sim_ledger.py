"""Who holds how much of a simulated device: what a driver would know of a real one, kept in files.

A ledger is a folder. For each device it has ``ID.quota`` (the device's bytes, a decimal number; whoever writes a
smaller number takes memory away, as another program on a real device would) and, for each process that holds some of
it, ``ID.PID.held``. A process keeps a lock on its own file while it lives, so what a killed process held is free at
once. Every look and every change happens under the device's lock.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_this_thread = threading.local()  # is_inside: it holds a device's lock
_returned: deque[tuple[SimLedger, int]] = deque()  # given back, not yet written


def _settle() -> None:
    """Writes what was given back."""
    while True:
        try:
            ledger, nbytes = _returned.popleft()
        except IndexError:
            return
        ledger._subtract(nbytes)


class SimLedger:
    """One simulated device's share of a ledger folder, as one process sees it."""

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder
        self._device = device
        self._own: int | None = None  # file descriptor of this process's file, locked

    def set_quota(self, nbytes: int) -> None:
        """Makes the device ``nbytes`` large. What is held already stays held."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._path("quota").write_text(str(nbytes))

    def quota_bytes(self) -> int:
        with self._locked():
            return self._quota()

    def free_bytes(self) -> int:
        """Bytes that nobody holds; none if the quota has shrunk below what is held."""
        with self._locked():
            return max(0, self._quota() - sum(self._held().values()))

    def held_bytes(self) -> int:
        """Bytes held by all living processes."""
        with self._locked():
            return sum(self._held().values())

    def take(self, nbytes: int) -> int | None:
        """Takes ``nbytes`` for this process. Returns None, or the free bytes if those are fewer."""
        with self._locked():
            held = self._held()
            free = self._quota() - sum(held.values())
            if nbytes > free:
                return max(0, free)
            self._write_own(held.get(os.getpid(), 0) + nbytes)
            return None

    def give_back(self, nbytes: int) -> None:
        """Gives back what this process took.

        Finalizers call this, and those may run in the middle of any method here: then it is done when that method
        has let go of its lock, for waiting for a lock that the same thread holds would never end.
        """
        _returned.append((self, nbytes))
        if not getattr(_this_thread, "is_inside", False):
            _settle()

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._device}.{suffix}"

    def _quota(self) -> int:
        return int(self._path("quota").read_text())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        _this_thread.is_inside = True
        try:
            descriptor = os.open(self._path("lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)
        finally:
            _this_thread.is_inside = False
        if _returned:
            _settle()

    def _subtract(self, nbytes: int) -> None:
        with self._locked():
            self._write_own(self._held().get(os.getpid(), 0) - nbytes)

    def _held(self) -> dict[int, int]:
        """Bytes by process. Files of processes that have died are removed."""
        held = {}
        for path in self._folder.glob(f"{self._device}.*.held"):
            pid = int(path.name.split(".")[-2])
            if not is_locked(path):  # also where a dead process had the number that this one has now
                path.unlink(missing_ok=True)
            else:
                held[pid] = int(path.read_text() or 0)
        return held

    def _write_own(self, nbytes: int) -> None:
        if self._own is None:
            self._own = os.open(self._path(f"{os.getpid()}.held"), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._own, fcntl.LOCK_EX)
        text = str(nbytes).encode()
        os.pwrite(self._own, text, 0)
        os.ftruncate(self._own, len(text))


def is_locked(path: Path) -> bool:
    """Whether the process that made this file, and locked it, still lives. False where there is no file.

    Raises OSError where that is not ours to know.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
