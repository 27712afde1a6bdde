"""Loads under way: each finds its place, makes room where it must, and brings its model up.

A load decides under a lock, on the machine as it is at that moment, and claims what it is going to use before it lets
go of the lock; the work itself goes on side by side with that of other loads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runner.protocol import Layout
from scheduler.bring_up import bring_up
from scheduler.clock import Clock
from scheduler.crashes import is_out_of_memory
from scheduler.devices import Machine
from scheduler.errors import LayoutError, RequireFullError, RunnerError, SchedulerError, SystemMemoryError
from scheduler.estimate import Estimates
from scheduler.events import Eviction, Observer
from scheduler.eviction import Candidate, Rank, freed
from scheduler.freed_memory import freed_memory_appears
from scheduler.options import LoadOptions
from scheduler.placement import Around, Decision, MakeRoom, Place, Wait, decide, plan_beside
from scheduler.plan import Plan
from scheduler.rehearsal import Case
from scheduler.reservations import Claim, bytes_of, less_promised, total, with_freed
from scheduler.resident import Resident, State
from scheduler.settings import SchedulerSettings
from scheduler.spawn import Spawn

LOG = logging.getLogger("scheduler")

AUTO_MODELS_PER_GPU = 3
PROCESS_BYTES = 128 << 20  # that a runner has beside its model: 55 MiB were measured, more with a large vocabulary
MAX_TRIES = 8  # at places that should have been large enough and were not


class AbandonedError(Exception):
    """Everybody who wanted the model had left before its load began."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What loads work with."""

    settings: SchedulerSettings
    spawn: Spawn
    clock: Clock
    estimates: Estimates
    machine: Callable[[], Awaitable[Machine]]
    observer: Observer


