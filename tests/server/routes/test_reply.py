"""Work stops when the client leaves, before the first byte and in the middle of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi import Request

from server.errors import ClientGoneError, Failure
from server.routes.reply import streamed, watched


class Connection:
    """The server's side of one connection; ``leave`` is what a client does."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self._gone = asyncio.Event()
        self.request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, self.receive)

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self._gone.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Source:
    """Items for ever, or until ``fail``; says whether it was closed."""

    def __init__(self, num_items: int = 1000, error: Exception | None = None) -> None:
        self.num_items = num_items
        self.error = error
        self.is_closed = False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self.num_items):
                await asyncio.sleep(0)
                yield number
            if self.error:
                raise self.error
        finally:
            self.is_closed = True


async def open_stream(connection: Connection, source: Source) -> Any:
    def encode(number: int) -> bytes:
        return b"%d\n" % number

    def encode_failure(failure: Failure) -> bytes:
        return failure.message.encode()

    return await streamed(connection.request, source.items(), encode, encode_failure, "text/plain")


def test_a_stream_is_sent_to_its_end() -> None:
    async def scenario() -> None:
        connection, source = Connection(), Source(3)
        response = await open_stream(connection, source)
        await response({}, connection.receive, connection.send)
        assert connection.body == b"0\n1\n2\n"
        assert source.is_closed

    asyncio.run(scenario())


def test_a_client_that_leaves_ends_the_stream() -> None:
    async def scenario() -> None:
        connection, source = Connection(), Source(10**9)
        response = await open_stream(connection, source)
        sending = asyncio.create_task(response({}, connection.receive, connection.send))
        await asyncio.sleep(0.01)
        connection.leave()
        await asyncio.wait_for(sending, 60)
        assert source.is_closed

    asyncio.run(scenario())


def test_a_client_that_leaves_before_the_first_item_ends_the_work() -> None:
    async def scenario() -> None:
        connection = Connection()
        is_cancelled = False

        async def work() -> None:
            nonlocal is_cancelled
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                is_cancelled = True
                raise

        asyncio.get_running_loop().call_later(0.01, connection.leave)
        with pytest.raises(ClientGoneError):
            await watched(connection.request, work())
        assert is_cancelled

    asyncio.run(scenario())


def test_an_error_before_the_first_item_is_raised() -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="early"):
            await open_stream(Connection(), Source(0, ValueError("early")))

    asyncio.run(scenario())


def test_an_error_after_it_becomes_the_last_line() -> None:
    async def scenario() -> None:
        connection = Connection()
        response = await open_stream(connection, Source(1, ClientGoneError("late")))
        await response({}, connection.receive, connection.send)
        assert connection.body == b"0\nlate"

    asyncio.run(scenario())
