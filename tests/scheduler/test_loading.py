"""Several loads at a time: side by side, one after the other, after others have made room."""

from __future__ import annotations

import asyncio

import pytest

from runner.protocol import LoadResponse, Operation
from scheduler.errors import (
    CrashLoopError,
    NotOnGPUError,
    RunnerExitedError,
    RunnerUnreachableError,
    SettingsError,
    SystemMemoryError,
)
from scheduler.events import Eviction, Unload
from scheduler.freed_memory import LIMIT_S
from scheduler.scheduler import LoadOptions

GIB = 2**30
TWO_GPUS = {"sim0": 8 * GIB, "sim1": 8 * GIB}
ON_GPU = LoadOptions(fail_if_not_gpu=True)


async def use(world, name, options=LoadOptions(), keep_alive_s=None):  # noqa: B008
    async with world.scheduler.acquire(world.model(name), options, keep_alive_s) as running:
        return running


def start(world, name, *rest):
    return asyncio.create_task(use(world, name, *rest))


def devices(running):
    return [share.id for share in running.layout]


def commits(world):
    return {name for name, started in world.started if started.client.memory and started.client.requests}


# ---- side by side ------------------------------------------------------------------------------


async def test_loads_on_different_devices_go_side_by_side(new_world, until):
    world = new_world(gpus=TWO_GPUS)
    world.sizes.update(a=6 * GIB, b=6 * GIB)
    gates = {name: world.hold(name) for name in "ab"}
    requests = {name: start(world, name) for name in "ab"}
    await until(lambda: commits(world) == {"a", "b"})
    gates["b"].set()
    second = await requests["b"]
    assert not requests["a"].done()
    gates["a"].set()
    first = await requests["a"]
    assert sorted(devices(first) + devices(second)) == ["sim0", "sim1"]
    assert world.observer.of("evicted") == []


async def test_a_device_belongs_to_one_load_at_a_time(new_world, until):
    """Both would fit on the one device; the second comes when the first one's bytes are known."""
    world = new_world(gpus={"sim0": 8 * GIB})
    gate = world.hold("a")
    first, second = start(world, "a"), start(world, "b")
    await until(lambda: commits(world) == {"a"})
    await asyncio.sleep(0.02)
    assert [name for name, _ in world.started] == ["a"]
    gate.set()
    await asyncio.gather(first, second)
    assert world.names() == ["a", "b"]


async def test_a_load_never_sees_the_devices_of_another(new_world, until):
    world = new_world(gpus=TWO_GPUS)
    gate = world.hold("a")
    first = start(world, "a")
    await until(lambda: commits(world) == {"a"})
    world.sizes["b"] = 12 * GIB  # needs both
    second = start(world, "b")
    third = await use(world, "c")
    assert not second.done()
    gate.set()
    assert devices(third) != devices(await first)
    assert devices(await second) == ["sim0", "sim1"]


async def test_on_the_cpu_loads_go_side_by_side_as_far_as_memory_reaches(new_world, until):
    world = new_world(max_loaded_models=9)
    world.sizes.update(a=15 * GIB, b=15 * GIB, c=20 * GIB)
    gates = [world.hold(name) for name in "ab"]
    requests = [start(world, name) for name in "abc"]
    # What they have taken counts twice, as their claims and as what is used: there is no room for "c" meanwhile.
    await until(lambda: commits(world) == {"a", "b"})
    await asyncio.sleep(0.02)
    assert commits(world) == {"a", "b"}
    small = await use(world, "small")
    assert small.memory.total_bytes == GIB
    for gate in gates:
        gate.set()
    await asyncio.gather(*requests)


async def test_a_loaded_model_is_served_while_several_load(new_world, until):
    world = new_world(gpus=TWO_GPUS)
    await use(world, "z")
    gates = [world.hold(name) for name in "ab"]
    requests = [start(world, name) for name in "ab"]
    await until(lambda: commits(world) >= {"a", "b"})
    await asyncio.wait_for(use(world, "z"), 0.1)
    for gate in gates:
        gate.set()
    await asyncio.gather(*requests)


