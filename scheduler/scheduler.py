"""Which models are loaded: starts runners, shares them between requests, and lets them go.

One runner per model file. A request for a loaded model gets it at once; other requests wait for a load, and those for
the same model wait for the same load. A load belongs to the scheduler and not to the request that caused it: a client
that leaves does not abort it once it has begun. ``scheduler.loading`` says how several loads go side by side,
``scheduler.unloading`` when and how a model goes, ``scheduler.reloading`` when one is loaded anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from scheduler.clock import Clock, SystemClock
from scheduler.crashes import Crashes
from scheduler.devices import Devices, Machine
from scheduler.errors import (
    QueueFullError,
    SchedulerError,
    ShuttingDownError,
)
from scheduler.estimate import Estimates, Estimator
from scheduler.events import NoObserver, Observer, Unload
from scheduler.gpu import GPU
from scheduler.keep_alive import FOREVER_S
from scheduler.loading import AbandonedError, Loads, Workshop
from scheduler.lookout import Lookout
from scheduler.options import (
    LoadOptions,
    ModelFile,
    context_of,
)
from scheduler.plan import Plan, make_plan
from scheduler.rehearsal import Case
from scheduler.reloading import REFUSALS, Reloads
from scheduler.resident import ModelState, Resident, RunningModel, State
from scheduler.settings import SchedulerSettings
from scheduler.spawn import Spawn, spawn_runner
from scheduler.tasks import Tasks
from scheduler.unloading import Unloads

__all__ = ["LoadOptions", "ModelFile", "ModelState", "RunningModel", "Scheduler", "SchedulerSettings"]

LOG = logging.getLogger("scheduler")

_NO_OPTIONS = LoadOptions()


class Scheduler:
    """The one owner of all runners. Use it from one event loop; ``close`` ends every process.

    Errors of ``acquire`` are SchedulerErrors, each with its HTTP status.
    """

    def __init__(
        self,
        settings: SchedulerSettings | None = None,
        *,
        spawn: Spawn = spawn_runner,
        clock: Clock | None = None,
        estimates: Estimates | None = None,
        machine: Callable[[], Machine] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Raises SettingsError for devices that cannot be used."""
        self._settings = settings or SchedulerSettings()
        self.devices = Devices(self._settings.devices, self._settings.sim_ledger)
        self._settings = replace(self._settings, sim_ledger=self.devices.sim_ledger)  # for the runners
        self._lookout = Lookout(machine or self.devices.machine)
        self._spawn = spawn
        self._clock = clock or SystemClock()
        self._estimates = estimates or Estimator()
        self._observer = observer or NoObserver()
        self._residents: dict[Path, Resident] = {}
        self._crashes = Crashes()
        self._num_waiting = 0
        self._unloads = Unloads(self._residents, self._crashes, self._clock, self._observer)
        self._loads = Loads(
            Workshop(
                settings=self._settings,
                spawn=lambda *arguments: self._spawn(*arguments),
                clock=self._clock,
                estimates=self._estimates,
                machine=self._lookout.machine,
                observer=self._observer,
            ),
            self._residents,
            self._unloads.evict,
        )
        self._reloads = Reloads(
            self._residents, self._crashes, self._settings, self._clock, self._estimates, self._lookout.machine
        )
        self._load_tasks = Tasks()
        self._is_closed = False

    # ---- the server's side ---------------------------------------------------------------------

    @asynccontextmanager
    async def acquire(
        self, model: ModelFile, options: LoadOptions = _NO_OPTIONS, keep_alive_s: float | None = None
    ) -> AsyncIterator[RunningModel]:
        """The model, loaded, for as long as the block runs.

        ``keep_alive_s``: how long it stays afterwards; None keeps what it has (at first the server's default),
        0 unloads it after its last request, a negative number or inf keeps it for ever.
        """
        asked_at = self._clock.monotonic()
        resident = await self._enter(model, options)
        try:
            if keep_alive_s is not None:
                resident.keep_alive_s = _normal(keep_alive_s)
            running = resident.snapshot(load_duration_ns=int((self._clock.monotonic() - asked_at) * 1e9))
            yield replace(running, num_ctx=context_of(options, running.num_ctx))
            if resident.is_usable:
                self._crashes.forgive(model.path)
        finally:
            self._leave(resident)

    async def unload(self, model: ModelFile) -> None:
        """Returns when the model is unloaded; if requests still use it, at once: it goes after the last of them."""
        resident = self._residents.get(model.path)
        if resident is None:
            return
        resident.keep_alive_s = 0.0
        if resident.state is State.READY and resident.is_idle:
            self._unloads.retire(resident, Unload.ASKED)
            await resident.gone.wait()

    def running(self) -> list[RunningModel]:
        """The loaded models, the one that stays longest first."""
        found = [r.snapshot() for r in self._residents.values() if r.is_usable]
        return sorted(found, key=lambda running: running.expires_at, reverse=True)

    def residents(self) -> list[ModelState]:
        """Every model that is loading, loaded or stopping, the one that stays longest first."""
        return sorted((r.describe() for r in self._residents.values()), key=lambda each: each.expires_at, reverse=True)

    async def machine(self) -> Machine:
        """What layers can be placed on at this moment."""
        return await self._lookout.machine()

    async def gpus(self) -> tuple[GPU, ...]:
        """Every device beside the CPU, usable or not."""
        return await self._lookout.ask(self.devices.gpus)

    async def plan(self, model: ModelFile, options: LoadOptions, machine: Machine | None = None) -> Plan:
        """What loading the model would come to: alone on ``machine``, or now on this one, among all that is loaded.

        Raises what loading would: SettingsError, ModelFileError, LayoutError, LayoutNotAllocatedError.
        """
        if machine is None:
            return await self._loads.plan(model.path, options)
        case = Case(model.path, options, self._settings, machine)
        return await asyncio.to_thread(make_plan, self._estimates, case)

    async def close(self) -> None:
        """Stops every runner, whatever it is doing. ``acquire`` refuses from now on."""
        self._is_closed = True
        self._unloads.retire_all()
        self._load_tasks.cancel()
        await self._load_tasks.wait()
        await self._unloads.close()
        self.devices.close()
        self._lookout.close()

    # ---- entering and leaving ------------------------------------------------------------------

    async def _enter(self, model: ModelFile, options: LoadOptions) -> Resident:
        """A usable resident with one more user."""
        resident = self._residents.get(model.path)
        is_full = self._num_waiting >= self._settings.max_queue
        if resident is not None and resident.is_usable and not self._reloads.is_needed(resident, model, options):
            if is_full or not self._reloads.may_grow(resident, options):
                resident.enter()
                return resident
        elif is_full:
            raise QueueFullError
        self._count_waiting(1)
        asked_at = self._clock.monotonic()
        try:
            return await self._enter_slowly(model, options)
        finally:
            self._count_waiting(-1)
            self._observer.waited(self._clock.monotonic() - asked_at)

    def _count_waiting(self, change: int) -> None:
        self._num_waiting += change
        self._observer.queued(self._num_waiting)

    async def _enter_slowly(self, model: ModelFile, asked: LoadOptions) -> Resident:
        options, keep_alive_s = asked, self._settings.keep_alive_s
        while True:
            if self._is_closed:
                raise ShuttingDownError
            resident = self._residents.get(model.path)
            if resident is None:
                self._crashes.check(model.path, self._clock.monotonic())
                resident = self._begin(model, options, _normal(keep_alive_s))
            elif resident.is_on_its_way_out:
                await resident.gone.wait()
                continue
            try:
                if await self._try_enter(resident, model, asked, options):
                    return resident
            except REFUSALS:
                if options == asked or resident.options == asked:
                    raise
                options = asked  # what others have asked for cannot be had; this request does without it
                continue
            if resident.memory is not None:  # it had loaded: whoever comes next serves those who came before as well
                options = self._reloads.next_options(resident.options, asked, options)
                keep_alive_s = resident.keep_alive_s
                await self._reloads.check(resident, asked, options)
            self._unloads.retire(resident, Unload.RELOAD)

    async def _try_enter(self, resident: Resident, model: ModelFile, asked: LoadOptions, options: LoadOptions) -> bool:
        """False: it is not what ``asked`` needs, or it went away; look again. Raises what its load raised.

        ``options``: those of a load that this request has begun, or would begin.
        """
        resident.enter()
        is_right = False
        try:
            await asyncio.shield(resident.ready)
            is_right = (
                resident.is_usable
                and not self._reloads.is_needed(resident, model, asked)
                and not (self._reloads.may_grow(resident, asked) and await self._reloads.would_grow(resident, asked))
                and resident.is_usable  # still
            )
        except SchedulerError:
            if resident.options in (asked, options) or self._is_closed:
                raise
            # It failed with the options of another request; these may do better.
        finally:
            if not is_right:
                self._leave(resident)
        return is_right

    def _leave(self, resident: Resident) -> None:
        """One request less; the last one starts the timer, or ends what was only waiting for it."""
        if resident.num_users == 0:
            return  # close() has sent everybody away
        resident.leave()
        if resident.is_idle:
            self._unloads.after_last_request(resident)

    # ---- loading -------------------------------------------------------------------------------

    def _begin(self, model: ModelFile, options: LoadOptions, keep_alive_s: float) -> Resident:
        resident = Resident(model, options, keep_alive_s, self._clock)
        self._reloads.look_around(resident)
        self._residents[model.path] = resident
        self._load_tasks.start(f"load {model.name}", self._load(resident))
        return resident

    async def _load(self, resident: Resident) -> None:
        """Takes the resident to READY; ``resident.ready`` tells the waiters how it went."""
        asked_at = self._clock.monotonic()
        try:
            await self._loads.load(resident)
        except AbandonedError:
            self._unloads.drop(resident)
            return
        except SchedulerError as error:
            LOG.warning("%s did not load: %s", resident.model.name, error)
            await self._unloads.clear_away(resident, error)
            return
        except asyncio.CancelledError:
            await self._unloads.clear_away(resident, ShuttingDownError())
            return
        except BaseException as error:
            await self._unloads.clear_away(resident, error)
            raise
        ready_at = self._clock.monotonic()
        resident.load_duration_ns = int((ready_at - asked_at) * 1e9)
        resident.state = State.READY
        self._observer.loaded(resident.model.name, ready_at - resident.began_at_s, resident.phases)
        self._unloads.watch(resident)
        resident.ready.set_result(None)
        if resident.is_idle:  # everybody who wanted it has left
            self._unloads.after_last_request(resident)


def _normal(keep_alive_s: float) -> float:
    return FOREVER_S if keep_alive_s < 0 or math.isinf(keep_alive_s) else keep_alive_s
