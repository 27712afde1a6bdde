"""What a process said before it died: the part of its output that explains it."""

from __future__ import annotations

import re
import signal

LIMIT_BYTES = 8 * 1024

_NUM_PLAIN_LINES = 5

# Where in a line the explanation begins; what stands before it (a time, a logger's name) is left out.
# Names are bounded, so that a line of any kind is searched in linear time.
_FATAL = re.compile(
    r"\b[A-Za-z_][\w.]{0,80}?(?:Error|Exception|Interrupt)(?::|$)"  # last line of a Python traceback
    r"|^(?:ERROR|CRITICAL) |Fatal Python error:|panic:|fatal error:|error:|Error:"
    r"|CUDA error|ROCm error|cudaMalloc failed|terminate called|what\(\):|AddressSanitizer|Assertion "
    r"|[Oo]ut of memory|out of device memory|failed to allocate|allocation failed|not enough memory"
    r"|insufficient memory|error loading model"
)


class LastWords:
    """Keeps the tail of the fatal lines and the tail of all lines, 8 KiB of each."""

    def __init__(self) -> None:
        self._fatal: list[str] = []
        self._plain: list[str] = []

    def hear(self, line: str) -> None:
        """Takes one line of output, without its end."""
        line = line.rstrip()[:LIMIT_BYTES]
        if not line:
            return
        found = _FATAL.search(line)
        if found is not None:
            _keep_tail(self._fatal, line[found.start() :])
        _keep_tail(self._plain, line)

    @property
    def fatal(self) -> str:
        """The lines that name an error; empty when there was none."""
        return "\n".join(self._fatal)

    @property
    def plain(self) -> str:
        """The last few lines of any kind."""
        return "\n".join(self._plain[-_NUM_PLAIN_LINES:])


def describe_end(returncode: int | None, words: LastWords) -> str:
    """Why a process ended, in the words that help most. ``returncode`` None: it has not ended.

    A signal is always named (SIGKILL explains itself, whatever the last log line says); otherwise the fatal lines
    speak, then the last lines, then the exit status.
    """
    if returncode is not None and returncode < 0:
        return "\n".join(filter(None, (f"signal: {_signal_name(-returncode)}", words.fatal)))
    if words.fatal or returncode in (None, 0):
        return words.fatal or ("" if returncode is None else "exit status 0")
    return f"exit status {returncode}" + (f": {words.plain}" if words.plain else "")


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} ({signal.strsignal(number)})"
    except ValueError:
        return str(number)


def _keep_tail(lines: list[str], line: str) -> None:
    lines.append(line)
    excess = sum(len(kept.encode(errors="replace")) + 1 for kept in lines) - LIMIT_BYTES
    while excess > 0 and len(lines) > 1:
        excess -= len(lines.pop(0).encode(errors="replace")) + 1
