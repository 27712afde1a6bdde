"""Runners that die while they load."""

from __future__ import annotations

import pytest

from scheduler.errors import (
    CrashLoopError,
    RunnerExitedError,
    RunnerUnreachableError,
)
from scheduler.scheduler import LoadOptions


async def load_and_crash(world, until, name, *words):
    """The process dies while it loads: no request was served in between."""
    gate = world.hold(name)
    number = len(world.processes(name))
    request = world.start(name)
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
        await world.use("a")
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    assert "error: flaky" in str(caught.value)
    await world.use("b")
    world.clock.advance(1)
    await load_and_crash(world, until, "a")
    world.clock.advance(1.9)
    with pytest.raises(CrashLoopError, match="crashed 3 times in a row, next try in 1 s"):
        await world.use("a")
    world.clock.advance(0.2)
    await world.use("a")
    await load_and_crash_after_service(world, until, "a")
    await world.use("a")


async def load_and_crash_after_service(world, until, name):
    world.processes(name)[-1].die(-11)
    await until(lambda: name not in [seen.model.name for seen in world.scheduler.residents()])


async def test_a_runner_that_dies_after_every_answer_is_started_again_at_once(new_world, until):
    world = new_world()
    for _ in range(4):
        await world.use("a")
        await load_and_crash_after_service(world, until, "a")
    assert len(world.processes("a")) == 4


async def test_a_runner_that_dies_under_every_request_is_left_alone(new_world, until):
    world = new_world()
    for _ in range(2):
        async with world.scheduler.acquire(world.model("a")):
            world.processes("a")[-1].die(-11)
        await until(lambda: not world.scheduler.residents())
    with pytest.raises(CrashLoopError, match="SIGSEGV"):
        await world.use("a")


@pytest.mark.parametrize(
    ("words", "others_go"), [("CUDA error: out of memory", True), ("error: tensor blk.3 is damaged", False)]
)
async def test_a_crash_for_want_of_memory_is_tried_again_once_after_others_have_gone(
    new_world, until, words, others_go
):
    world = new_world()
    await world.use("idle")
    await world.use("pinned", keep_alive_s=-1)
    world.hold("a")
    request = world.start("a", LoadOptions(num_ctx=1000))
    await until(lambda: world.committed() >= {"a"})
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
    await world.use("idle")
    for _ in range(2):
        world.hold("a")
    request = world.start("a")
    for number in (1, 2):
        await until(lambda number=number: len(world.processes("a")) == number)
        world.hold("a")
        await until(lambda: world.started[-1][1].client.requests)
        world.processes("a")[-1].die(1, "out of memory")
    with pytest.raises(RunnerExitedError, match="out of memory"):
        await request
    assert world.names() == []
