"""One runner process: started on a socket that is already bound, heard, and ended for certain.

The parent binds 127.0.0.1 at a free port and the child inherits the listening socket, so no other process
can take the port in between, and a client that connects before the child is up waits in the socket's backlog
instead of being refused. The child's standard input is a pipe that nobody writes to: it ends when this process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

import runner
from runner.protocol import TOKEN_ENVIRONMENT_NAME
from scheduler.environment import redact, runner_environment
from scheduler.errors import RunnerExitedError, RunnerStartError
from scheduler.last_words import LastWords, describe_end
from scheduler.oom_kills import EXPLANATION, OomKills

LOG = logging.getLogger("scheduler.process")

GRACE_S = 5.0  # between SIGTERM and SIGKILL
DRAIN_S = 0.5  # after the end, for output that a grandchild may still hold open

_BACKLOG = 1024
_MAX_LINE = 16 * 1024  # bytes; longer output is cut into several lines

T = TypeVar("T")


class RunnerProcess:
    """A running child. ``start`` makes one; from then on ``wait`` tells of its end and ``stop`` brings it about."""

    def __init__(self, name: str, port: int, token: str, oom_kills: OomKills | None = None) -> None:
        self.name = name
        self.port = port
        self.token = token
        self.pid = 0
        self.returncode: int | None = None
        self._words = LastWords()
        self._ended = asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None
        self._oom_kills = oom_kills or OomKills()
        self._oom_mark = self._oom_kills.mark()
        self._is_told_to_end = False

    @classmethod
    async def start(
        cls,
        name: str,
        command: Callable[[int], Sequence[str]],
        own_environment: Mapping[str, str],
        parent_environment: Mapping[str, str] = os.environ,
        oom_kills: OomKills | None = None,
    ) -> RunnerProcess:
        """Starts ``command(file descriptor of the listening socket)``; ``name`` marks its output in our log.

        ``oom_kills`` is shared by processes that are started side by side.

        Raises RunnerStartError.
        """
        token = secrets.token_urlsafe(32)
        own = {**own_environment, TOKEN_ENVIRONMENT_NAME: token}
        environment = runner_environment(parent_environment, own, checkout())
        listener = _listen()
        with listener:
            process = cls(name, listener.getsockname()[1], token, oom_kills)
            await process._spawn(command(listener.fileno()), listener.fileno(), environment)
        LOG.info("runner for %s started: pid %d, port %d", name, process.pid, process.port)
        return process

    async def _spawn(self, command: Sequence[str], fd: int, environment: dict[str, str]) -> None:
        try:
            transport, _ = await asyncio.get_running_loop().subprocess_exec(
                lambda: _Ears(self._hear, self._end),
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(fd,),
                env=environment,
                start_new_session=True,  # Ctrl-C in the server's terminal is the server's to handle
            )
        except OSError as error:
            raise RunnerStartError(str(error)) from error
        self._transport = transport
        self.pid = transport.get_pid() or 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def own_bytes(self) -> int:
        """Host memory that it alone uses at this moment, without mapped files; 0 where the system does not tell."""
        try:
            memory = psutil.Process(self.pid).memory_info()
        except psutil.Error:
            return 0
        return int(memory.rss - getattr(memory, "shared", memory.rss))

    def last_words(self) -> str:
        """Why it ended, or what it complained of so far; may be empty while it lives."""
        return describe_end(self.returncode, self._words)

    async def wait(self) -> str:
        """Returns when the process has ended and its output is read; returns its last words."""
        await self._ended.wait()
        return self.last_words()

    async def obituary(self, timeout_s: float = 1.0) -> str:
        """The last words of a process whose connection just broke: waits a moment for its end to be noticed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):  # not wait_for: Python 3.11's may swallow a cancellation
                await self._ended.wait()
        return self.last_words()

    async def while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``; raises RunnerExitedError as soon as the process ends, and cancels ``work`` then."""
        task = asyncio.ensure_future(work)
        end = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((task, end), return_when=asyncio.FIRST_COMPLETED)
            if not task.done() or (end.done() and task.exception() is not None):
                raise RunnerExitedError(self.last_words())
            return task.result()
        finally:
            end.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Ends the process: SIGTERM, ``grace_s`` to leave, SIGKILL. Returns when it is gone; may be called again."""
        if self._transport is None:
            return
        self._signal("terminate")
        try:
            async with asyncio.timeout(grace_s):
                await self._ended.wait()
        except TimeoutError:
            LOG.warning("runner for %s (pid %d) ignored SIGTERM for %g s", self.name, self.pid, grace_s)
            self._signal("kill")
            await self._ended.wait()

    def kill(self) -> None:
        """SIGKILL now, for a server that is on its way out."""
        self._signal("kill")

    def _signal(self, method: str) -> None:
        self._is_told_to_end = True
        if self.returncode is None and self._transport is not None:
            with contextlib.suppress(ProcessLookupError):
                getattr(self._transport, method)()

    # ---- called by _Ears -----------------------------------------------------------------------

    def _hear(self, line: str) -> None:
        line = redact(line.replace(self.token, "[redacted]"))  # its last words go to clients as well
        self._words.hear(line)
        LOG.info("[%s] %s", self.name, line)

    def _end(self) -> None:
        assert self._transport is not None
        self.returncode = self._transport.get_returncode()
        if self.returncode == -signal.SIGKILL and not self._is_told_to_end and self._oom_kills.explain(self._oom_mark):
            self._words.hear(EXPLANATION)
        LOG.info("runner for %s (pid %d) ended: %s", self.name, self.pid, describe_end(self.returncode, LastWords()))
        self._ended.set()
        self._transport.close()


class _Ears(asyncio.SubprocessProtocol):
    """Cuts the child's output into lines and calls ``on_end`` once it has ended and its output is read."""

    def __init__(self, on_line: Callable[[str], None], on_end: Callable[[], None]) -> None:
        self._on_line = on_line
        self._on_end = on_end
        self._rest = b""
        self._is_drained = False
        self._has_exited = False
        self._has_reported = False

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._on_line(line.decode(errors="replace"))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._is_drained = True
            self._report_end()

    def process_exited(self) -> None:
        self._has_exited = True
        self._report_end()
        if not self._has_reported:
            asyncio.get_running_loop().call_later(DRAIN_S, self._give_up_draining)

    def _give_up_draining(self) -> None:
        self._is_drained = True
        self._report_end()

    def _report_end(self) -> None:
        if self._has_exited and self._is_drained and not self._has_reported:
            self._has_reported = True
            if self._rest:
                self._on_line(self._rest.decode(errors="replace"))
            self._on_end()


def runner_command(model: Path, fd: int) -> list[str]:
    """``-P``: without it a stray ``runner/`` in the user's working directory is run instead of ours."""
    return [sys.executable, "-P", "-m", "runner", "--model", str(model), "--fd", str(fd)]


def checkout() -> str | None:
    """The checkout that this code runs from; None when it is installed."""
    root = Path(next(iter(runner.__path__))).resolve().parent
    return str(root) if (root / "pyproject.toml").is_file() else None


def _listen() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind(("127.0.0.1", 0))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise RunnerStartError(f"no free port on 127.0.0.1: {error}") from error
    return listener
