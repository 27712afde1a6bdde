"""One table turns any error into a status and a body, for both families."""

from __future__ import annotations

import pytest

from scheduler.errors import CrashLoopError, QueueFullError, RunnerRequestError
from server.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    NotDoneHereError,
    TooLargeError,
    body_of,
    failure_of,
    is_defect,
    status_of,
)
from server.schemas.messages import MessageError
from server.schemas.options import OptionError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequestError("x"), 400),
        (OptionError("x"), 400),
        (MessageError("x"), 400),
        (ModelNotFoundError("x"), 404),
        (TooLargeError("x"), 413),
        (NotDoneHereError("x"), 501),
        (QueueFullError(), 503),
        (RunnerRequestError(501, "this model does not support embeddings"), 501),
        (KeyError("x"), 500),
    ],
)
def test_every_error_has_its_status(error: Exception, status: int) -> None:
    assert failure_of(error).status == status


def test_only_what_nobody_foresaw_is_a_defect() -> None:
    assert is_defect(KeyError("x"))
    assert not is_defect(QueueFullError())


def test_a_full_queue_says_when_to_try_again() -> None:
    failure = failure_of(QueueFullError())
    assert failure.headers == {"retry-after": "1"}
    assert failure.message == "server busy, please try again.  maximum pending requests exceeded"


def test_a_model_that_keeps_crashing_says_when_to_try_again() -> None:
    assert failure_of(CrashLoopError(4, 3.2, "signal: SIGSEGV")).headers == {"retry-after": "4"}


def test_the_body_is_that_of_the_family() -> None:
    failure = failure_of(ModelNotFoundError("model 'x' not found", param="model"))
    assert body_of(failure, "/api/chat") == {"error": "model 'x' not found"}
    assert body_of(failure, "/v1/chat/completions") == {
        "error": {"message": "model 'x' not found", "type": "not_found_error", "param": "model", "code": None}
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (501, "invalid_request_error"), (503, "api_error"), (500, "api_error")],
)
def test_openai_types_follow_the_status(status: int, kind: str) -> None:
    body = body_of(failure_of(RunnerRequestError(status, "x")), "/v1/models")
    assert body["error"]["type"] == kind


@pytest.mark.parametrize(("path", "status"), [("/api/embed", 501), ("/v1/embeddings", 400)])
def test_openais_clients_do_not_ask_again_for_what_is_not_done(path: str, status: int) -> None:
    assert status_of(failure_of(RunnerRequestError(501, "x")), path) == status
    assert status_of(failure_of(RunnerRequestError(500, "x")), path) == 500


def test_a_prompt_over_the_context_has_openais_code() -> None:
    failure = failure_of(RunnerRequestError(400, "the input length exceeds the context length"))
    assert failure.code == "context_length_exceeded"
