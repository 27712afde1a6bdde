"""From the engine's lines to an HTTP answer, and from a client that left, or does not read, back to the engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runner.engine.work import Line

MEDIA_TYPE = "application/x-ndjson"

MAX_WAITING_BYTES = 10 << 20
"""From here on a reader is taken for one that does not read: 250 000 tokens of text, or 6 000 of them with twenty log
probabilities each."""
PIECE_BYTES = 64 << 10
"""What waits is kept and sent in pieces of about this size: it takes no more memory than it has bytes, and little of it
is there twice."""


class Mailbox:
    """One answer on its way to its reader: lines of JSON, in order. Belongs to the event loop's thread.

    It holds ``MAX_WAITING_BYTES`` and one line at most. An answer of which more would wait ends there: its reader finds
    all that waited, and an error line after it.
    """

    def __init__(self) -> None:
        self.on_early_end: Callable[[], None] = lambda: None
        """Is called when the answer ends here while the engine still works on it."""
        self.status = 0
        """The HTTP status of the answer, which its first line tells; 0 before that."""
        self._pieces: deque[bytearray] = deque()  # of whole lines
        self._num_bytes = 0
        self._is_over = False  # nothing more is taken in
        self._changed = asyncio.Event()

    @property
    def is_at_end(self) -> bool:
        """Whether everything has been taken out, and nothing more will come."""
        return self._is_over and not self._pieces

    def put(self, line: Line) -> None:
        """Takes the next line in. After the end, or for a reader who has left, it does nothing."""
        if self._is_over:
            return
        if "content" in line and self._num_bytes >= MAX_WAITING_BYTES:
            waited = f"{self._num_bytes >> 20} MiB of it waited, which is the most"
            self._end_early(f"the answer was not read: {waited}; it was ended here")
            return
        try:
            self._append(line)
        except orjson.JSONEncodeError as error:
            self._end_early(f"the answer cannot be told in JSON: {error}")

    def close(self) -> None:
        """The reader has left: it gets nothing more."""
        self._is_over = True
        self._pieces.clear()
        self._changed.set()

    async def take(self) -> bytes:
        """The next lines, ``PIECE_BYTES`` and the rest of a line at most; none where the reader has left or has all."""
        await self._changed.wait()
        piece = bytes(self._pieces.popleft()) if self._pieces else b""
        self._num_bytes -= len(piece)
        if not self._pieces and not self._is_over:
            self._changed.clear()
        return piece

    def _end_early(self, reason: str) -> None:
        self._append({"error": reason})
        self.on_early_end()

    def _append(self, line: Line) -> None:
        encoded = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
        if not self.status:
            self.status = 500 if "error" in line else 200
        self._is_over = "content" not in line
        if self._pieces and len(self._pieces[-1]) < PIECE_BYTES:
            self._pieces[-1] += encoded
        else:
            self._pieces.append(bytearray(encoded))
        self._num_bytes += len(encoded)
        self._changed.set()


class EngineResponse(Response):
    """An answer that the engine is still working on: one JSON object, or a stream of lines.

    ``on_end`` is called in any case as the last thing; at once when the client leaves, at whatever moment that is, or
    when the mailbox ends the answer.
    """

    def __init__(self, mailbox: Mailbox, on_end: Callable[[], None], *, is_stream: bool) -> None:
        super().__init__()
        self._mailbox = mailbox
        self._mailbox.on_early_end = on_end
        self._on_end = on_end
        self._is_stream = is_stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.ensure_future(_disconnect(receive))
        watcher.add_done_callback(lambda _: self._mailbox.close())
        try:
            if body := await self._mailbox.take():  # the status waits for the first line: an early error has its own
                if self._is_stream and self._mailbox.status == 200:
                    await self._stream(body, send)
                else:
                    answer = Response(body, self._mailbox.status, media_type="application/json")
                    await answer(scope, receive, send)
        finally:
            watcher.cancel()
            self._on_end()

    async def _stream(self, body: bytes, send: Send) -> None:
        headers = [(b"content-type", MEDIA_TYPE.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while body:
            is_last = self._mailbox.is_at_end
            await send({"type": "http.response.body", "body": body, "more_body": not is_last})
            body = b"" if is_last else await self._mailbox.take()


def json_response(content: Line, status: int) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


async def _disconnect(receive: Receive) -> None:
    """Returns when the client has left. The request's body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
