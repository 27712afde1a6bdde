"""What all work of the engine has in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Line = dict[str, Any]
"""One line of an answer, as ``runner.protocol`` describes them."""


class Work(Protocol):
    """One request. Whoever asked hears lines through ``receive`` and may set ``is_cancelled``."""

    receive: Callable[[Line], None]
    is_cancelled: bool


Tell = Callable[[Work, Line], None]
AnyWork = TypeVar("AnyWork", bound=Work)


def cancelled(works: deque[AnyWork] | list[AnyWork]) -> list[AnyWork]:
    return [work for work in works if work.is_cancelled]


def sentence(error: Exception) -> str:
    """What a client may read of an unexpected error."""
    return f"{type(error).__name__}: {error}"
