"""Texts and statuses that clients know."""

from __future__ import annotations

import pytest

from scheduler import errors
from scheduler.errors import SchedulerError

UNEXPECTED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (errors.QueueFullError(), 503, "server busy, please try again.  maximum pending requests exceeded"),
        (errors.RequireFullError(), 500, "unable to load full model on GPU"),
        (
            errors.RequireFullError.of_system_memory(2**30, 2**20),
            500,
            "model requires more system memory (1.0 GiB) than is currently available (1.0 MiB) "
            "unable to load full model on GPU",
        ),
        (
            errors.SystemMemoryError(2**30, 2**20),
            500,
            "model requires more system memory (1.0 GiB) than is available (1.0 MiB)",
        ),
        (errors.LayoutNotAllocatedError(-1, ""), 500, "memory layout cannot be allocated"),
        (errors.LayoutNotAllocatedError(7, ""), 500, "memory layout cannot be allocated with num_gpu = 7"),
        (errors.CommitError(""), 500, "failed to commit memory for model"),
        (errors.LoadTimeoutError(0.5, ""), 500, "timed out waiting for llama runner to start - progress 0.50"),
        (errors.RunnerStartError("no"), 500, "error starting runner: no"),
        (errors.RunnerExitedError("exit status 1"), 500, "llama runner process has terminated: exit status 1"),
        (errors.RunnerUnreachableError(""), 500, UNEXPECTED),
        (errors.RunnerUnreachableError("signal: SIGKILL"), 500, f"{UNEXPECTED}: signal: SIGKILL"),
        (errors.RunnerDiedError("x"), 500, "an error was encountered while running the model: x"),
        (errors.RunnerRequestError(418, "teapot"), 418, "teapot"),
    ],
)
def test_status_and_text(error, status, text):
    assert isinstance(error, SchedulerError)
    assert error.status == status
    assert str(error) == text


def test_every_error_is_drawn_in_the_tree():
    names = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(names) > 15
    assert [name for name in names if name not in (errors.__doc__ or "")] == []