class Loads:
    """All loads under way. ``residents`` is the scheduler's table; ``evict`` makes one of them leave."""

    def __init__(
        self, workshop: Workshop, residents: Mapping[Path, Resident], evict: Callable[[Resident, Eviction], None]
    ) -> None:
        self._workshop = workshop
        self._residents = residents
        self._evict = evict
        self._claims: dict[Path, Claim] = {}
        self._deciding = asyncio.Lock()
        self._one_ended = asyncio.Event()

    async def load(self, resident: Resident) -> None:
        """Takes a waiting resident to where its model answers; the process is not stopped here when that fails.

        A load that finds less than it counted on looks for another place. One whose process dies for want of memory is
        tried once more after all idle models have gone. Raises SchedulerError, AbandonedError.
        """
        failed: list[Layout] = []
        has_retried = False
        try:
            while True:
                place = await self._find_place(resident, frozenset(failed))
                try:
                    return await self._bring_up(resident, place)
                except (RequireFullError, SystemMemoryError):
                    failed.append(place.layout)
                    if not place.situation.rules.require_full or len(failed) == MAX_TRIES:
                        raise
                except RunnerError as error:
                    if has_retried or not is_out_of_memory(error.last_words) or not await self._evict_idle(resident):
                        raise
                    LOG.warning("%s is loaded again after others have left: %s", resident.model.name, error)
                    has_retried = True
        finally:
            self._release(resident)

    async def plan(self, path: Path, options: LoadOptions) -> Plan:
        """What a load that began now would come to; of a model that is loaded, what loading it anew would.

        Raises what a load does before it starts a process.
        """
        taken = await self._taken()
        machine = await self._workshop.machine()
        loaded = self._others(None)
        own = total(bytes_of(r.memory) for r in loaded if r.memory is not None and r.model.path == path)
        held = total(bytes_of(r.memory) for r in loaded if r.memory is not None)
        case = Case(path, options, self._workshop.settings, with_freed(less_promised(machine, held), own))
        others = [resident for resident in loaded if resident.model.path != path]
        around = self._around(self._claims_beside(None, taken), others, machine, frozenset())
        return await asyncio.to_thread(plan_beside, self._workshop.estimates, case, around)

    # ---- finding a place -----------------------------------------------------------------------

    async def _find_place(self, resident: Resident, failed: frozenset[Layout]) -> Place:
        """Returns with a claim held."""
        while True:
            async with self._deciding:
                _check_wanted(resident)
                end = self._one_ended  # before the decision: a load that ends during it is not missed
                try:
                    # Under the lock, so that loads are decided on in the order of their requests.
                    resident.header = await asyncio.to_thread(self._workshop.estimates.header, resident.model.path)
                    taken = await self._taken()
                    case = await self._case(resident, resident.options)
                    case = replace(case, is_at_others_expense=resident.is_at_others_expense)
                    others = self._others(resident)
                    around = self._around(self._claims_beside(resident, taken), others, case.machine, failed)
                    decision = await asyncio.to_thread(decide, self._workshop.estimates, case, around)
                except SchedulerError:
                    self._begin(resident)
                    raise
                # Much may have happened during the decision.
                leaving = _chosen(decision, others)
                if not all(self._can_go(other, rank) for other, rank in leaving):
                    continue
                if isinstance(decision, Wait):
                    self._release(resident)
                else:
                    _check_wanted(resident)
                    self._begin(resident)
                    self._claims[resident.model.path] = decision.claim
            if isinstance(decision, Place):
                resident.request = decision.situation.request
                resident.num_gpus = len(case.machine.gpus)
                return decision
            if isinstance(decision, MakeRoom):
                resident.is_at_others_expense |= decision.is_for_memory
                await self._make_room([other for other, _ in leaving], decision.reason, case.machine)
            else:
                await end.wait()

    async def _taken(self) -> dict[Path, int]:
        """Host memory that loads under way have. To be asked before the machine is, so that it counts at least once."""
        residents = {path: resident for path in self._claims if (resident := self._residents.get(path)) is not None}
        processes = {path: each.started.process for path, each in residents.items() if each.started is not None}
        return await asyncio.to_thread(lambda: {path: process.own_bytes() for path, process in processes.items()})

    def _claims_beside(self, resident: Resident | None, taken: Mapping[Path, int]) -> tuple[Claim, ...]:
        """Of other loads, less what they have taken: the system no longer counts that as free."""
        own = resident.model.path if resident else None
        return tuple(
            claim.less(max(0, taken.get(path, 0) - PROCESS_BYTES))
            for path, claim in self._claims.items()
            if path != own
        )

    async def _case(self, resident: Resident, options: LoadOptions) -> Case:
        machine = await self._workshop.machine()
        held = total(bytes_of(r.memory) for r in self._others(resident) if r.memory is not None)
        return Case(resident.model.path, options, self._workshop.settings, less_promised(machine, held))

    def _around(
        self, claims: tuple[Claim, ...], others: Sequence[Resident], machine: Machine, failed: frozenset[Layout]
    ) -> Around:
        return Around(
            claims=claims,
            candidates=tuple(map(self._candidate, others)),
            max_loaded=self._workshop.settings.max_loaded_models or AUTO_MODELS_PER_GPU * max(1, len(machine.gpus)),
            failed=failed,
        )

    def _others(self, resident: Resident | None) -> list[Resident]:
        """Models that hold memory and are not being loaded."""
        return [
            other
            for path, other in self._residents.items()
            if other is not resident and other.has_process and path not in self._claims
        ]

    def _candidate(self, resident: Resident) -> Candidate:
        idle_s = self._workshop.clock.monotonic() - resident.last_used_s
        held = bytes_of(resident.memory) if resident.memory else {}
        return Candidate(resident.model.path, _rank(resident), max(0.0, idle_s), sum(resident.phases.values()), held)

    def _can_go(self, resident: Resident, rank: Rank) -> bool:
        """Whether it is still there, and nobody has begun to use or pin it since it was of this rank.

        Another one with its name may be waiting to load: to wait for the end of that one would be to wait for oneself.
        """
        return self._residents.get(resident.model.path) is resident and _rank(resident) <= rank

    def _begin(self, resident: Resident) -> None:
        if resident.state is State.WAITING:
            resident.state = State.LOADING
            resident.began_at_s = self._workshop.clock.monotonic()
            self._workshop.observer.load_started(resident.model.name)

    def _release(self, resident: Resident) -> None:
        if self._claims.pop(resident.model.path, None) is not None:
            self._one_ended.set()
            self._one_ended = asyncio.Event()

    # ---- making room ---------------------------------------------------------------------------

    async def _make_room(self, leaving: Sequence[Resident], reason: Eviction, before: Machine) -> None:
        """Returns when they are gone and what they held is free."""
        held = freed([self._candidate(resident) for resident in leaving])
        for resident in leaving:
            if resident.state is State.READY:
                self._evict(resident, reason)
        for resident in leaving:
            await resident.gone.wait()
        workshop = self._workshop
        await freed_memory_appears(workshop.machine, before, held, workshop.clock)

    async def _evict_idle(self, resident: Resident) -> bool:
        """False: there is nobody to unload."""
        idle = [other for other in self._others(resident) if _rank(other) <= Rank.IDLE]
        await self._stop(resident)
        before = await self._workshop.machine()
        still_idle = [other for other in idle if self._can_go(other, Rank.IDLE)]
        await self._make_room(still_idle, Eviction.MEMORY, before)
        return bool(idle)

    # ---- bringing up ---------------------------------------------------------------------------

    async def _bring_up(self, resident: Resident, place: Place) -> None:
        settings, clock = self._workshop.settings, self._workshop.clock
        started = resident.started = await self._workshop.spawn(resident.model, settings)
        try:
            up = await bring_up(
                *(started, place.situation, place.estimate, clock, settings.load_timeout_s), resident.set_progress
            )
        except LayoutError:
            await self._stop(resident)
            raise
        resident.layout, resident.memory = up.loaded.layout, up.loaded.memory
        resident.phases = {"process": up.process_s, "layout": up.layout_s, "weights": up.weights_s}
        LOG.info(
            "%s loaded: process %.3f s, layout and memory %.3f s, weights %.3f s",
            *(resident.model.name, up.process_s, up.layout_s, up.weights_s),
        )

    async def _stop(self, resident: Resident) -> None:
        started, resident.started = resident.started, None
        if started is not None:
            await started.stop()


def _chosen(decision: Decision, others: Sequence[Resident]) -> list[tuple[Resident, Rank]]:
    """The residents that have to go, each with its rank when that was decided."""
    ranks = {victim.path: victim.rank for victim in decision.victims} if isinstance(decision, MakeRoom) else {}
    return [(other, ranks[other.model.path]) for other in others if other.model.path in ranks]


def _rank(resident: Resident) -> Rank:
    if not resident.is_usable:
        return Rank.LEAVING
    if resident.is_pinned:
        return Rank.PINNED
    return Rank.IDLE if resident.is_idle else Rank.BUSY


def _check_wanted(resident: Resident) -> None:
    """Raises AbandonedError if everybody left before the load began."""
    if resident.is_idle and resident.state is State.WAITING:
        raise AbandonedError
