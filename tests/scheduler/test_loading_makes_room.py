"""Who goes for a model that does not fit, and what its load then finds."""

from __future__ import annotations

import asyncio
import threading

import pytest

from runner.protocol import LoadResponse, Operation
from scheduler.errors import SystemMemoryError
from scheduler.events import Eviction, Unload
from scheduler.freed_memory import LIMIT_S
from scheduler.scheduler import LoadOptions

GIB = 2**30
TWO_GPUS = {"sim0": 8 * GIB, "sim1": 8 * GIB}


async def test_the_smallest_set_that_makes_room_goes(new_world):
    """Not the one that was used longest ago, which is too small, but the one that is enough alone."""
    world = new_world(gpus={"sim0": 12 * GIB}, max_loaded_models=9)
    world.sizes.update(a=2 * GIB, b=4 * GIB, c=5 * GIB, d=5 * GIB)
    for name in "abc":
        world.clock.advance(10)
        await world.use(name)
    assert world.devices(await world.use("d")) == ["sim0"]
    assert world.observer.of("evicted") == [("evicted", "b", Eviction.MEMORY, 4 * GIB)]


async def test_only_who_is_on_the_device_goes(new_world):
    world = new_world(gpus=TWO_GPUS, max_loaded_models=9)
    world.sizes.update(a=6 * GIB, b=6 * GIB, c=8 * GIB)
    on_cpu = await world.use("cpu", LoadOptions(num_gpu=0))
    assert world.devices(on_cpu) == []
    for name in "ab":
        world.clock.advance(10)
        await world.use(name)
    await world.use("c")
    assert world.names() == ["b", "c", "cpu"]


async def test_what_costs_more_to_load_again_stays(new_world, until):
    world = new_world(gpus=TWO_GPUS, max_loaded_models=9)
    world.sizes.update(slow=6 * GIB, quick=6 * GIB, new=8 * GIB)
    gate = world.hold("slow")
    slow = world.start("slow")
    await until(lambda: world.committed() == {"slow"})
    world.clock.advance(120)
    gate.set()
    await slow
    world.clock.advance(10)
    await world.use("quick")
    await world.use("new")
    assert world.names() == ["new", "slow"]


async def test_pinned_and_busy_models_stay_where_room_for_a_part_is_enough(new_world):
    """A model that fits nowhere wholly takes what is left; nobody who is needed goes for that."""
    world = new_world(gpus={"sim0": 8 * GIB}, max_loaded_models=9)
    world.sizes.update(pinned=2 * GIB, busy=2 * GIB, idle=2 * GIB, huge=16 * GIB)
    await world.use("pinned", keep_alive_s=-1)
    await world.use("idle")
    async with world.scheduler.acquire(world.model("busy")):
        huge = await world.use("huge")
        assert world.names() == ["busy", "huge", "pinned"]
        assert [len(share.layers) for share in huge.layout] == [1]


