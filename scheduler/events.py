"""What the scheduler tells whoever counts: one call as each thing happens, and nothing is asked in return.

What *is* (bytes on devices, states) is not told here: ``Scheduler.running()`` and ``Scheduler.residents()`` say it to
whoever looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Protocol


class Eviction(Enum):
    """Why a model had to go for another one."""

    MEMORY = "memory"  # the other one did not fit beside it
    MAX_MODELS = "max_models"  # as many are loaded as may be


class Unload(Enum):
    """Why a loaded model ended. Every model that was ``loaded`` ends with one of these."""

    EXPIRED = "expired"  # its keep_alive was over
    ASKED = "asked"  # a request said keep_alive 0, or unload
    EVICTED = "evicted"  # for another model; ``evicted`` has been told before
    RELOAD = "reload"  # to be loaded again with other options
    CRASHED = "crashed"  # its process ended by itself; ``crashed`` has been told before
    SHUTDOWN = "shutdown"  # the scheduler closes


class Observer(Protocol):
    """Called from the scheduler's event loop, in the middle of its work: must return at once and raise nothing.

    ``model`` is the model's name. Durations are seconds of the scheduler's clock.
    """

    def queued(self, num_waiting: int) -> None:
        """So many requests wait for a model to load, from now on."""

    def waited(self, seconds: float) -> None:
        """A request has left the queue after so long, whether it got its model or not."""

    def load_started(self, model: str) -> None:
        """Its turn has come; one ``loaded`` or ``load_failed`` follows."""

    def loaded(self, model: str, seconds: float, phases: Mapping[str, float]) -> None:
        """It is ready. ``phases``: parts of ``seconds`` by name (``process``, ``layout``, ``weights``)."""

    def load_failed(self, model: str, error: BaseException) -> None:
        """``error`` is what the waiting requests get."""

    def evicted(self, model: str, reason: Eviction, freed_bytes: int) -> None:
        """The choice has been made; the model goes after its last request. ``freed_bytes``: on all devices."""

    def crashed(self, model: str) -> None:
        """Its process ended without being asked to, while loading or later."""

    def unloaded(self, model: str, reason: Unload) -> None:
        """Its process is gone."""


class NoObserver:
    """Nobody counts."""

    def queued(self, num_waiting: int) -> None: ...

    def waited(self, seconds: float) -> None: ...

    def load_started(self, model: str) -> None: ...

    def loaded(self, model: str, seconds: float, phases: Mapping[str, float]) -> None: ...

    def load_failed(self, model: str, error: BaseException) -> None: ...

    def evicted(self, model: str, reason: Eviction, freed_bytes: int) -> None: ...

    def crashed(self, model: str) -> None: ...

    def unloaded(self, model: str, reason: Unload) -> None: ...
