"""A POST whose answer is lines that come one by one: the hot path of every generated token.

A general HTTP client spends most of its time per chunk on what a loopback connection between two of our own processes
does not need (``RunnerClient`` says how much). Here one connection carries one answer, httptools parses it, and
closing the connection is how the other side learns that nobody listens any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from typing import cast

import httptools

MAX_LINE_BYTES = 8 * 2**20
CONNECT_TIMEOUT_S = 5.0

_HIGH_WATER_BYTES = 256 * 1024  # unread lines after which the socket is left alone: a slow reader slows the runner


class BrokenStreamError(ConnectionError):
    """The connection ended, or the other side did not speak HTTP, before the answer was complete."""


class LineStream:
    """An answer that has begun: ``status`` is known, the lines of the body follow, without their ends.

    Iterate once. ``close`` may be called at any time, and must be unless the iteration came to its end.
    """

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, port: int, path: str, headers: Mapping[str, str], body: bytes) -> LineStream:
        """Sends the request to 127.0.0.1 and returns when the head of the answer is there.

        Raises BrokenStreamError, other OSErrors where there is no connection, TimeoutError after 5 s without one.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
        try:
            transport.write(_head(port, path, headers, len(body)) + body)
            while connection.status is None:
                await connection.wait()
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    @property
    def status(self) -> int:
        assert self._connection.status is not None  # open() waited for it
        return self._connection.status

    def __aiter__(self) -> LineStream:
        return self

    async def __anext__(self) -> bytes:
        """Raises BrokenStreamError where the answer stops before its end."""
        connection = self._connection
        while not connection.lines:
            if connection.is_complete:
                connection.close()
                raise StopAsyncIteration
            await connection.wait()
        return connection.next_line()

    def close(self) -> None:
        """Lets go of the connection; the runner notices and stops working on the request."""
        self._connection.close()


class _Connection(asyncio.Protocol):
    """Parses one response. Lines wait here until they are asked for."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.lines: deque[bytes] = deque()
        self.is_complete = False
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._unread_bytes = 0
        self._failure: BrokenStreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._is_paused = False

    # ---- the reader's side ---------------------------------------------------------------------

    async def wait(self) -> None:
        """Returns when something has come; raises BrokenStreamError when nothing will."""
        if self._failure is not None:
            raise BrokenStreamError(str(self._failure))
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def next_line(self) -> bytes:
        line = self.lines.popleft()
        self._unread_bytes -= len(line)
        return line

    def close(self) -> None:
        self._fail("the stream was closed")
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not HTTP: {error}")
        if self._unread_bytes > _HIGH_WATER_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(str(exc or "the connection was closed"))
        self._wake()

    # ---- httptools -----------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        *lines, self._rest = (self._rest + body).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            self._fail(f"a line of the answer is longer than {MAX_LINE_BYTES} bytes")
            self._rest = b""
        self.lines.extend(lines)
        self._unread_bytes += sum(map(len, lines))

    def on_message_complete(self) -> None:
        if self._rest:
            self.on_body(b"\n")
        self.is_complete = True

    # --------------------------------------------------------------------------------------------

    def _fail(self, reason: str) -> None:
        if self._failure is None and not self.is_complete:
            self._failure = BrokenStreamError(reason)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _head(port: int, path: str, headers: Mapping[str, str], num_bytes: int) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        *(f"{name}: {value}" for name, value in headers.items()),
        f"content-length: {num_bytes}",
        "connection: close",
        "\r\n",
    ]
    return "\r\n".join(lines).encode("ascii")


async def read_body(stream: LineStream, limit_bytes: int = 64 * 1024) -> bytes:
    """The whole body, at most ``limit_bytes`` of it: for answers that are not a stream after all."""
    body = b""
    with contextlib.closing(stream):
        async for line in stream:
            body += line + b"\n"
            if len(body) > limit_bytes:
                break
    return body[:limit_bytes]
