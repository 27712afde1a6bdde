"""Looks at devices, on a thread of its own: a driver that hangs holds up who asks for devices, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from scheduler.devices import Machine

Answer = TypeVar("Answer")


class Lookout:
    """Asks one question at a time; ``close`` gives up those that wait."""

    def __init__(self, machine: Callable[[], Machine]) -> None:
        """``machine`` blocks."""
        self._machine = machine
        self._thread = ThreadPoolExecutor(1, "lookout")

    async def machine(self) -> Machine:
        """What layers can be placed on at this moment."""
        return await self.ask(self._machine)

    async def ask(self, question: Callable[[], Answer]) -> Answer:
        """Any other question that a driver or the kernel has to answer."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, question)

    def close(self) -> None:
        """May be called again."""
        self._thread.shutdown(wait=False, cancel_futures=True)
