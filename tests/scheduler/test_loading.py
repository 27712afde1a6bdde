"""Several loads at a time: side by side, or one after the other."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from scheduler.errors import RunnerExitedError
from scheduler.scheduler import LoadOptions

GIB = 2**30
TWO_GPUS = {"sim0": 8 * GIB, "sim1": 8 * GIB}


async def load_b_after_a(world, until):
    """Asks for both at once: "b" does not start before "a" is loaded."""
    gate = world.hold("a")
    first, second = world.start("a"), world.start("b")
    await until(lambda: world.committed() == {"a"})
    await asyncio.sleep(0.02)
    assert [name for name, _ in world.started] == ["a"]
    gate.set()
    await asyncio.gather(first, second)


async def test_loads_on_different_devices_go_side_by_side(new_world, until):
    world = new_world(gpus=TWO_GPUS)
    world.sizes.update(a=6 * GIB, b=6 * GIB)
    gates = {name: world.hold(name) for name in "ab"}
    requests = {name: world.start(name) for name in "ab"}
    await until(lambda: world.committed() == {"a", "b"})
    gates["b"].set()
    second = await requests["b"]
    assert not requests["a"].done()
    gates["a"].set()
    first = await requests["a"]
    assert sorted(world.devices(first) + world.devices(second)) == ["sim0", "sim1"]
    assert world.observer.of("evicted") == []


async def test_a_device_belongs_to_one_load_at_a_time(new_world, until):
    """Both would fit on the one device; the second comes when the first one's bytes are known."""
    world = new_world(gpus={"sim0": 8 * GIB})
    await load_b_after_a(world, until)
    assert world.names() == ["a", "b"]


async def test_a_load_never_sees_the_devices_of_another(new_world, until):
    world = new_world(gpus=TWO_GPUS)
    gate = world.hold("a")
    first = world.start("a")
    await until(lambda: world.committed() == {"a"})
    world.sizes["b"] = 12 * GIB  # needs both
    second = world.start("b")
    third = await world.use("c")
    assert not second.done()
    gate.set()
    assert world.devices(third) != world.devices(await first)
    assert world.devices(await second) == ["sim0", "sim1"]


async def test_on_the_cpu_loads_go_side_by_side_as_far_as_memory_reaches(new_world, until):
    world = new_world(max_loaded_models=9)
    world.sizes.update(a=25 * GIB, b=25 * GIB, c=20 * GIB)
    gates = [world.hold(name) for name in "ab"]
    requests = [world.start(name) for name in "abc"]
    await until(lambda: world.committed() == {"a", "b"})
    await asyncio.sleep(0.02)
    assert world.committed() == {"a", "b"}
    small = await world.use("small")
    assert small.memory.total_bytes == GIB
    for gate in gates:
        gate.set()
    await asyncio.gather(*requests)


async def test_host_memory_that_a_load_has_taken_counts_once(new_world, until):
    world = new_world()
    world.sizes.update(a=30 * GIB, b=30 * GIB)
    gate = world.hold("a")
    first = world.start("a")
    await until(lambda: world.committed() == {"a"})
    await asyncio.wait_for(world.use("b"), 60)
    assert not first.done()
    gate.set()
    await first
    assert world.names() == ["a", "b"]


async def test_host_memory_that_a_load_will_take_counts_as_well(new_world, until):
    world = new_world()
    world.sizes.update(a=30 * GIB, b=40 * GIB)
    world.taken["a"] = 2 * GIB  # so far
    await load_b_after_a(world, until)


async def test_idle_models_go_while_another_load_has_other_devices(new_world, until):
    world = new_world(gpus=TWO_GPUS)
    world.sizes.update(idle=6 * GIB, a=6 * GIB, b=6 * GIB)
    await world.use("idle")
    gate = world.hold("a")
    first = world.start("a")
    await until(lambda: world.committed() == {"idle", "a"})
    second = await asyncio.wait_for(world.use("b"), 60)
    assert not first.done()
    gate.set()
    assert sorted(world.devices(await first) + world.devices(second)) == ["sim0", "sim1"]
    assert world.names() == ["a", "b"]


@pytest.mark.parametrize("keep", ["room", "busy", "pinned"])
async def test_nobody_goes_where_the_end_of_another_load_may_do(new_world, until, keep):
    """Either there will be room beside what loads, or those who are loaded are not idle."""
    world = new_world(gpus=TWO_GPUS)
    world.sizes.update(old=6 * GIB, a=2 * GIB if keep == "room" else 6 * GIB, b=6 * GIB)
    await world.use("old", keep_alive_s=-1 if keep == "pinned" else None)
    gate = world.hold("a")
    first = world.start("a", LoadOptions(), 0)
    await until(lambda: world.committed() == {"old", "a"})
    async with AsyncExitStack() as stack:
        if keep == "busy":
            await stack.enter_async_context(world.scheduler.acquire(world.model("old")))
        second = world.start("b")
        await asyncio.sleep(0.02)
        gate.set()
        await first  # and leaves at once
        await second
        assert world.names() == ["b", "old"]


async def test_a_loaded_model_is_served_while_several_load(new_world, until):
    world = new_world(gpus=TWO_GPUS)
    await world.use("z")
    gates = [world.hold(name) for name in "ab"]
    requests = [world.start(name) for name in "ab"]
    await until(lambda: world.committed() >= {"a", "b"})
    await asyncio.wait_for(world.use("z"), 60)  # they are held for as long as it takes
    for gate in gates:
        gate.set()
    await asyncio.gather(*requests)


async def test_the_limit_counts_loads_under_way(new_world, until):
    world = new_world(gpus=TWO_GPUS, max_loaded_models=1)
    await load_b_after_a(world, until)
    assert world.names() == ["b"]


async def test_a_failed_load_lets_the_next_one_go(new_world, until):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.hold("a")
    first, second = world.start("a"), world.start("b")
    await until(lambda: world.committed() == {"a"})
    world.processes("a")[0].die(1, "error: broken")
    with pytest.raises(RunnerExitedError):
        await first
    await second


async def test_a_request_that_left_before_its_load_began_is_skipped(new_world, until):
    world = new_world(gpus={"sim0": 8 * GIB})
    gate = world.hold("a")
    first, second, third = (world.start(name) for name in "abc")
    await until(lambda: world.committed() == {"a"})
    second.cancel()
    await asyncio.wait([second])
    gate.set()
    await asyncio.gather(first, third)
    assert [name for name, _ in world.started] == ["a", "c"]
    assert {name for _, name in world.observer.of("load_started")} == {"a", "c"}
    assert [seen.model.name for seen in world.scheduler.residents() if seen.state == "loading"] == []
