"""How models go: after their keep-alive time, because they were asked to, for others, or because their process died.

A model that has to go takes no new requests from then on; its process ends after its last request.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from pathlib import Path

from scheduler.clock import Clock
from scheduler.crashes import Crashes
from scheduler.errors import RunnerExitedError, RunnerUnreachableError, ShuttingDownError
from scheduler.events import Eviction, Observer, Unload
from scheduler.keep_alive import FOREVER_S
from scheduler.resident import Resident, State
from scheduler.tasks import Tasks

LOG = logging.getLogger("scheduler")


class Unloads:
    """Every end of a model. ``residents`` is the scheduler's table, from which they go; ``crashes`` counts deaths."""

    def __init__(
        self, residents: MutableMapping[Path, Resident], crashes: Crashes, clock: Clock, observer: Observer
    ) -> None:
        self._residents = residents
        self._crashes = crashes
        self._clock = clock
        self._observer = observer
        self._tasks = Tasks()

    # ---- who has to go -------------------------------------------------------------------------

    def after_last_request(self, resident: Resident) -> None:
        """Nobody uses it at this moment: starts the timer, or ends what was only waiting for that."""
        self._stop_if_idle(resident)
        if resident.state is State.READY:
            self._await_expiry(resident)

    def retire(self, resident: Resident, reason: Unload) -> None:
        """Takes no new request from now on, and stops when nobody uses it."""
        if resident.state is not State.READY:
            return
        resident.state = State.LEAVING
        if not self._has_crashed(resident):
            resident.unload = reason
        resident.cancel_timer()
        self._stop_if_idle(resident)

    def evict(self, resident: Resident, reason: Eviction) -> None:
        """``retire``, for another model."""
        LOG.info("unloading %s to make room", resident.model.name)
        held = resident.memory.total_bytes if resident.memory else 0
        self._observer.evicted(resident.model.name, reason, held)
        self.retire(resident, Unload.EVICTED)

    def watch(self, resident: Resident) -> None:
        """From now on, if its process ends without being asked, it is forgotten: the next request starts a new one."""
        self._tasks.start(f"watch {resident.model.name}", self._watch(resident))

    def retire_all(self) -> None:
        """Whoever uses them."""
        for resident in list(self._residents.values()):
            resident.num_users = 0
            self.retire(resident, Unload.SHUTDOWN)
            self._stop_if_idle(resident)

    async def close(self) -> None:
        """Returns when all have gone. Before: ``retire_all``, and no load is under way any more."""
        await self._tasks.wait()
        for resident in list(self._residents.values()):  # their loads were cancelled before they began
            self._forget(resident, ShuttingDownError())

    def _await_expiry(self, resident: Resident) -> None:
        if resident.keep_alive_s <= 0:
            self.retire(resident, Unload.ASKED)
        elif resident.keep_alive_s < FOREVER_S:
            resident.timer = self._clock.call_later(resident.keep_alive_s, lambda: self._expire(resident))

    def _expire(self, resident: Resident) -> None:
        if resident.state is State.READY:
            LOG.info("%s was not used for %g s", resident.model.name, resident.keep_alive_s)
            self.retire(resident, Unload.EXPIRED)

    async def _watch(self, resident: Resident) -> None:
        assert resident.started is not None
        await resident.started.process.wait()
        if resident.state in (State.READY, State.LEAVING):
            self._has_crashed(resident)
            await self.clear_away(resident)

    def _has_crashed(self, resident: Resident) -> bool:
        """Whether the process of a loaded model, which nobody has told to end yet, has ended: counted once.

        Asked by everybody who is about to end it: the watch may be the last to hear of the end.
        """
        if resident.unload is Unload.CRASHED:
            return True
        process = resident.started.process if resident.started else None
        if process is None or process.is_alive:
            return False
        last_words = process.last_words()
        LOG.error("the runner of %s ended: %s", resident.model.name, last_words)
        resident.unload = Unload.CRASHED
        self._count_crash(resident, last_words)
        return True

    def _stop_if_idle(self, resident: Resident) -> None:
        if resident.state is State.LEAVING and resident.is_idle:
            resident.state = State.STOPPING
            self._tasks.start(f"stop {resident.model.name}", self._stop(resident))

    async def _stop(self, resident: Resident) -> None:
        if not self._has_crashed(resident):
            LOG.info("unloading %s", resident.model.name)
        await self.clear_away(resident)

    # ---- the end -------------------------------------------------------------------------------

    async def clear_away(self, resident: Resident, error: BaseException | None = None) -> None:
        """Ends the process and forgets the resident. May be called again.

        ``error`` is why it did not load; those who still wait for it get that.
        """
        resident.cancel_timer()
        try:
            if resident.started is not None:
                await resident.started.stop()
        finally:
            self._forget(resident, error)

    def drop(self, resident: Resident) -> None:
        """Takes it out of the table. Nobody is told: what has begun to load ends by ``clear_away``."""
        resident.state = State.GONE
        if self._residents.get(resident.model.path) is resident:
            del self._residents[resident.model.path]
        resident.gone.set()

    def _forget(self, resident: Resident, error: BaseException | None) -> None:
        if resident.state is State.GONE:
            return
        self._tell_end(resident, error)
        self.drop(resident)
        if error is not None and not resident.ready.done():
            resident.ready.set_exception(error)

    def _tell_end(self, resident: Resident, error: BaseException | None) -> None:
        if error is None:
            self._observer.unloaded(resident.model.name, resident.unload)
            return
        if isinstance(error, (RunnerExitedError, RunnerUnreachableError)):
            self._count_crash(resident, error.last_words)
        self._observer.load_failed(resident.model.name, error)

    def _count_crash(self, resident: Resident, last_words: str) -> None:
        self._crashes.add(resident.model.path, self._clock.monotonic(), last_words)
        self._observer.crashed(resident.model.name)
