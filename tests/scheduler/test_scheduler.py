"""Which models are loaded when: everything on a scripted clock with scripted runners."""

from __future__ import annotations

import asyncio
import math

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


async def use(world, name, options=LoadOptions(), keep_alive_s=None):  # noqa: B008
    async with world.scheduler.acquire(world.model(name), options, keep_alive_s) as running:
        return running


# ---- sharing -----------------------------------------------------------------------------------


async def test_a_second_request_uses_the_same_runner(new_world):
    world = new_world()
    first = await use(world, "a")
    second = await use(world, "a")
    assert first.client is second.client
    assert len(world.started) == 1


async def test_what_a_running_model_tells(new_world):
    world = new_world()
    world.trained["a"] = 2048
    running = await use(world, "a", CTX_8192)
    assert running.num_ctx == 2048  # clamped to the trained length
    assert running.memory.total_bytes == GIB
    assert running.model.name == "a"
    assert (running.expires_at - world.clock.now()).total_seconds() == 300


async def test_concurrent_requests_share_one_load(new_world, until):
    world = new_world()
    gate = world.hold("a")
    requests = [asyncio.create_task(use(world, "a")) for _ in range(5)]
    await until(lambda: world.started)
    gate.set()
    clients = {id(running.client) for running in await asyncio.gather(*requests)}
    assert len(clients) == 1
    assert len(world.started) == 1


async def test_a_client_that_leaves_does_not_abort_the_load(new_world, until):
    world = new_world()
    gate = world.hold("a")
    leaver, stayer = (asyncio.create_task(use(world, "a")) for _ in range(2))
    await until(lambda: world.started)
    leaver.cancel()
    await asyncio.wait([leaver])
    gate.set()
    assert (await stayer).model.name == "a"
    assert len(world.started) == 1


async def test_a_load_that_everybody_left_still_ends_and_expires(new_world, until):
    world = new_world()
    gate = world.hold("a")
    leaver = asyncio.create_task(use(world, "a"))
    await until(lambda: world.started)
    leaver.cancel()
    await asyncio.wait([leaver])
    gate.set()
    await until(lambda: world.names() == ["a"])
    world.clock.advance(301)
    await until(lambda: world.num_alive() == 0)


async def test_a_loaded_model_does_not_wait_behind_a_load(new_world, until):
    world = new_world()
    await use(world, "a")
    world.hold("b")
    loading = asyncio.create_task(use(world, "b"))
    await until(lambda: len(world.started) == 2)
    assert (await use(world, "a")).model.name == "a"
    assert not loading.done()
    loading.cancel()


async def test_the_queue_is_bounded(new_world, until):
    world = new_world(max_queue=2)
    await use(world, "loaded")
    gates = [world.hold(name) for name in ("a", "b")]
    waiting = [asyncio.create_task(use(world, name)) for name in ("a", "b")]
    await until(lambda: len(world.started) == 3)
    with pytest.raises(QueueFullError) as caught:
        await use(world, "c")
    assert caught.value.status == 503
    assert str(caught.value) == "server busy, please try again.  maximum pending requests exceeded"
    assert (await use(world, "loaded")).model.name == "loaded"
    for gate in gates:
        gate.set()
    await asyncio.gather(*waiting)
    await use(world, "c")


# ---- keep alive --------------------------------------------------------------------------------


async def test_an_idle_model_is_unloaded_after_its_time(new_world, until):
    world = new_world(keep_alive_s=60)
    await use(world, "a")
    world.clock.advance(59)
    assert world.names() == ["a"]
    await use(world, "a")  # the time begins anew
    world.clock.advance(59)
    assert world.names() == ["a"]
    world.clock.advance(1)
    await until(lambda: world.num_alive() == 0)
    assert world.names() == []


async def test_a_busy_model_does_not_expire(new_world, until):
    world = new_world(keep_alive_s=60)
    await use(world, "a")
    async with world.scheduler.acquire(world.model("a")):
        world.clock.advance(1000)
        assert world.names() == ["a"]
    world.clock.advance(60)
    await until(lambda: world.num_alive() == 0)


@pytest.mark.parametrize(("asked", "lives_s"), [(None, 299), (10, 9), (1000, 999)])
async def test_a_request_sets_the_time(new_world, until, asked, lives_s):
    world = new_world()
    await use(world, "a", keep_alive_s=asked)
    world.clock.advance(lives_s)
    assert world.names() == ["a"]
    world.clock.advance(1)
    await until(lambda: world.num_alive() == 0)


