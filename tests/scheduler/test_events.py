"""What an observer hears of the scheduler's work."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from scheduler.errors import LoadError, RunnerExitedError, SchedulerError, ShuttingDownError
from scheduler.events import Eviction, NoObserver, Observer, Unload
from scheduler.scheduler import LoadOptions

GIB = 2**30
ENDS = ("loaded", "load_failed", "evicted", "crashed", "unloaded")


def test_nobody_hears_everything() -> None:
    def methods(kind: type) -> dict[str, inspect.Signature]:
        return {n: inspect.signature(m) for n, m in inspect.getmembers(kind, inspect.isfunction) if n[0] != "_"}

    assert methods(NoObserver) == methods(Observer)


async def test_a_load_tells_its_time_and_its_parts(new_world, until):
    world = new_world()
    gate = world.hold("a")
    request = world.start("a")
    await until(lambda: world.started and world.started[0][1].client.requests)
    world.clock.seconds += 7
    gate.set()
    await request
    (_, name, seconds, phases) = world.observer.of("loaded")[0]
    assert world.observer.of("load_started") == [("load_started", "a")]
    assert name == "a"
    assert seconds >= 7
    assert set(phases) == {"process", "layout", "weights"}
    assert sum(phases.values()) == pytest.approx(seconds)


async def test_the_queue_is_told_as_it_grows_and_shrinks(new_world, until):
    world = new_world()
    gate = world.hold("a")
    requests = [world.start("a") for _ in range(2)]
    await until(lambda: world.started)
    world.clock.seconds += 3
    gate.set()
    await asyncio.gather(*requests)
    assert [number for _, number in world.observer.of("queued")] == [1, 2, 1, 0]
    assert all(seconds >= 3 for _, seconds in world.observer.of("waited"))
    assert len(world.observer.of("waited")) == 2


async def test_a_loaded_model_does_not_queue(new_world):
    world = new_world()
    await world.use("a")
    world.observer.events.clear()
    await world.use("a")
    assert world.observer.events == []


async def test_a_failed_load_tells_its_error(new_world):
    world = new_world()
    error = world.failures["a"] = LoadError("no")
    with pytest.raises(LoadError):
        await world.use("a")
    assert world.observer.of(*ENDS) == [("load_failed", "a", error)]


async def test_a_process_that_ends_while_it_loads_is_a_crash_and_a_failed_load(new_world, until):
    world = new_world()
    world.hold("a")
    request = world.start("a")
    await until(lambda: world.started)
    world.processes("a")[0].die(-9)
    with pytest.raises(RunnerExitedError):
        await request
    assert [event[0] for event in world.observer.of(*ENDS)] == ["crashed", "load_failed"]


async def test_a_process_that_ends_later_is_a_crash(new_world, until):
    world = new_world()
    await world.use("a")
    world.processes("a")[0].die(-9)
    await until(lambda: not world.names() and world.observer.of("unloaded"))
    assert world.observer.of(*ENDS)[1:] == [("crashed", "a"), ("unloaded", "a", Unload.CRASHED)]


@pytest.mark.parametrize(
    ("settings", "size", "reason"),
    [({}, 40 * GIB, Eviction.MEMORY), ({"max_loaded_models": 1}, GIB, Eviction.MAX_MODELS)],
)
async def test_an_eviction_tells_why_and_what_it_frees(new_world, settings, size, reason):
    world = new_world(**settings)
    world.sizes.update(a=size, b=size)
    await world.use("a")
    await world.use("b")
    assert world.observer.of("evicted") == [("evicted", "a", reason, size)]
    assert world.observer.of("unloaded") == [("unloaded", "a", Unload.EVICTED)]


async def test_every_other_end_has_its_reason(new_world, until):
    world = new_world(keep_alive_s=60)
    await world.use("expired")
    world.clock.advance(61)
    await until(lambda: world.num_alive() == 0)
    await world.use("asked", keep_alive_s=0)
    await until(lambda: world.num_alive() == 0)
    await world.use("unloaded")
    await world.scheduler.unload(world.model("unloaded"))
    await world.use("reload", LoadOptions(num_ctx=1024))
    await world.use("reload", LoadOptions(num_ctx=4096))
    await world.scheduler.close()
    assert world.observer.of("unloaded") == [
        ("unloaded", "expired", Unload.EXPIRED),
        ("unloaded", "asked", Unload.ASKED),
        ("unloaded", "unloaded", Unload.ASKED),
        ("unloaded", "reload", Unload.RELOAD),
        ("unloaded", "reload", Unload.SHUTDOWN),
    ]


async def test_a_load_that_shutdown_ends_is_told_once(new_world, until):
    world = new_world()
    world.hold("a")
    request = world.start("a")
    await until(lambda: world.started)
    await world.scheduler.close()
    with pytest.raises(SchedulerError):
        await request
    ((_, name, error),) = world.observer.of(*ENDS)
    assert name == "a"
    assert isinstance(error, ShuttingDownError)
