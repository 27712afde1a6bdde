"""Who may call from where: browser origins (CORS), and host names when the server listens on loopback."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0", "[::1]")
APP_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


def origin_pattern(more: Sequence[str]) -> str:
    """Regular expression of the browser origins that may call; ``*`` in a given one stands for anything."""
    local = f"https?://({'|'.join(map(re.escape, LOCAL_HOSTS))})(:[0-9]+)?"
    apps = f"({'|'.join(APP_SCHEMES)})://.*"
    given = (re.escape(origin).replace(r"\*", ".*") for origin in more)
    return "|".join((local, apps, *given))


def is_local_host(host: str) -> bool:
    """Whether a Host header names this machine or its network.

    A page of a stranger can point its own name at 127.0.0.1 (DNS rebinding); its requests come with that name.
    """
    name = _without_port(host).lower().rstrip(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost", socket.gethostname().lower()) or name.endswith(LOCAL_SUFFIXES)
    return address.is_loopback or address.is_private or address.is_unspecified


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]


class HostCheck:
    """ASGI middleware: 403 for a Host header that is not local."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        if is_local_host(host):
            await self.app(scope, receive, send)
            return
        body = orjson.dumps(
            {"error": f"host {host[:100]!r} is not local; to serve it, listen on an address that is not loopback"}
        )
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})
