"""How long a model stays, and how it is told to go."""

from __future__ import annotations

import asyncio
import math

import pytest

from scheduler.errors import CrashLoopError
from scheduler.events import Unload
from scheduler.scheduler import LoadOptions

# ---- keep alive ----------------------------------------------------------------------------------


async def test_an_idle_model_is_unloaded_after_its_time(new_world, until):
    world = new_world(keep_alive_s=60)
    await world.use("a")
    world.clock.advance(59)
    assert world.names() == ["a"]
    await world.use("a")  # the time begins anew
    world.clock.advance(59)
    assert world.names() == ["a"]
    world.clock.advance(1)
    await until(lambda: world.num_alive() == 0)
    assert world.names() == []


async def test_a_busy_model_does_not_expire(new_world, until):
    world = new_world(keep_alive_s=60)
    await world.use("a")
    async with world.scheduler.acquire(world.model("a")):
        world.clock.advance(1000)
        assert world.names() == ["a"]
    world.clock.advance(60)
    await until(lambda: world.num_alive() == 0)


@pytest.mark.parametrize(("asked", "lives_s"), [(None, 299), (10, 9), (1000, 999)])
async def test_a_request_sets_the_time(new_world, until, asked, lives_s):
    world = new_world()
    await world.use("a", keep_alive_s=asked)
    world.clock.advance(lives_s)
    assert world.names() == ["a"]
    world.clock.advance(1)
    await until(lambda: world.num_alive() == 0)


async def test_a_request_without_a_time_keeps_the_last_one(new_world):
    world = new_world()
    await world.use("a", keep_alive_s=1000)
    await world.use("a")
    world.clock.advance(999)
    assert world.names() == ["a"]


@pytest.mark.parametrize("forever", [-1, math.inf])
async def test_forever(new_world, forever):
    world = new_world()
    running = await world.use("a", keep_alive_s=forever)
    world.clock.advance(1e9)
    assert world.names() == ["a"]
    assert running.expires_at.year > 2300


async def test_zero_unloads_after_the_last_request(new_world, until):
    world = new_world()
    async with world.scheduler.acquire(world.model("a"), keep_alive_s=0):
        async with world.scheduler.acquire(world.model("a")):
            pass
        assert world.num_alive() == 1
    await until(lambda: world.num_alive() == 0)


# ---- unloading -----------------------------------------------------------------------------------


async def test_unload_returns_when_an_idle_model_is_gone(new_world):
    world = new_world()
    await world.use("a", keep_alive_s=-1)
    await world.scheduler.unload(world.model("a"))
    assert world.num_alive() == 0
    assert world.names() == []


async def test_unload_of_a_busy_model_takes_effect_after_its_last_request(new_world, until):
    world = new_world()
    async with world.scheduler.acquire(world.model("a")):
        await world.scheduler.unload(world.model("a"))
        assert world.num_alive() == 1
    await until(lambda: world.num_alive() == 0)


async def test_unload_of_a_model_that_is_not_loaded_does_nothing(new_world):
    world = new_world()
    await world.scheduler.unload(world.model("a"))
    assert world.started == []


async def test_a_request_during_unloading_gets_a_new_runner(new_world):
    world = new_world()
    await world.use("a")
    unloading = asyncio.create_task(world.scheduler.unload(world.model("a")))
    await asyncio.sleep(0)
    await world.use("a")
    await unloading
    assert [process.is_alive for process in world.processes("a")] == [False, True]


# ---- crashes that look like other ends -----------------------------------------------------------


def ends(world):
    return [(event[0], *event[2:]) for event in world.observer.of("crashed", "unloaded")]


CRASHED = [("crashed",), ("unloaded", Unload.CRASHED)]


async def test_a_crash_counts_although_the_last_request_wanted_the_model_to_go(new_world, until):
    world = new_world()
    for _ in range(2):
        async with world.scheduler.acquire(world.model("a"), keep_alive_s=0):
            world.processes("a")[-1].die(-9)
        await until(lambda: not world.scheduler.residents())
    assert ends(world) == 2 * CRASHED
    with pytest.raises(CrashLoopError):
        await world.use("a")


async def test_a_crash_counts_although_the_next_request_finds_it_first(new_world, until):
    world = new_world()
    await world.use("a")
    world.processes("a")[0].die(-9)
    await world.use("a")
    assert ends(world) == CRASHED


async def test_a_crash_counts_although_the_model_was_on_its_way_out(new_world, until):
    world = new_world()
    async with world.scheduler.acquire(world.model("a")):
        bigger = world.start("a", LoadOptions(num_ctx=8192))
        await until(lambda: world.names() == [])
        world.processes("a")[0].die(-9)
    await bigger
    assert ends(world) == CRASHED


async def test_a_crash_stays_one_while_it_is_cleared_away(new_world, until):
    world = new_world()
    held = asyncio.Event()
    async with world.scheduler.acquire(world.model("a"), keep_alive_s=0):
        process, client = world.processes("a")[0], world.started[0][1].client
        client.aclose = held.wait
        process.die(-9)
        await until(lambda: ends(world))
    held.set()
    await until(lambda: not world.scheduler.residents())
    assert ends(world) == CRASHED


async def test_a_process_that_is_told_to_end_has_not_crashed(new_world):
    world = new_world()
    for keep_alive_s in (0, None):
        await world.use("a", keep_alive_s=keep_alive_s)
        await world.scheduler.unload(world.model("a"))
    assert ends(world) == 2 * [("unloaded", Unload.ASKED)]
