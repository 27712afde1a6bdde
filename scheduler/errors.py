"""Everything that can go wrong between a request and a loaded model.

    SchedulerError
    ├── SettingsError              a setting or request value that cannot be meant (400)
    ├── QueueFullError             too many requests wait for a load (503)
    ├── CrashLoopError             its runner keeps crashing; not before a while (503)
    ├── ShuttingDownError          the server is closing (503)
    ├── ModelFileError             the model's file cannot be read or is refused (500)
    ├── LayoutError                the layers cannot be placed
    │   ├── RequireFullError       not everything fits, and everything was asked for (500)
    │   ├── NotOnGPUError          layers would stay on the CPU, and fail_if_not_gpu was asked for (500)
    │   └── SystemMemoryError      host memory is too small (500)
    ├── LoadError                  the runner answered, but the model did not load
    │   ├── LayoutNotAllocatedError  no layout could be allocated (500)
    │   ├── CommitError            the reserved memory could not be filled (500)
    │   └── LoadTimeoutError       loading made no progress for too long (500)
    └── RunnerError                the process itself
        ├── RunnerStartError       it could not be started (500)
        ├── RunnerExitedError      it ended before the model was ready (500)
        ├── RunnerUnreachableError it does not accept connections (500)
        ├── RunnerDiedError        it ended in the middle of an answer (500)
        └── RunnerRequestError     it refused the request: its status and its text

Every error has ``status``, the HTTP status that the front server answers with, and a message that is
the text of the answer; one of status 503 may have ``retry_after_s``. Texts that Ollama's clients know
are kept letter by letter.
"""

from __future__ import annotations

import math
from http import HTTPStatus

from scheduler.sizes import human_bytes


class SchedulerError(Exception):
    """Base. ``status`` is the HTTP status of the answer, ``str(error)`` its text."""

    status: int = HTTPStatus.INTERNAL_SERVER_ERROR


class SettingsError(SchedulerError, ValueError):
    """A value that cannot be meant. The message says what was found and what is allowed."""

    status = HTTPStatus.BAD_REQUEST


class QueueFullError(SchedulerError):
    """More requests wait for a model to load than the queue holds."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self) -> None:
        super().__init__("server busy, please try again.  maximum pending requests exceeded")


class CrashLoopError(SchedulerError):
    """The model's runner has crashed again and again: no new one is started for ``retry_after_s`` seconds."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, num_crashes: int, rest_s: float, last_words: str) -> None:
        self.retry_after_s = math.ceil(rest_s)
        text = f"model runner has crashed {num_crashes} times in a row, next try in {self.retry_after_s} s"
        super().__init__(f"{text}: {last_words}" if last_words else text)
        self.last_words = last_words


class ShuttingDownError(SchedulerError):
    """The server is closing and loads nothing any more."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self) -> None:
        super().__init__("server is shutting down")


class ModelFileError(SchedulerError):
    """The model's file is missing, damaged, or of a kind that is not known."""


# ---- layout ------------------------------------------------------------------------------------


class LayoutError(SchedulerError):
    """The layers cannot be placed on this machine as asked."""


class RequireFullError(LayoutError):
    """Every layer was to be on a GPU (or in free memory, without swap) and that is not possible."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(f"{reason} unable to load full model on GPU".lstrip())

    @classmethod
    def of_system_memory(cls, required_bytes: int, available_bytes: int) -> RequireFullError:
        return cls(
            f"model requires more system memory ({human_bytes(required_bytes)}) "
            f"than is currently available ({human_bytes(available_bytes)})"
        )


class NotOnGPUError(LayoutError):
    """``fail_if_not_gpu`` was asked for, and layers would stay on the CPU. ``reason`` says which and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"fail_if_not_gpu: {reason}")


class SystemMemoryError(LayoutError):
    """What must stay in host memory is larger than free memory and free swap together."""

    def __init__(self, required_bytes: int, available_bytes: int) -> None:
        super().__init__(
            f"model requires more system memory ({human_bytes(required_bytes)}) "
            f"than is available ({human_bytes(available_bytes)})"
        )
        self.required_bytes = required_bytes
        self.available_bytes = available_bytes


# ---- load --------------------------------------------------------------------------------------


class LoadError(SchedulerError):
    """The runner answered, but the model could not be loaded."""


class LayoutNotAllocatedError(LoadError):
    """Every layout that should have fitted was refused by a device.

    ``reason`` is what the runner said about the last one.
    """

    def __init__(self, num_gpu: int, reason: str) -> None:
        text = "memory layout cannot be allocated"
        if num_gpu >= 0:
            text += f" with num_gpu = {num_gpu}"
        super().__init__(f"{text}: {reason}" if reason else text)


class CommitError(LoadError):
    """Memory was reserved, yet the weights could not be put there."""

    def __init__(self, reason: str) -> None:
        text = "failed to commit memory for model"
        super().__init__(f"{text}: {reason}" if reason else text)


class LoadTimeoutError(LoadError):
    """Neither status nor progress changed for the whole stall timeout."""

    def __init__(self, progress: float, last_words: str) -> None:
        text = f"timed out waiting for llama runner to start - progress {progress:.2f}"
        super().__init__(f"{text} - {last_words}" if last_words else text)


# ---- the runner process ------------------------------------------------------------------------


class RunnerError(SchedulerError):
    """The runner process is not there as it should be. ``last_words`` is what it said at the end."""

    def __init__(self, message: str, last_words: str = "") -> None:
        super().__init__(message)
        self.last_words = last_words


class RunnerStartError(RunnerError):
    """The operating system did not start the process."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"error starting runner: {reason}")


class RunnerExitedError(RunnerError):
    """The process ended while the model was loading."""

    def __init__(self, last_words: str) -> None:
        super().__init__(f"llama runner process has terminated: {last_words}", last_words)


class RunnerUnreachableError(RunnerError):
    """The process does not accept a connection, or drops it before it answers."""

    def __init__(self, last_words: str) -> None:
        text = (
            "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
            "check ollama server logs for details"
        )
        super().__init__(f"{text}: {last_words}" if last_words else text, last_words)


class RunnerDiedError(RunnerError):
    """The connection ended in the middle of an answer."""

    def __init__(self, last_words: str) -> None:
        super().__init__(f"an error was encountered while running the model: {last_words}", last_words)


class RunnerRequestError(RunnerError):
    """The runner refused the request. Status and text are the runner's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
