"""When a loaded model has to be loaded anew for a request, and when that is worth it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

from scheduler.clock import Clock
from scheduler.crashes import Crashes
from scheduler.devices import Machine
from scheduler.errors import LayoutError, LayoutNotAllocatedError, SchedulerError, SettingsError
from scheduler.estimate import Estimates
from scheduler.options import (
    AUTO,
    LoadOptions,
    ModelFile,
    layers_wanted,
    merge,
    must_be_on_gpu,
    needs_reload,
    resolve,
)
from scheduler.plan import largest_num_ctx, request_for
from scheduler.rehearsal import Case, rehearse_as_asked
from scheduler.reservations import bytes_of, total, with_freed
from scheduler.resident import Resident, State
from scheduler.settings import SchedulerSettings

LOOK_AGAIN_S = 30.0  # for memory that other programs have given back, where "auto" came to little
CLEARLY_MORE = 2  # times the context that is loaded; less than the usual one is not worth a reload

REFUSALS = (LayoutError, LayoutNotAllocatedError, SettingsError)
"""Errors of a load that other options may not meet."""


class Reloads:
    """Decides about reloads; changes nothing but what a resident knows of its surroundings."""

    def __init__(
        self,
        residents: Mapping[Path, Resident],
        crashes: Crashes,
        settings: SchedulerSettings,
        clock: Clock,
        estimates: Estimates,
        machine: Callable[[], Awaitable[Machine]],
    ) -> None:
        self._residents = residents
        self._crashes = crashes
        self._settings = settings
        self._clock = clock
        self._estimates = estimates
        self._machine = machine

    def next_options(self, loaded: LoadOptions, asked: LoadOptions, tried: LoadOptions) -> LoadOptions:
        """To load with for ``asked``, after a model with ``loaded`` was not what it needs."""
        if loaded == tried != asked:
            return asked  # nobody's but its own: else it could go on like this for ever
        return merge(loaded, asked, self._settings.default_num_ctx)

    def is_needed(self, resident: Resident, model: ModelFile, options: LoadOptions) -> bool:
        """Whether the loaded model cannot serve a request for ``model`` with ``options``."""
        assert resident.request is not None  # it is loaded
        assert resident.header is not None
        if model.digest != resident.model.digest:
            return True  # its file has been replaced
        wanted = resolve(options, resident.header, self._settings)
        there = resident.on_gpus
        if must_be_on_gpu(options, self._settings) and there.num_placed < layers_wanted(options, there.num_layers):
            return True
        return needs_reload(resident.request, wanted, resident.options, options, there)

    async def check(self, resident: Resident, asked: LoadOptions, options: LoadOptions) -> None:
        """Nobody loses a loaded model for a load that is bound to fail: raises what that would raise.

        The load will be tried with ``options``, and if these are refused with ``asked``.
        """
        while resident.is_usable:
            self._crashes.check(resident.model.path, self._clock.monotonic())
            loading = self._loading()
            try:
                await self._rehearse_reload(resident, asked, options)
                break
            except REFUSALS as error:
                loading |= self._loading()
                if not loading or isinstance(error, SettingsError):
                    raise
            # What these have taken so far looked as if it could not be had.
            await asyncio.wait(loading, return_when=asyncio.FIRST_COMPLETED)

    async def _rehearse_reload(self, resident: Resident, asked: LoadOptions, options: LoadOptions) -> None:
        """The load on a machine without any model. Raises what it would raise."""
        held = total(bytes_of(each.memory) for each in self._residents.values() if each.memory is not None)
        machine = with_freed(await self._machine(), held)
        case = Case(resident.model.path, asked, self._settings, machine)

        def rehearse(case: Case) -> None:
            rehearse_as_asked(self._estimates, case, request_for(self._estimates, case), case.rules)

        try:
            await asyncio.to_thread(rehearse, case)
        except REFUSALS as refusal:
            if options == asked:
                raise
            try:
                await asyncio.to_thread(rehearse, replace(case, options=options))
            except REFUSALS:
                raise refusal from None

    # ---- "auto" that came to little -------------------------------------------------------------

    def may_grow(self, resident: Resident, options: LoadOptions) -> bool:
        """Whether to look if more would fit now: ``"auto"`` came to less than the usual context, this request takes
        what there is, and since the last look somebody has gone, or much time has passed.
        """
        if isinstance(options.num_ctx, int) or resident.options.num_ctx != AUTO:
            return False
        assert resident.request is not None  # it is loaded
        if resident.request.num_ctx >= self._usual_num_ctx(resident):
            return False
        is_long_ago = self._clock.monotonic() - resident.looked_at_s >= LOOK_AGAIN_S
        return (is_long_ago or any(gone.is_set() for gone in resident.neighbours)) and not self._loading()

    async def would_grow(self, resident: Resident, options: LoadOptions) -> bool:
        """Whether, loaded again, it would have the usual context, or clearly more than now; asked once for each look.

        Nobody has to make room for that.
        """
        assert resident.request is not None
        assert resident.memory is not None
        self.look_around(resident)
        merged = merge(resident.options, options, self._settings.default_num_ctx)
        machine = with_freed(await self._machine(), bytes_of(resident.memory))
        case = Case(resident.model.path, merged, self._settings, machine)
        try:
            largest = await asyncio.to_thread(largest_num_ctx, self._estimates, case)
        except SchedulerError:  # no reason to refuse the request: what is loaded serves it
            return False
        enough = min(self._usual_num_ctx(resident), CLEARLY_MORE * resident.request.num_ctx)
        return largest is not None and largest >= enough

    def _usual_num_ctx(self, resident: Resident) -> int:
        assert resident.header is not None
        return min(self._settings.default_num_ctx, resident.header.context_length)

    def look_around(self, resident: Resident) -> None:
        """From now on it is known who was there, and when that was."""
        resident.looked_at_s = self._clock.monotonic()
        resident.neighbours = tuple(other.gone for other in self._residents.values() if other is not resident)

    def _loading(self) -> set[asyncio.Future[None]]:
        """The ends of the loads under way."""
        return {each.ready for each in self._residents.values() if each.state is State.LOADING}
