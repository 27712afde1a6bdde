"""Which models are loaded when: everything on a scripted clock with scripted runners."""

from __future__ import annotations

import asyncio

import pytest

from scheduler.errors import (
    LoadError,
    QueueFullError,
    RunnerExitedError,
    SettingsError,
    ShuttingDownError,
    SystemMemoryError,
)
from scheduler.scheduler import LoadOptions, Scheduler, SchedulerSettings

GIB = 2**30
CTX_8192 = LoadOptions(num_ctx=8192)


# ---- sharing -------------------------------------------------------------------------------------


async def test_a_second_request_uses_the_same_runner(new_world):
    world = new_world()
    first = await world.use("a")
    second = await world.use("a")
    assert first.client is second.client
    assert len(world.started) == 1


async def test_what_a_running_model_tells(new_world):
    world = new_world()
    world.trained["a"] = 2048
    running = await world.use("a", CTX_8192)
    assert running.num_ctx == 2048  # clamped to the trained length
    assert running.memory.total_bytes == GIB
    assert running.model.name == "a"
    assert (running.expires_at - world.clock.now()).total_seconds() == 300


async def test_the_longest_lasting_model_comes_first(new_world):
    world = new_world()
    for name, keep_alive_s in (("a", 10), ("b", -1), ("c", 500)):
        await world.use(name, keep_alive_s=keep_alive_s)
    assert [running.model.name for running in world.scheduler.running()] == ["b", "c", "a"]


async def test_concurrent_requests_share_one_load(new_world, until):
    world = new_world()
    gate = world.hold("a")
    requests = [world.start("a") for _ in range(5)]
    await until(lambda: world.started)
    gate.set()
    clients = {id(running.client) for running in await asyncio.gather(*requests)}
    assert len(clients) == 1
    assert len(world.started) == 1


async def test_a_client_that_leaves_does_not_abort_the_load(new_world, until):
    world = new_world()
    gate = world.hold("a")
    leaver, stayer = (world.start("a") for _ in range(2))
    await until(lambda: world.started)
    leaver.cancel()
    await asyncio.wait([leaver])
    gate.set()
    assert (await stayer).model.name == "a"
    assert len(world.started) == 1


async def test_a_load_that_everybody_left_still_ends_and_expires(new_world, until):
    world = new_world()
    gate = world.hold("a")
    leaver = world.start("a")
    await until(lambda: world.started)
    leaver.cancel()
    await asyncio.wait([leaver])
    gate.set()
    await until(lambda: world.names() == ["a"])
    world.clock.advance(301)
    await until(lambda: world.num_alive() == 0)


async def test_a_loaded_model_does_not_wait_behind_a_load(new_world, until):
    world = new_world()
    await world.use("a")
    world.hold("b")
    loading = world.start("b")
    await until(lambda: len(world.started) == 2)
    assert (await world.use("a")).model.name == "a"
    assert not loading.done()
    loading.cancel()


async def test_the_queue_is_bounded(new_world, until):
    world = new_world(max_queue=2)
    await world.use("loaded")
    gates = [world.hold(name) for name in ("a", "b")]
    waiting = [world.start(name) for name in ("a", "b")]
    await until(lambda: len(world.started) == 3)
    with pytest.raises(QueueFullError) as caught:
        await world.use("c")
    assert caught.value.status == 503
    assert str(caught.value) == "server busy, please try again.  maximum pending requests exceeded"
    assert (await world.use("loaded")).model.name == "loaded"
    for gate in gates:
        gate.set()
    await asyncio.gather(*waiting)
    await world.use("c")


# ---- room ----------------------------------------------------------------------------------------


async def test_the_idle_model_used_longest_ago_makes_room(new_world):
    world = new_world(max_loaded_models=2)
    for name in ("a", "b", "a"):
        world.clock.advance(1)
        await world.use(name)
    await world.use("c")
    assert world.names() == ["a", "c"]


async def test_three_models_by_default(new_world):
    world = new_world()
    for name in "abcd":
        world.clock.advance(1)
        await world.use(name)
    assert world.names() == ["b", "c", "d"]


async def test_a_busy_or_pinned_model_stays_while_another_can_go(new_world):
    world = new_world(max_loaded_models=3)
    async with world.scheduler.acquire(world.model("busy")):
        world.clock.advance(1)
        await world.use("pinned", keep_alive_s=-1)
        world.clock.advance(1)
        await world.use("idle")
        await world.use("new")
        assert world.names() == ["busy", "new", "pinned"]