async def test_a_request_without_a_time_keeps_the_last_one(new_world):
    world = new_world()
    await use(world, "a", keep_alive_s=1000)
    await use(world, "a")
    world.clock.advance(999)
    assert world.names() == ["a"]


@pytest.mark.parametrize("forever", [-1, math.inf])
async def test_forever(new_world, forever):
    world = new_world()
    running = await use(world, "a", keep_alive_s=forever)
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


async def test_the_longest_lasting_model_comes_first(new_world):
    world = new_world()
    for name, keep_alive_s in (("a", 10), ("b", -1), ("c", 500)):
        await use(world, name, keep_alive_s=keep_alive_s)
    assert [running.model.name for running in world.scheduler.running()] == ["b", "c", "a"]


# ---- unloading ---------------------------------------------------------------------------------


async def test_unload_returns_when_an_idle_model_is_gone(new_world):
    world = new_world()
    await use(world, "a", keep_alive_s=-1)
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
    await use(world, "a")
    unloading = asyncio.create_task(world.scheduler.unload(world.model("a")))
    await asyncio.sleep(0)
    await use(world, "a")
    await unloading
    assert [process.is_alive for process in world.processes("a")] == [False, True]


# ---- reloading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "num_started"),
    [
        (LoadOptions(), 1),
        (LoadOptions(num_ctx=1024), 1),  # smaller: served by what is there
        (LoadOptions(num_ctx=4096), 1),
        (LoadOptions(num_ctx=4097), 2),
        (LoadOptions(num_batch=512), 1),
        (LoadOptions(num_batch=64), 2),
        (LoadOptions(num_thread=3), 2),
        (LoadOptions(num_thread=0), 1),
        (LoadOptions(use_mmap=True), 1),
        (LoadOptions(use_mmap=False), 2),
        (LoadOptions(num_gpu=99), 1),  # no GPU here: it makes no difference
    ],
)
async def test_other_options_reload_only_where_they_must(new_world, options, num_started):
    world = new_world()
    await use(world, "a")
    await use(world, "a", options)
    assert len(world.started) == num_started
    assert world.num_alive() == 1


async def test_a_context_beyond_the_trained_length_does_not_reload(new_world):
    world = new_world()
    world.trained["a"] = 2048
    await use(world, "a")
    await use(world, "a", LoadOptions(num_ctx=100_000))
    assert len(world.started) == 1


async def test_clients_with_different_options_do_not_reload_for_ever(new_world):
    world = new_world()
    for _ in range(4):
        await use(world, "a", LoadOptions(num_thread=2))
        await use(world, "a", LoadOptions(num_ctx=6000))
    assert len(world.started) == 2
    assert world.scheduler.running()[0].num_ctx == 6000


async def test_a_reload_waits_for_the_requests_under_way(new_world, until):
    world = new_world()
    async with world.scheduler.acquire(world.model("a")):
        bigger = asyncio.create_task(use(world, "a", CTX_8192))
        await asyncio.sleep(0.01)
        assert not bigger.done()
        assert world.processes("a")[0].is_alive
    assert (await bigger).num_ctx == 8192


async def test_a_value_that_cannot_be_meant_is_refused(new_world):
    world = new_world()
    with pytest.raises(SettingsError, match="num_batch must be at least 1, found -5") as caught:
        await use(world, "a", LoadOptions(num_batch=-5))
    assert caught.value.status == 400
    assert world.started == []


# ---- room --------------------------------------------------------------------------------------


async def test_the_idle_model_used_longest_ago_makes_room(new_world):
    world = new_world(max_loaded_models=2)
    for name in ("a", "b", "a"):
        world.clock.advance(1)
        await use(world, name)
    await use(world, "c")
    assert world.names() == ["a", "c"]


async def test_three_models_by_default(new_world):
    world = new_world()
    for name in "abcd":
        world.clock.advance(1)
        await use(world, name)
    assert world.names() == ["b", "c", "d"]


async def test_a_busy_or_pinned_model_stays_while_another_can_go(new_world):
    world = new_world(max_loaded_models=3)
    async with world.scheduler.acquire(world.model("busy")):
        world.clock.advance(1)
        await use(world, "pinned", keep_alive_s=-1)
        world.clock.advance(1)
        await use(world, "idle")
        await use(world, "new")
        assert world.names() == ["busy", "new", "pinned"]


