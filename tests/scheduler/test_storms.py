"""Many requests at once that get into each other's way, with scripted runners: all of them end, and nothing is left.

What the soak test does with real processes in a minute, this does in a fraction of a second, and so for many orders
of events. A seed decides what is asked, not in which order it happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import pytest

from runner.protocol import LoadResponse, Operation
from scheduler.errors import SchedulerError
from scheduler.scheduler import LoadOptions

GIB = 2**30
SIZES = {"a": 2 * GIB, "b": 3 * GIB, "c": 4 * GIB, "d": 6 * GIB, "e": 12 * GIB}
GPUS = {"sim0": 8 * GIB, "sim1": 6 * GIB}
NUM_REQUESTS = 40
LONGEST_S = 0.02  # that anything takes
TIMEOUT_S = 120.0


class Storm:
    """What happens to one world."""

    def __init__(self, world, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        world.sizes.update(SIZES)
        self._spawn, world.scheduler._spawn = world.scheduler._spawn, self.spawn
        self._header, world.header = world.header, self.header

    def header(self, path):
        """On a thread, in the middle of decisions: much happens meanwhile."""
        time.sleep(self.random.uniform(0, LONGEST_S / 2))
        return self._header(path)

    async def spawn(self, *arguments):
        """A runner that takes its time, and refuses what the devices do not have."""
        await self.pause()
        started = await self._spawn(*arguments)
        load = started.client.load

        async def load_late(request):
            await self.pause()
            free = {gpu.id: gpu.free_bytes for gpu in self.world.machine().gpus}
            held = {gpu.id: gpu.total_bytes for gpu in started.client.memory.gpus} if started.client.memory else {}
            response = await load(request)
            short = [gpu.id for gpu in response.memory.gpus if gpu.total_bytes > free[gpu.id] + held.get(gpu.id, 0)]
            if request.operation != Operation.ALLOC or not short:
                return response
            started.client.memory = None
            return LoadResponse(success=False, memory=response.memory, message=f"out of memory on {short[0]}")

        started.client.load = load_late
        return started

    async def pause(self) -> None:
        await asyncio.sleep(self.random.uniform(0, LONGEST_S))

    async def request(self) -> None:
        """One client: gets its model, is refused, leaves before, or unloads it."""
        choose = self.random.choice
        name = choose(list(SIZES))
        options = LoadOptions(
            num_ctx=choose([None, None, 640, 8192, "auto"]),
            num_gpu=choose([None] * 6 + [0, 1, 3]),
            num_thread=choose([None] * 4 + [2]),
            fail_if_not_gpu=choose([None, None, None, False, True]),
        )
        keep_alive_s = choose([None, 0, 0, 0.3, 5, -1])
        await self.pause()
        with contextlib.suppress(SchedulerError, TimeoutError):
            if self.random.random() < 0.15:
                await self.world.scheduler.unload(self.world.model(name))
                return
            async with asyncio.timeout(choose([None, None, None, LONGEST_S, LONGEST_S * 4])):
                async with self.world.scheduler.acquire(self.world.model(name), options, keep_alive_s) as running:
                    assert running.model.name == name
                    assert options.num_gpu != 0 or not running.layout
                    await self.pause()

    async def trouble(self) -> None:
        """Kills, devices that change their size, time that goes by; until it is cancelled."""
        while True:
            await self.pause()
            what = self.random.random()
            alive = [started.process for _, started in self.world.started if started.process.is_alive]
            if what < 0.2 and alive:
                self.random.choice(alive).die(-9, *self.random.choice([(), ("out of memory",)]))
            elif what < 0.5:
                id = self.random.choice(list(GPUS))
                self.world.gpus[id] = int(GPUS[id] * self.random.choice([0.3, 0.7, 1, 1, 1.5]))
            else:
                self.world.clock.advance(self.random.choice([0.1, 1, 40]))

    async def rage(self) -> None:
        trouble = asyncio.create_task(self.trouble())
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(self.request() for _ in range(NUM_REQUESTS)))
        trouble.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await trouble


@pytest.mark.parametrize("seed", range(12))
async def test_everybody_is_served_or_refused_and_nothing_is_left(new_world, until, seed):
    world = new_world(gpus=GPUS, max_loaded_models=3 if seed % 2 else 0)
    storm = Storm(world, seed)
    await storm.rage()
    world.gpus.update(GPUS)
    world.clock.advance(1000)  # no crash is remembered
    for name in SIZES:
        await asyncio.wait_for(world.use(name), TIMEOUT_S)
    for name in SIZES:
        await asyncio.wait_for(world.scheduler.unload(world.model(name)), TIMEOUT_S)
    await until(lambda: not world.scheduler.residents())
    assert world.num_alive() == 0
    assert world.scheduler._loads._claims == {}
    assert world.scheduler._num_waiting == 0
