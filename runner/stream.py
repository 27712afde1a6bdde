"""From the engine's lines to an HTTP answer, and from a client that left back to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runner.engine.work import Line

MEDIA_TYPE = "application/x-ndjson"


class Mailbox:
    """Lines for one answer, in order. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._is_closed = False
        self._changed = asyncio.Event()

    def put(self, line: Line) -> None:
        self._lines.append(line)
        self._changed.set()

    def close(self) -> None:
        """The reader has left: it gets nothing more."""
        self._is_closed = True
        self._changed.set()

    async def take(self) -> list[Line]:
        """Everything that is there, at least one line; nothing at all once closed."""
        await self._changed.wait()
        self._changed.clear()
        lines, self._lines = self._lines, []
        return [] if self._is_closed else lines


class EngineResponse(Response):
    """An answer that the engine is still working on: one JSON object, or a stream of lines.

    ``on_end`` is called in any case as the last thing; at once when the client leaves, at whatever moment that is.
    """

    def __init__(self, mailbox: Mailbox, on_end: Callable[[], None], *, is_stream: bool) -> None:
        super().__init__()
        self._mailbox = mailbox
        self._on_end = on_end
        self._is_stream = is_stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.ensure_future(_disconnect(receive))
        watcher.add_done_callback(lambda _: self._mailbox.close())
        try:
            if lines := await self._mailbox.take():  # the status waits for the first line: an early error has its own
                if "error" in lines[0] or not self._is_stream:
                    await json_response(lines[0], 500 if "error" in lines[0] else 200)(scope, receive, send)
                else:
                    await self._stream(lines, send)
        finally:
            watcher.cancel()
            self._on_end()

    async def _stream(self, lines: list[Line], send: Send) -> None:
        headers = [(b"content-type", MEDIA_TYPE.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while lines:
            is_last = "content" not in lines[-1]
            await send({"type": "http.response.body", "body": encoded(lines), "more_body": not is_last})
            if is_last:
                return
            lines = await self._mailbox.take()


def json_response(content: Line, status: int) -> Response:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json")


def encoded(lines: list[Line]) -> bytes:
    return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)


async def _disconnect(receive: Receive) -> None:
    """Returns when the client has left. The request's body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
