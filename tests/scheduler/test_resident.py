"""Models as those see them who look: loading with progress, ready, stopping."""

from __future__ import annotations

import asyncio


async def test_a_model_that_loads_is_seen_with_its_progress(new_world, until):
    world = new_world()
    gate = world.hold("a")
    world.progress["a"] = [0.25, 0.5]
    request = world.start("a")
    await until(lambda: world.scheduler.residents())
    await until(lambda: world.scheduler.residents()[0].progress == 0.5)
    (seen,) = world.scheduler.residents()
    assert (seen.model.name, seen.state, seen.running) == ("a", "loading", None)
    assert seen.num_ctx == 4096
    assert (seen.expires_at - world.clock.now()).total_seconds() == 300
    assert world.scheduler.running() == []
    gate.set()
    await request
    (seen,) = world.scheduler.residents()
    assert (seen.state, seen.progress) == ("ready", 1.0)
    assert seen.running is not None


async def test_a_model_that_waits_for_its_turn_is_loading(new_world, until):
    world = new_world()
    gate = world.hold("a")
    world.sizes.update(a=40 * 2**30, b=40 * 2**30)
    requests = [world.start(name) for name in "ab"]
    await until(lambda: world.started)
    assert {(seen.model.name, seen.state, seen.progress) for seen in world.scheduler.residents()} >= {
        ("b", "loading", 0.0)
    }
    gate.set()
    await asyncio.gather(*requests)


async def test_a_model_that_must_go_while_it_is_used_is_stopping(new_world, until):
    world = new_world(max_loaded_models=1)
    async with world.scheduler.acquire(world.model("a")):
        other = world.start("b")
        await until(lambda: any(seen.state == "stopping" for seen in world.scheduler.residents()))
        (seen,) = (seen for seen in world.scheduler.residents() if seen.state == "stopping")
        assert seen.model.name == "a"
        assert seen.running is not None  # what it holds is still held
    await other
    assert [(seen.model.name, seen.state) for seen in world.scheduler.residents()] == [("b", "ready")]


async def test_a_model_whose_process_has_died_is_not_ready(new_world):
    world = new_world()
    await world.use("a")
    world.processes("a")[0].die(-9)
    assert [seen.state for seen in world.scheduler.residents()] == ["stopping"]