async def test_the_limit_counts_loads_under_way(new_world, until):
    world = new_world(gpus=TWO_GPUS, max_loaded_models=1)
    gate = world.hold("a")
    requests = [start(world, "a"), start(world, "b")]
    await until(lambda: commits(world) == {"a"})
    await asyncio.sleep(0.02)
    assert len(world.started) == 1
    gate.set()
    await asyncio.gather(*requests)
    assert world.names() == ["b"]


async def test_a_failed_load_lets_the_next_one_go(new_world, until):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.hold("a")
    first, second = start(world, "a"), start(world, "b")
    await until(lambda: commits(world) == {"a"})
    world.processes("a")[0].die(1, "error: broken")
    with pytest.raises(RunnerExitedError):
        await first
    await second


async def test_a_request_that_left_before_its_load_began_is_skipped(new_world, until):
    world = new_world(gpus={"sim0": 8 * GIB})
    gate = world.hold("a")
    first, second, third = (start(world, name) for name in "abc")
    await until(lambda: commits(world) == {"a"})
    second.cancel()
    await asyncio.wait([second])
    gate.set()
    await asyncio.gather(first, third)
    assert [name for name, _ in world.started] == ["a", "c"]
    assert {name for _, name in world.observer.of("load_started")} == {"a", "c"}
    assert [seen.model.name for seen in world.scheduler.residents() if seen.state == "loading"] == []


# ---- making room -------------------------------------------------------------------------------


async def test_the_smallest_set_that_makes_room_goes(new_world):
    """Not the one that was used longest ago, which is too small, but the one that is enough alone."""
    world = new_world(gpus={"sim0": 12 * GIB}, max_loaded_models=9)
    world.sizes.update(a=2 * GIB, b=4 * GIB, c=5 * GIB, d=5 * GIB)
    for name in "abc":
        world.clock.advance(10)
        await use(world, name)
    assert devices(await use(world, "d")) == ["sim0"]
    assert world.observer.of("evicted") == [("evicted", "b", Eviction.MEMORY, 4 * GIB)]


async def test_only_who_is_on_the_device_goes(new_world):
    world = new_world(gpus=TWO_GPUS, max_loaded_models=9)
    world.sizes.update(a=6 * GIB, b=6 * GIB, c=8 * GIB)
    on_cpu = await use(world, "cpu", LoadOptions(num_gpu=0))
    assert devices(on_cpu) == []
    for name in "ab":
        world.clock.advance(10)
        await use(world, name)
    await use(world, "c")
    assert world.names() == ["b", "c", "cpu"]


async def test_what_costs_more_to_load_again_stays(new_world, until):
    world = new_world(gpus=TWO_GPUS, max_loaded_models=9)
    world.sizes.update(slow=6 * GIB, quick=6 * GIB, new=8 * GIB)
    gate = world.hold("slow")
    slow = start(world, "slow")
    await until(lambda: commits(world) == {"slow"})
    world.clock.advance(120)
    gate.set()
    await slow
    world.clock.advance(10)
    await use(world, "quick")
    await use(world, "new")
    assert world.names() == ["new", "slow"]


async def test_pinned_and_busy_models_stay_where_room_for_a_part_is_enough(new_world):
    """A model that fits nowhere wholly takes what is left; nobody who is needed goes for that."""
    world = new_world(gpus={"sim0": 8 * GIB}, max_loaded_models=9)
    world.sizes.update(pinned=2 * GIB, busy=2 * GIB, idle=2 * GIB, huge=16 * GIB)
    await use(world, "pinned", keep_alive_s=-1)
    await use(world, "idle")
    async with world.scheduler.acquire(world.model("busy")):
        huge = await use(world, "huge")
        assert world.names() == ["busy", "huge", "pinned"]
        assert [len(share.layers) for share in huge.layout] == [1]