async def test_where_all_are_busy_a_load_waits_for_the_first_to_end(new_world):
    world = new_world(max_loaded_models=1)
    async with world.scheduler.acquire(world.model("a")):
        loading = asyncio.create_task(use(world, "b"))
        await asyncio.sleep(0.01)
        assert world.names() == []  # "a" takes no new requests
        assert world.num_alive() == 1
    await loading
    assert world.names() == ["b"]


async def test_memory_makes_room(new_world):
    world = new_world()
    world.sizes = {"a": 30 * GIB, "b": 20 * GIB, "c": 40 * GIB}
    await use(world, "a")
    world.clock.advance(1)
    await use(world, "b")
    await use(world, "c")
    assert world.names() == ["b", "c"]


async def test_a_model_larger_than_the_machine_is_refused_before_a_process_starts(new_world):
    world = new_world()
    world.sizes["a"] = 65 * GIB
    with pytest.raises(SystemMemoryError) as caught:
        await use(world, "a")
    assert str(caught.value) == "model requires more system memory (65.0 GiB) than is available (64.0 GiB)"
    assert caught.value.status == 500
    assert world.started == []


# ---- failure -----------------------------------------------------------------------------------


async def test_a_runner_that_died_is_replaced(new_world, until):
    world = new_world()
    await use(world, "a")
    world.processes("a")[0].die(-9)
    assert world.names() == []
    await use(world, "a")
    assert [process.is_alive for process in world.processes("a")] == [False, True]


async def test_a_runner_that_died_in_use_is_replaced(new_world):
    world = new_world()
    async with world.scheduler.acquire(world.model("a")):
        world.processes("a")[0].die(-9)
        await use(world, "a")
        assert world.num_alive() == 1
    assert world.names() == ["a"]


async def test_death_while_loading_reaches_everybody_who_waits(new_world, until):
    world = new_world()
    world.hold("a")
    waiting = [asyncio.create_task(use(world, "a")) for _ in range(3)]
    await until(lambda: world.started and world.started[0][1].client.requests)
    world.processes("a")[0].die(1, "error: no such tensor")
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, RunnerExitedError)
        assert str(outcome) == "llama runner process has terminated: error: no such tensor"
    await use(world, "a")


async def test_a_failed_load_leaves_no_process_and_can_be_repeated(new_world):
    world = new_world()
    world.failures["a"] = LoadError("broken")
    with pytest.raises(LoadError, match="broken"):
        await use(world, "a")
    assert world.num_alive() == 0
    del world.failures["a"]
    await use(world, "a")
    assert world.names() == ["a"]


async def test_a_load_that_fails_for_one_request_s_options_is_tried_with_another_s(new_world, until):
    world = new_world()
    wrong = asyncio.create_task(use(world, "a", LoadOptions(num_batch=-1)))
    right = asyncio.create_task(use(world, "a"))
    with pytest.raises(SettingsError):
        await wrong
    assert (await right).num_ctx == 4096


# ---- the end -----------------------------------------------------------------------------------


async def test_close_ends_loaded_and_loading_models_and_those_who_wait(new_world, until):
    world = new_world()
    await use(world, "loaded")
    world.hold("loading")
    world.sizes.update(loading=40 * GIB, queued=40 * GIB)
    waiting = [asyncio.create_task(use(world, name)) for name in ("loading", "queued")]
    await until(lambda: len(world.started) == 2)
    await world.scheduler.close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, ShuttingDownError)
    assert world.num_alive() == 0
    with pytest.raises(ShuttingDownError):
        await use(world, "loaded")


async def test_close_does_not_wait_for_requests(new_world):
    world = new_world()
    async with world.scheduler.acquire(world.model("a")):
        await asyncio.wait_for(world.scheduler.close(), 1)
        assert world.num_alive() == 0


async def test_close_ends_what_was_about_to_leave(new_world):
    world = new_world(max_loaded_models=1)
    async with world.scheduler.acquire(world.model("a")):
        loading = asyncio.create_task(use(world, "b"))
        await asyncio.sleep(0.01)
        await asyncio.wait_for(world.scheduler.close(), 1)
        assert world.num_alive() == 0
    with pytest.raises(ShuttingDownError):
        await loading


async def test_close_right_after_a_request_came(new_world):
    world = new_world()
    waiting = asyncio.create_task(use(world, "a"))
    await asyncio.sleep(0)
    await world.scheduler.close()
    with pytest.raises(ShuttingDownError):
        await waiting


def test_devices_that_cannot_be_used_are_refused_at_the_start():
    with pytest.raises(SettingsError, match=r"nonsense"):
        Scheduler(SchedulerSettings(devices="nonsense"))
