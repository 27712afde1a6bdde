"""What the scheduler plans for this machine, among all that is loaded."""

from __future__ import annotations

from scheduler.scheduler import LoadOptions

GIB = 2**30


async def test_the_plan_for_now_is_what_the_load_then_does(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=6 * GIB, b=6 * GIB)
    await world.use("a")
    plan = await world.scheduler.plan(world.model("b"), LoadOptions(fail_if_not_gpu=True))
    assert plan.unloads == (world.model("a").path,)
    assert world.names() == ["a"]
    assert (await world.use("b")).layout == plan.layout
    assert world.names() == ["b"]


async def test_a_loaded_model_is_planned_as_if_it_were_loaded_anew(new_world):
    world = new_world(gpus={"sim0": 8 * GIB}, max_loaded_models=1)
    world.sizes["a"] = 6 * GIB
    running = await world.use("a")
    plan = await world.scheduler.plan(world.model("a"), LoadOptions())
    assert (plan.layout, plan.unloads, plan.is_whole) == (running.layout, (), True)
    assert plan.machine.gpus[0].free_bytes == 8 * GIB


async def test_a_plan_while_others_load_is_for_what_they_leave(new_world, until):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=6 * GIB, b=2 * GIB)
    gate = world.hold("a")
    loading = world.start("a")
    await until(lambda: world.committed() == {"a"})
    plan = await world.scheduler.plan(world.model("b"), LoadOptions())
    assert (plan.is_waiting, plan.is_whole, plan.unloads) == (True, True, ())
    assert plan.machine.gpus[0].free_bytes == 2 * GIB
    gate.set()
    await loading
