"""How long a model stays, and how it is told to go."""

from __future__ import annotations

import asyncio
import math

import pytest

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
