"""Reading a request: size, JSON, fields."""

from __future__ import annotations

from typing import TypeVar

import orjson
from fastapi import Request as HttpRequest
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from server.errors import ClientGoneError, InvalidRequestError, TooLargeError
from server.schemas.base import Request, parameter_of, sentence_of

MAX_BODY_BYTES = 32 << 20

R = TypeVar("R", bound=Request)

_JSON_NAMES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


async def read_request(request: HttpRequest, kind: type[R]) -> R:
    """The body as ``kind``. The content type does not matter: curl sends a wrong one.

    Raises InvalidRequestError (no body, no JSON, not an object, a bad field) and TooLargeError.
    """
    body = await _read_bytes(request)
    if not body:
        raise InvalidRequestError("missing request body")
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"invalid JSON: {error}") from error
    if not isinstance(given, dict):
        raise InvalidRequestError(f"the request body must be a JSON object (found {_JSON_NAMES[type(given)]})")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise InvalidRequestError(sentence_of(error), param=parameter_of(error)) from error


async def _read_bytes(request: HttpRequest) -> bytes:
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise TooLargeError(f"the request body is over {MAX_BODY_BYTES} bytes, which is what is allowed")
    except ClientDisconnect as error:
        raise ClientGoneError("request canceled") from error
    return bytes(body)
