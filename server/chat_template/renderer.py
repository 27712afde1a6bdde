"""The server's side of the renderer: processes that are started when needed, kept while idle, killed when late."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from server.chat_template.limits import Limits

_ROOT: Final = Path(__file__).resolve().parents[2]
_KEPT_IDLE: Final = 2
_MAX_PROCESSES: Final = 4
_START_SECONDS: Final = 30.0  # a start takes 0.1 s; a machine that loads a model may take longer
_ALARM_MARGIN: Final = 1.0
_RECEIVED_AT_ONCE: Final = 1 << 18
_PASSED_ON: Final = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "TZ", "LANG", "LC_ALL", "LC_TIME", "SYSTEMROOT")
"""Environment that Python itself or a date needs. Tokens and keys are none of a template's business."""


def _environment() -> dict[str, str]:
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # Where this process found its modules, that one finds them, wherever it stands.
    return passed_on | {
        "PYTHONPATH": os.pathsep.join([str(_ROOT), *(os.path.abspath(path) for path in sys.path if path)])
    }


class RendererDiedError(Exception):
    """The process ended, or was killed after its time was over; the message says which."""


class _Process:
    """One renderer. Not for several threads at a time."""

    def __init__(self, memory_bytes: int) -> None:
        """Raises OSError where no process can be started."""
        self.memory_bytes = memory_bytes
        self._socket, theirs = socket.socketpair()
        try:
            # -P: a folder of the user's named "server" must not be taken for ours.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), str(memory_bytes)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=_environment(),
                cwd="/" if os.name == "posix" else None,
                start_new_session=True,  # an interrupt at the terminal is for the server, which ends this one
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()

    def ask(self, line: bytes, seconds: float) -> dict[str, Any]:
        """One request and its answer. Raises RendererDiedError; the process is gone then."""
        try:
            return self._ask(line, time.monotonic() + seconds)
        except TimeoutError:
            self.close()
            raise RendererDiedError(f"it takes more than {seconds:g} s") from None
        except OSError as error:
            self.close()
            raise RendererDiedError("its process ended, so it needs too much memory or time") from error
        except BaseException:
            self.close()
            raise

    def _ask(self, line: bytes, deadline: float) -> dict[str, Any]:
        self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
        self._socket.sendall(line)
        received = bytearray()
        while not received.endswith(b"\n"):
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            chunk = self._socket.recv(_RECEIVED_AT_ONCE)
            if not chunk:
                raise ConnectionResetError("end of file")
            received += chunk
        answer: dict[str, Any] = json.loads(received)
        return answer

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


class Renderer:
    """A few processes, shared by all templates of the server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._places = threading.BoundedSemaphore(_MAX_PROCESSES)

    def render(
        self, source: str, attempts: Sequence[Mapping[str, Any]], now: datetime | None, limits: Limits
    ) -> dict[str, Any]:
        """The text of the first attempt that renders, ``{"text": …}``, or ``{"error": …, "line": …}``.

        No attempts: the template is compiled only. Raises RendererDiedError, and OSError where none can be started.
        """
        line = _request(source, attempts, now, limits.output_characters, limits.seconds)
        with self._places:
            process = self._take(limits.memory_bytes)
            answer = process.ask(line, limits.seconds)
            self._give_back(process)
        return answer

    def close(self) -> None:
        """Ends the idle processes. Rendering starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()

    def _take(self, memory_bytes: int) -> _Process:
        with self._lock:
            for process in list(self._idle):
                if process.has_ended():
                    self._idle.remove(process)
                    process.close()
                elif process.memory_bytes == memory_bytes:
                    self._idle.remove(process)
                    return process
        process = _Process(memory_bytes)
        # An answer to nothing, which is waited for longer: starting is not the template's fault.
        process.ask(_request("", (), None, 0, _START_SECONDS), _START_SECONDS)
        return process

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            if len(self._idle) < _KEPT_IDLE:
                self._idle.append(process)
                return
        process.close()


def _request(
    source: str, attempts: Sequence[Mapping[str, Any]], now: datetime | None, characters: int, seconds: float
) -> bytes:
    request = {
        "source": source,
        "attempts": attempts,
        "now": None if now is None else now.isoformat(),
        "characters": characters,
        "seconds": seconds + _ALARM_MARGIN,
    }
    return json.dumps(request).encode() + b"\n"


RENDERER: Final = Renderer()
