"""A runner must not outlive the process that started it, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys
import threading

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STANDARD_INPUT = 0


def die_with_parent() -> None:
    """Arrange that this process ends when its parent does; end at once if the parent is gone already.

    Two nets. On Linux the kernel sends SIGKILL (there is nothing to save) when the *thread* that started this process
    ends, so start a runner from a thread that lives as long as its process. And when standard input is a pipe, its end
    means that nobody holds the other end any more: that also covers a parent that died before this call.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        _ask_kernel()
        if os.getppid() != parent:  # it died before the kernel knew
            raise SystemExit(f"error: the parent process {parent} has ended")
    if _is_pipe(_STANDARD_INPUT):
        threading.Thread(target=_wait_for_end, args=(_STANDARD_INPUT,), name="lifeline", daemon=True).start()


def _ask_kernel() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")


def _is_pipe(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:  # closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _wait_for_end(fd: int) -> None:
    """Read until the other end is closed. Whatever arrives is ignored: nobody has reason to write."""
    while os.read(fd, 4096):
        pass
    os._exit(1)
