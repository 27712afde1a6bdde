"""A scheduler with real runners on simulated devices, and what a test does to those devices under way."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from runner.protocol import Layout, LoadRequest, LoadResponse, Operation
from runner.sim_ledger import SimLedger
from scheduler.resident import RunningModel
from scheduler.scheduler import LoadOptions, ModelFile, Scheduler, SchedulerSettings
from scheduler.spawn import Started

Ask = Callable[[LoadRequest], Awaitable[LoadResponse]]


class RealDevices:
    """``scheduler`` has what ``held`` tells of."""

    def __init__(self, devices: str) -> None:
        self.scheduler = Scheduler(SchedulerSettings(devices=devices, kernels=os.environ.get("SHALE_KERNELS")))

    def ledger(self, id: str) -> SimLedger:
        folder = self.scheduler.devices.sim_ledger
        assert folder is not None
        return SimLedger(folder, id)

    def held(self) -> list[int]:
        """Bytes of each device that some process has."""
        return [self.ledger(gpu.id).held_bytes() for gpu in self.scheduler.devices.gpus()]

    async def use(self, model: ModelFile, options: LoadOptions) -> RunningModel:
        """One request that takes no time."""
        async with self.scheduler.acquire(model, options) as running:
            return running

    def before(self, operation: Operation, work: Callable[[int], Awaitable[None] | None]) -> list[Layout]:
        """Does ``work(how many of these operations there were)`` just before a runner is asked for one.

        Returns the layouts that were asked for, as they come.
        """
        spawn, layouts = self.scheduler._spawn, []

        async def spawn_and_meddle(*arguments: Any) -> Started:
            started = await spawn(*arguments)
            load: Ask = started.client.load

            async def meddle(request: LoadRequest) -> LoadResponse:
                if request.operation == operation:
                    done = work(len(layouts))
                    layouts.append(request.layout)
                    if done is not None:
                        await done
                return await load(request)

            started.client.load = meddle  # type: ignore[method-assign]
            return started

        self.scheduler._spawn = spawn_and_meddle
        return layouts


@asynccontextmanager
async def real_devices(devices: str) -> AsyncIterator[RealDevices]:
    """``devices`` as ``SHALE_DEVICES`` says them. All runners end with the block."""
    world = RealDevices(devices)
    try:
        yield world
    finally:
        await world.scheduler.close()