async def test_nobody_goes_for_a_model_that_cannot_be_loaded_anyway(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes["huge"] = 73 * GIB
    await world.use("a")
    with pytest.raises(SystemMemoryError):
        await world.use("huge")
    assert world.names() == ["a"]
    assert len(world.started) == 1


async def test_a_fixed_part_on_the_gpu_does_not_need_the_room_of_the_whole(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=4 * GIB, b=12 * GIB)
    await world.use("a")
    running = await world.use("b", LoadOptions(num_gpu=1))
    assert [len(share.layers) for share in running.layout] == [1]
    assert world.names() == ["a", "b"]


async def test_a_model_on_its_way_out_is_waited_for_rather_than_another_unloaded(new_world, until):
    world = new_world(gpus={"sim0": 8 * GIB}, max_loaded_models=9)
    world.sizes.update(a=4 * GIB, b=4 * GIB, c=4 * GIB)
    await world.use("b")
    async with world.scheduler.acquire(world.model("a")):
        world.scheduler._unloads.retire(world.scheduler._residents[world.model("a").path], Unload.RELOAD)
        loading = world.start("c")
        await asyncio.sleep(0.02)
        assert not loading.done()
    await loading
    assert world.names() == ["b", "c"]
    assert world.observer.of("evicted") == []


async def test_the_load_waits_until_freed_memory_appears(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=6 * GIB, b=6 * GIB)
    await world.use("a")
    world.late_looks = world.num_looks + 8
    asked_at = world.clock.monotonic()
    assert world.devices(await world.use("b")) == ["sim0"]
    assert world.clock.monotonic() - asked_at >= 0.3
    assert len(world.processes("b")) == 1


async def test_it_goes_on_after_five_seconds_without_that_memory(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=6 * GIB, b=6 * GIB)
    await world.use("a")
    world.late_looks = 10**9
    asked_at = world.clock.monotonic()
    running = await world.use("b")
    assert LIMIT_S <= world.clock.monotonic() - asked_at < LIMIT_S + 1
    assert [len(share.layers) for share in running.layout] == [1]  # 2 GiB are free: the rest is on the CPU


async def test_memory_that_vanishes_under_way_leads_to_another_place(new_world):
    """The device is smaller when it is allocated than it was when it was chosen: the other one has room."""
    world = new_world(gpus=TWO_GPUS)
    world.gpus["sim0"] += GIB  # the first choice
    world.sizes["a"] = 6 * GIB
    world.at_start = lambda name: world.gpus.update(sim0=GIB)
    refuse(world, "sim0")
    assert world.devices(await world.use("a")) == ["sim1"]
    assert [process.is_alive for process in world.processes("a")] == [False, True]


def refuse(world, device):
    """Allocations on this device fail."""
    spawn = world.scheduler._spawn

    async def spawn_and_meddle(*arguments):
        started = await spawn(*arguments)
        load = started.client.load

        async def meddle(request):
            response = await load(request)
            if request.operation == Operation.ALLOC and any(share.id == device for share in request.layout):
                return LoadResponse(success=False, memory=response.memory, message=f"out of memory on {device}")
            return response

        started.client.load = meddle
        return started

    world.scheduler._spawn = spawn_and_meddle


async def test_a_device_that_gives_nothing_ends_in_a_load_on_the_cpu(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    refuse(world, "sim0")
    assert world.devices(await world.use("a")) == []


# ---- while it is decided who goes --------------------------------------------------------------


def hold_decisions(world, name):
    """The next decision about this model waits until the second event is set; the first tells that it is made."""
    is_deciding, may_go_on, memory = threading.Event(), threading.Event(), world.memory

    def wait_and_measure(path, *rest):
        if path.stem == name and not is_deciding.is_set():
            is_deciding.set()
            assert may_go_on.wait(60)
        return memory(path, *rest)

    world.memory = wait_and_measure
    return is_deciding, may_go_on


async def test_one_that_is_loaded_anew_meanwhile_is_not_waited_for(new_world, until):
    """Its load waits for this one: each would wait for the other for ever."""
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(old=6 * GIB, new=6 * GIB)
    await world.use("old")
    is_deciding, may_go_on = hold_decisions(world, "new")
    new = world.start("new")
    await until(is_deciding.is_set)
    await world.scheduler.unload(world.model("old"))
    again = world.start("old")
    await asyncio.sleep(0.01)
    may_go_on.set()
    async with asyncio.timeout(60):
        assert world.devices(await new) == world.devices(await again) == ["sim0"]


async def test_one_that_is_used_meanwhile_stays_while_another_can_go(new_world, until):
    world = new_world(gpus=TWO_GPUS)
    world.sizes.update(quick=6 * GIB, other=6 * GIB, new=6 * GIB)
    for name in ("quick", "other"):
        await world.use(name)
        world.clock.advance(10)
    is_deciding, may_go_on = hold_decisions(world, "new")
    new = world.start("new")
    await until(is_deciding.is_set)
    async with world.scheduler.acquire(world.model("quick")):
        may_go_on.set()
        async with asyncio.timeout(60):
            await new
        assert world.names() == ["new", "quick"]


async def test_after_a_crash_for_want_of_memory_one_that_is_loaded_anew_is_not_waited_for(new_world, until):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(idle=2 * GIB, a=2 * GIB)
    await world.use("idle")
    world.hold("a")
    request = world.start("a")
    await until(lambda: world.committed() >= {"a"})
    process, requests = world.processes("a")[0], [request]

    async def stop_while_the_other_goes(grace_s=0):
        process.die(1)
        await world.scheduler.unload(world.model("idle"))
        requests.append(world.start("idle"))
        await asyncio.sleep(0.01)

    process.stop = stop_while_the_other_goes
    process.die(1, "out of memory")
    async with asyncio.timeout(60):
        await request
        await requests[1]