async def test_where_all_are_busy_a_load_waits_for_the_first_to_end(new_world, until):
    world = new_world(max_loaded_models=1)
    async with world.scheduler.acquire(world.model("a")):
        loading = world.start("b")
        await until(lambda: world.names() == [])  # "a" takes no new requests
        assert world.num_alive() == 1
    await loading
    assert world.names() == ["b"]


async def test_memory_makes_room(new_world):
    world = new_world()
    world.sizes = {"a": 30 * GIB, "b": 20 * GIB, "c": 40 * GIB}
    await world.use("a")
    world.clock.advance(1)
    await world.use("b")
    await world.use("c")
    assert world.names() == ["b", "c"]


async def test_a_model_larger_than_the_machine_is_refused_before_a_process_starts(new_world):
    world = new_world()
    world.sizes["a"] = 65 * GIB
    with pytest.raises(SystemMemoryError) as caught:
        await world.use("a")
    assert str(caught.value) == "model requires more system memory (65.0 GiB) than is available (64.0 GiB)"
    assert caught.value.status == 500
    assert world.started == []


# ---- failure -------------------------------------------------------------------------------------


async def test_a_runner_that_died_is_replaced(new_world, until):
    world = new_world()
    await world.use("a")
    world.processes("a")[0].die(-9)
    assert world.names() == []
    await world.use("a")
    assert [process.is_alive for process in world.processes("a")] == [False, True]


async def test_a_runner_that_died_in_use_is_replaced(new_world):
    world = new_world()
    async with world.scheduler.acquire(world.model("a")):
        world.processes("a")[0].die(-9)
        await world.use("a")
        assert world.num_alive() == 1
    assert world.names() == ["a"]


async def test_death_while_loading_reaches_everybody_who_waits(new_world, until):
    world = new_world()
    world.hold("a")
    waiting = [world.start("a") for _ in range(3)]
    await until(lambda: world.started and world.started[0][1].client.requests)
    world.processes("a")[0].die(1, "error: no such tensor")
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, RunnerExitedError)
        assert str(outcome) == "llama runner process has terminated: error: no such tensor"
    await world.use("a")


async def test_a_failed_load_leaves_no_process_and_can_be_repeated(new_world):
    world = new_world()
    world.failures["a"] = LoadError("broken")
    with pytest.raises(LoadError, match="broken"):
        await world.use("a")
    assert world.num_alive() == 0
    del world.failures["a"]
    await world.use("a")
    assert world.names() == ["a"]


async def test_a_load_that_fails_for_one_request_s_options_is_tried_with_another_s(new_world, until):
    world = new_world()
    wrong = world.start("a", LoadOptions(num_batch=-1))
    right = world.start("a")
    with pytest.raises(SettingsError):
        await wrong
    assert (await right).num_ctx == 4096


# ---- the end -------------------------------------------------------------------------------------


async def test_close_ends_loaded_and_loading_models_and_those_who_wait(new_world, until):
    world = new_world()
    await world.use("loaded")
    world.hold("loading")
    world.sizes.update(loading=40 * GIB, queued=40 * GIB)
    waiting = [world.start(name) for name in ("loading", "queued")]
    await until(lambda: len(world.started) == 2)
    await world.scheduler.close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, ShuttingDownError)
    assert world.num_alive() == 0
    with pytest.raises(ShuttingDownError):
        await world.use("loaded")


async def test_close_does_not_wait_for_requests(new_world):
    world = new_world()
    async with world.scheduler.acquire(world.model("a")):
        await asyncio.wait_for(world.scheduler.close(), 60)
        assert world.num_alive() == 0


async def test_close_ends_what_was_about_to_leave(new_world, until):
    world = new_world(max_loaded_models=1)
    async with world.scheduler.acquire(world.model("a")):
        loading = world.start("b")
        await until(lambda: world.names() == [])
        await asyncio.wait_for(world.scheduler.close(), 60)
        assert world.num_alive() == 0
    with pytest.raises(ShuttingDownError):
        await loading


async def test_close_right_after_a_request_came(new_world):
    world = new_world()
    waiting = world.start("a")
    await asyncio.sleep(0)
    await world.scheduler.close()
    with pytest.raises(ShuttingDownError):
        await waiting


def test_devices_that_cannot_be_used_are_refused_at_the_start():
    with pytest.raises(SettingsError, match=r"nonsense"):
        Scheduler(SchedulerSettings(devices="nonsense"))
