"""The stream's own rules; what it does over real sockets is in test_client.py."""

from __future__ import annotations

import asyncio

import pytest

from scheduler.stream import MAX_LINE_BYTES, BrokenStreamError, LineStream, _Connection, read_body

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Transport(asyncio.Transport):
    """Counts what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def abort(self) -> None:
        self.calls.append("abort")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.fixture
def connection() -> _Connection:
    connection = _Connection()
    connection.connection_made(Transport())
    connection.data_received(HEAD)
    return connection


async def test_a_slow_reader_stops_the_socket_and_starts_it_again(connection):
    """What waits to be read stays bounded, however much there is."""
    stream = LineStream(connection)
    for _ in range(5):
        connection.data_received(chunk(b"x" * 99_999 + b"\n"))
    assert connection._transport.calls == ["pause"]
    for _ in range(5):
        await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert connection._transport.calls == ["pause", "resume"]
    connection.data_received(chunk(b"last\n"))
    assert await waiting == b"last"


async def test_the_end(connection):
    stream = LineStream(connection)
    connection.data_received(chunk(b"one\ntwo") + b"0\r\n\r\n")
    assert [line async for line in stream] == [b"one", b"two"]
    assert connection._transport.calls == ["abort"]


async def test_lines_that_came_before_a_break_are_read_first(connection):
    stream = LineStream(connection)
    connection.data_received(chunk(b"one\nhalf"))
    connection.connection_lost(ConnectionResetError("reset"))
    assert await anext(stream) == b"one"
    with pytest.raises(BrokenStreamError, match=r"reset"):
        await anext(stream)


async def test_a_line_without_end_is_refused(connection):
    stream = LineStream(connection)
    connection.data_received(b"%x\r\n" % (MAX_LINE_BYTES + 1) + b"x" * (MAX_LINE_BYTES + 1))
    with pytest.raises(BrokenStreamError, match=r"a line of the answer is longer than 8388608 bytes"):
        await anext(stream)


async def test_what_is_not_http(connection):
    stream = LineStream(connection)
    connection.data_received(b"not a chunk\r\n")
    with pytest.raises(BrokenStreamError, match=r"not HTTP"):
        await anext(stream)


async def test_nothing_comes_after_close(connection):
    stream = LineStream(connection)
    stream.close()
    with pytest.raises(BrokenStreamError, match=r"the stream was closed"):
        await anext(stream)


async def test_a_body_is_bounded(connection):
    connection.data_received(chunk(b"x" * 99 + b"\n") * 10)
    assert len(await read_body(LineStream(connection), limit_bytes=250)) == 250