async def test_nobody_goes_for_a_model_that_cannot_be_loaded_anyway(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes["huge"] = 73 * GIB
    await use(world, "a")
    with pytest.raises(SystemMemoryError):
        await use(world, "huge")
    assert world.names() == ["a"]
    assert len(world.started) == 1


async def test_a_fixed_part_on_the_gpu_does_not_need_the_room_of_the_whole(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=4 * GIB, b=12 * GIB)
    await use(world, "a")
    running = await use(world, "b", LoadOptions(num_gpu=1))
    assert [len(share.layers) for share in running.layout] == [1]
    assert world.names() == ["a", "b"]


async def test_a_model_on_its_way_out_is_waited_for_rather_than_another_unloaded(new_world, until):
    world = new_world(gpus={"sim0": 8 * GIB}, max_loaded_models=9)
    world.sizes.update(a=4 * GIB, b=4 * GIB, c=4 * GIB)
    await use(world, "b")
    async with world.scheduler.acquire(world.model("a")):
        world.scheduler._retire(world.scheduler._residents[world.model("a").path], Unload.RELOAD)
        loading = start(world, "c")
        await asyncio.sleep(0.02)
        assert not loading.done()
    await loading
    assert world.names() == ["b", "c"]
    assert world.observer.of("evicted") == []


async def test_the_load_waits_until_freed_memory_appears(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=6 * GIB, b=6 * GIB)
    await use(world, "a")
    world.late_looks = world.num_looks + 8
    asked_at = world.clock.monotonic()
    assert devices(await use(world, "b")) == ["sim0"]
    assert world.clock.monotonic() - asked_at >= 0.3
    assert len(world.processes("b")) == 1


async def test_it_goes_on_after_five_seconds_without_that_memory(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=6 * GIB, b=6 * GIB)
    await use(world, "a")
    world.late_looks = 10**9
    asked_at = world.clock.monotonic()
    running = await use(world, "b")
    assert LIMIT_S <= world.clock.monotonic() - asked_at < LIMIT_S + 1
    assert [len(share.layers) for share in running.layout] == [1]  # 2 GiB are free: the rest is on the CPU


async def test_memory_that_vanishes_under_way_leads_to_another_place(new_world):
    """The device is smaller when it is allocated than it was when it was chosen: the other one has room."""
    world = new_world(gpus=TWO_GPUS)
    world.gpus["sim0"] += GIB  # the first choice
    world.sizes["a"] = 6 * GIB
    world.at_start = lambda name: world.gpus.update(sim0=GIB)
    refuse(world, "sim0")
    assert devices(await use(world, "a")) == ["sim1"]
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
    assert devices(await use(world, "a")) == []


# ---- which GPU ---------------------------------------------------------------------------------


async def test_main_gpu_has_the_model_where_it_fits(new_world):
    world = new_world(gpus={"sim0": 9 * GIB, "sim1": 8 * GIB})
    assert devices(await use(world, "a")) == ["sim0"]
    assert devices(await use(world, "b", LoadOptions(main_gpu=1))) == ["sim1"]
    world.sizes["c"] = 12 * GIB
    await world.scheduler.unload(world.model("a"))
    await world.scheduler.unload(world.model("b"))
    assert devices(await use(world, "c", LoadOptions(main_gpu=1))) == ["sim0", "sim1"]


@pytest.mark.parametrize("where", ["option", "setting"])
async def test_fail_if_not_gpu_names_what_did_not_fit(new_world, where):
    world = new_world(gpus={"sim0": 8 * GIB}, fail_if_not_gpu=where == "setting")
    world.sizes["a"] = 16 * GIB
    options = ON_GPU if where == "option" else LoadOptions()
    await use(world, "b", LoadOptions(fail_if_not_gpu=False))
    with pytest.raises(NotOnGPUError) as caught:
        await use(world, "a", options)
    assert caught.value.status == 500
    assert str(caught.value) == (
        "fail_if_not_gpu: 2 of 4 layers fit, 8.0 GiB of layers would stay on the CPU; free: 8.0 GiB on sim0"
    )
    assert world.names() == ["b"]
    assert len(world.started) == 1
    await use(world, "a", LoadOptions(fail_if_not_gpu=False))


async def test_fail_if_not_gpu_without_any(new_world):
    world = new_world()
    with pytest.raises(NotOnGPUError, match=r"^fail_if_not_gpu: there is no GPU that can be used$"):
        await use(world, "a", ON_GPU)
    with pytest.raises(SettingsError, match="num_gpu 0 keeps all layers on the CPU"):
        await use(world, "a", LoadOptions(num_gpu=0, fail_if_not_gpu=True))


async def test_fail_if_not_gpu_makes_room(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=6 * GIB, b=6 * GIB)
    await use(world, "a")
    assert devices(await use(world, "b", ON_GPU)) == ["sim0"]
    assert world.names() == ["b"]


async def test_a_model_that_is_partly_on_the_cpu_is_not_what_was_asked_for(new_world):
    """It is loaded again where that helps; where it would not, it stays as it is for the others."""
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes["a"] = 12 * GIB
    await use(world, "a")
    with pytest.raises(NotOnGPUError, match="2 of 4 layers fit"):
        await use(world, "a", ON_GPU)
    assert len(world.started) == 1
    assert world.names() == ["a"]
    world.gpus["sim0"] = 16 * GIB
    assert [len(share.layers) for share in (await use(world, "a", ON_GPU)).layout] == [4]
    await use(world, "a", ON_GPU)
    assert len(world.started) == 2


# ---- crashes -----------------------------------------------------------------------------------


async def load_and_crash(world, until, name, *words):
    """The process dies while it loads: no request was served in between."""
    gate = world.hold(name)
    number = len(world.processes(name))
    request = start(world, name)
    await until(lambda: len(world.processes(name)) > number and world.started[-1][1].client.requests)
    world.processes(name)[-1].die(-11, *words)
    with pytest.raises((RunnerExitedError, RunnerUnreachableError)):
        await request
    gate.set()


async def test_crashes_in_a_row_lead_to_pauses(new_world, until):
    world = new_world()
    await load_and_crash(world, until, "a")
    await load_and_crash(world, until, "a", "error: flaky")  # at once after the first one
    with pytest.raises(CrashLoopError) as caught:
        await use(world, "a")
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    assert "error: flaky" in str(caught.value)
    await use(world, "b")
    world.clock.advance(1)
    await load_and_crash(world, until, "a")
    world.clock.advance(1.9)
    with pytest.raises(CrashLoopError, match="crashed 3 times in a row, next try in 1 s"):
        await use(world, "a")
    world.clock.advance(0.2)
    await use(world, "a")
    await load_and_crash_after_service(world, until, "a")
    await use(world, "a")


async def load_and_crash_after_service(world, until, name):
    world.processes(name)[-1].die(-11)
    await until(lambda: name not in [seen.model.name for seen in world.scheduler.residents()])


async def test_a_runner_that_dies_after_every_answer_is_started_again_at_once(new_world, until):
    world = new_world()
    for _ in range(4):
        await use(world, "a")
        await load_and_crash_after_service(world, until, "a")
    assert len(world.processes("a")) == 4


async def test_a_runner_that_dies_under_every_request_is_left_alone(new_world, until):
    world = new_world()
    for _ in range(2):
        async with world.scheduler.acquire(world.model("a")):
            world.processes("a")[-1].die(-11)
        await until(lambda: not world.scheduler.residents())
    with pytest.raises(CrashLoopError, match="SIGSEGV"):
        await use(world, "a")


@pytest.mark.parametrize(
    ("words", "others_go"), [("CUDA error: out of memory", True), ("error: tensor blk.3 is damaged", False)]
)
async def test_a_crash_for_want_of_memory_is_tried_again_once_after_others_have_gone(
    new_world, until, words, others_go
):
    world = new_world()
    await use(world, "idle")
    await use(world, "pinned", keep_alive_s=-1)
    world.hold("a")
    request = start(world, "a", LoadOptions(num_ctx=1000))
    await until(lambda: commits(world) >= {"a"})
    world.processes("a")[0].die(1, words)
    if others_go:
        assert (await request).num_ctx == 1000
        assert world.names() == ["a", "pinned"]
    else:
        with pytest.raises(RunnerExitedError):
            await request
        assert world.names() == ["idle", "pinned"]


async def test_a_crash_for_want_of_memory_without_others_fails_at_once(new_world, until):
    world = new_world()
    await load_and_crash(world, until, "a", "MemoryError")
    assert len(world.started) == 1


async def test_it_is_tried_again_only_once(new_world, until):
    world = new_world()
    await use(world, "idle")
    for _ in range(2):
        world.hold("a")
    request = start(world, "a")
    for number in (1, 2):
        await until(lambda number=number: len(world.processes("a")) == number)
        world.hold("a")
        await until(lambda: world.started[-1][1].client.requests)
        world.processes("a")[-1].die(1, "out of memory")
    with pytest.raises(RunnerExitedError, match="out of memory"):
        await request
    assert world.names() == []
