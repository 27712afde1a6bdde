"""Counts every request with its route, method, status and duration, whatever becomes of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import OTHER, Metrics


class Meter:
    """ASGI middleware that hands every message on as it is: a chunk of a stream costs one more plain call.

    The outermost one, so that what the others refuse is counted as well.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value  # of an application that fails before it answers

        def note(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        began = time.perf_counter()
        self.metrics.request_began()
        try:
            await self.app(scope, receive, note)
        finally:
            seconds = time.perf_counter() - began
            self.metrics.request_ended(_route(scope), scope["method"], status, seconds)


def _route(scope: Scope) -> str:
    """The template that the router found for the path; a path in its place would make a series of each typing error."""
    return getattr(scope.get("route"), "path", OTHER)
