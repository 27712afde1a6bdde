"""Answers: JSON at once, or a stream. Both stop their work as soon as the client has left.

A stream's first item is produced before the status is sent: what goes wrong until then has a status of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from server.errors import ClientGoneError, Failure, failure_of, is_defect

T = TypeVar("T")

log = logging.getLogger(__name__)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


async def watched(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client leaves first (ClientGoneError)."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("request canceled")
        return task.result()
    finally:
        await _cancel(task, gone)


async def streamed(
    request: Request,
    items: AsyncGenerator[T, None],
    encode: Callable[[T], bytes],
    encode_failure: Callable[[Failure], bytes],
    media_type: str,
) -> Response:
    """A response that sends ``items`` as they come; a failure after the first becomes the stream's last line."""
    first = await watched(request, _next(items))
    return _Stream(_encoded(first, items, encode, encode_failure), media_type)


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)


async def _encoded(
    first: T, items: AsyncGenerator[T, None], encode: Callable[[T], bytes], encode_failure: Callable[[Failure], bytes]
) -> AsyncGenerator[bytes, None]:
    try:
        yield encode(first)
        async for item in items:
            yield encode(item)
    except Exception as error:  # the status is sent: the line is all that is left to tell it by
        if is_defect(error):
            log.exception("a stream failed")
        yield encode_failure(failure_of(error))
    finally:
        await items.aclose()


class _Stream(Response):
    """Sends chunks until they end or the client leaves; the chunks' generator is closed in every case."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], media_type: str) -> None:
        self.chunks = chunks
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((sender, gone), return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                sender.result()
        finally:
            await _cancel(sender, gone)
            await self.chunks.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
