"""Work in the background, which nobody waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

LOG = logging.getLogger("scheduler")


class Tasks:
    """Tasks of the running event loop, each kept until it ends; one that fails is logged."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """``name`` is for the log."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._end)

    def cancel(self) -> None:
        """Those that run at this moment; ``wait`` says when they have ended."""
        for task in self._running:
            task.cancel()

    async def wait(self) -> None:
        """Returns when none is left, those included that start meanwhile."""
        while self._running:
            await asyncio.wait(self._running)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("%s failed", task.get_name(), exc_info=error)
