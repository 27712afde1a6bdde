"""How the commands talk to a running server: its own HTTP API."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx
import orjson

from server.settings import Settings

CONNECT_TIMEOUT_S = 5.0


class CommandError(Exception):
    """A command cannot do what it was asked. The message is all that the user gets to see."""


class Client:
    """A connection to the server that ``SHALE_HOST`` names. Every method raises CommandError."""

    def __init__(self, url: str) -> None:
        self._url = url
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        self._http = httpx.Client(base_url=url, timeout=timeout, trust_env=False)

    @classmethod
    def of_environment(cls) -> Client:
        return cls(Settings.from_environment(os.environ).address.url)

    def get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._ask("POST", path, body)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The objects of a streamed answer. Leaving the iteration closes the connection, which stops the generation."""
        try:
            with self._http.stream("POST", path, content=orjson.dumps(body)) as response:
                if response.is_error:
                    response.read()
                    raise CommandError(_error_text(response))
                for line in response.iter_lines():
                    yield _checked(orjson.loads(line))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        content = orjson.dumps(body) if body is not None else None
        try:
            response = self._http.request(method, path, content=content)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise CommandError(_error_text(response))
        answer: dict[str, Any] = orjson.loads(response.content)
        return answer

    def _unreachable(self, error: httpx.TransportError) -> CommandError:
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return CommandError(f"no server answers at {self._url}; start one with: shale serve")
        return CommandError(f"the connection to {self._url} broke: {error or type(error).__name__}")


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise CommandError(str(answer["error"]))
    return answer


def _error_text(response: httpx.Response) -> str:
    try:
        return str(orjson.loads(response.content)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"the server answered {response.status_code}: {response.text[:200]}"
