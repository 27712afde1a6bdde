"""Errors of the public APIs, and the one place where any error becomes a status and a body.

    ApiError                        status, message, param, headers
    ├── InvalidRequestError         400  a field, a value, a name
    ├── ModelNotFoundError          404
    ├── TooLargeError               413
    ├── ClientGoneError             499  nobody reads the answer
    └── NotDoneHereError            501  Ollama does it, Shale does not

Errors of lower floors keep their own types. ``failure_of`` knows them by ``TABLE``, or by a ``status`` of their own
(the scheduler's have one). Everything else is a defect: 500, and the log has the traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.schemas.messages import MessageError
from server.schemas.options import OptionError

OPENAI_PREFIX = "/v1/"


class ApiError(Exception):
    """An error that a client is told in its own words."""

    status = 500

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class InvalidRequestError(ApiError):
    """The request cannot be served as it stands."""

    status = 400


class ModelNotFoundError(ApiError):
    """No served file has the name."""

    status = 404


class TooLargeError(ApiError):
    """The request body is over the limit."""

    status = 413


class ClientGoneError(ApiError):
    """The client closed its connection before it was answered."""

    status = 499


class NotDoneHereError(ApiError):
    """Ollama has it, and Shale leaves it to other means, which the message names."""

    status = 501


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as the wire has it."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


TABLE: Mapping[type[Exception], int] = {OptionError: 400, MessageError: 400}
"""Status of the errors that know nothing of HTTP."""

TYPE_OF_STATUS: Mapping[int, str] = {404: "not_found_error", 429: "rate_limit_error"}
"""OpenAI's name for an error; other 4xx are ``invalid_request_error``, 5xx ``api_error``."""

OPENAI_STATUS: Mapping[int, int] = {501: 400}
"""Where OpenAI has another status than Ollama. Its clients take a 5xx for a fault of the server, and ask again."""

RETRY_AFTER_S = 1  # where the error does not say
CONTEXT_LENGTH_TEXT = "exceeds the context length"  # the runner's refusal, for which OpenAI has a code
CONTEXT_LENGTH_CODE = "context_length_exceeded"


def failure_of(error: BaseException) -> Failure:
    """Translate any exception. An unknown one becomes a 500 that says its type and text."""
    status = _status_of(error)
    if status is None:
        return Failure(500, f"internal error: {type(error).__name__}: {error}")
    headers = {"retry-after": str(getattr(error, "retry_after_s", RETRY_AFTER_S))} if status == 503 else {}
    code = CONTEXT_LENGTH_CODE if CONTEXT_LENGTH_TEXT in str(error) else getattr(error, "code", None)
    return Failure(status, str(error), getattr(error, "param", None), code, headers)


def is_defect(error: BaseException) -> bool:
    """Whether nobody foresaw this error, so that the log should have its traceback."""
    return _status_of(error) is None


def _status_of(error: BaseException) -> int | None:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status
    return next((TABLE[each] for each in type(error).__mro__ if each in TABLE), None)


def body_of(failure: Failure, path: str) -> dict[str, Any]:
    """The error body of the API family that ``path`` belongs to."""
    return openai_body(failure) if path.startswith(OPENAI_PREFIX) else ollama_body(failure)


def status_of(failure: Failure, path: str) -> int:
    """The status of the answer in the API family that ``path`` belongs to."""
    return _openai_status(failure) if path.startswith(OPENAI_PREFIX) else failure.status


def ollama_body(failure: Failure) -> dict[str, Any]:
    return {"error": failure.message}


def openai_body(failure: Failure) -> dict[str, Any]:
    status = _openai_status(failure)
    kind = TYPE_OF_STATUS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"error": {"message": failure.message, "type": kind, "param": failure.param, "code": failure.code}}


def _openai_status(failure: Failure) -> int:
    return OPENAI_STATUS.get(failure.status, failure.status)
