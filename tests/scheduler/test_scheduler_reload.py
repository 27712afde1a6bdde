"""Requests for a loaded model with other options."""

from __future__ import annotations

import asyncio

import pytest

from scheduler.errors import LayoutNotAllocatedError, SettingsError
from scheduler.scheduler import LoadOptions

GIB = 2**30
CTX_8192 = LoadOptions(num_ctx=8192)


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
    await world.use("a")
    await world.use("a", options)
    assert len(world.started) == num_started
    assert world.num_alive() == 1


async def test_a_context_beyond_the_trained_length_does_not_reload(new_world):
    world = new_world()
    world.trained["a"] = 2048
    await world.use("a")
    await world.use("a", LoadOptions(num_ctx=100_000))
    assert len(world.started) == 1


async def test_clients_with_different_options_do_not_reload_for_ever(new_world):
    world = new_world()
    for _ in range(4):
        await world.use("a", LoadOptions(num_thread=2))
        await world.use("a", LoadOptions(num_ctx=6000))
    assert len(world.started) == 2
    assert world.scheduler.running()[0].num_ctx == 6000


async def test_a_reload_waits_for_the_requests_under_way(new_world, until):
    world = new_world()
    async with world.scheduler.acquire(world.model("a")):
        bigger = world.start("a", CTX_8192)
        await asyncio.sleep(0.01)
        assert not bigger.done()
        assert world.processes("a")[0].is_alive
    assert (await bigger).num_ctx == 8192


async def test_a_value_that_cannot_be_meant_is_refused(new_world):
    world = new_world()
    with pytest.raises(SettingsError, match="num_batch must be at least 1, found -5") as caught:
        await world.use("a", LoadOptions(num_batch=-5))
    assert caught.value.status == 400
    assert world.started == []


# ---- what others have asked for ----------------------------------------------------------------


async def test_layers_that_another_request_asked_for_are_kept_while_they_fit(new_world):
    """Else two clients would load the model again and again."""
    world = new_world(gpus={"sim0": 8 * GIB})
    await world.use("a", LoadOptions(num_gpu=3))
    running = await world.use("a", CTX_8192)
    assert [len(share.layers) for share in running.layout] == [3]
    await world.use("a", LoadOptions(num_gpu=3))
    assert len(world.started) == 2


async def test_layers_that_another_request_asked_for_are_no_reason_to_fail(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes["a"] = 4 * GIB
    await world.use("a", LoadOptions(num_gpu=3))
    world.gpus["sim0"] = 2 * GIB
    running = await world.use("a", CTX_8192)
    assert running.num_ctx == 8192
    assert [len(share.layers) for share in running.layout] == [2]
    with pytest.raises(LayoutNotAllocatedError, match="num_gpu = 3"):
        await world.use("a", LoadOptions(num_gpu=3))  # that is what this one asks for


async def test_the_cpu_that_another_request_asked_for_is_no_reason_to_fail(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    await world.use("a", LoadOptions(num_gpu=0))
    assert world.devices(await world.use("a", LoadOptions(fail_if_not_gpu=True))) == ["sim0"]


async def test_a_context_that_is_left_open_is_not_the_small_one_of_another_request(new_world):
    world = new_world()
    await world.use("a", LoadOptions(num_ctx=640))
    async with asyncio.timeout(5):
        assert (await world.use("a")).num_ctx == 4096
        assert (await world.use("a", LoadOptions(num_ctx=640))).num_ctx == 4096
    assert len(world.started) == 2


async def test_requests_that_exclude_each_other_are_all_served(new_world):
    """Each reloads the model under the others, but none for ever."""
    world = new_world(gpus={"sim0": 8 * GIB}, fail_if_not_gpu=True)
    asked = [LoadOptions(num_gpu=0, fail_if_not_gpu=False), LoadOptions(), LoadOptions(num_gpu=2), CTX_8192]
    asked += [LoadOptions(num_ctx=100, num_gpu=0, fail_if_not_gpu=False), LoadOptions(num_gpu=3), LoadOptions()]
    async with asyncio.timeout(10):
        found = await asyncio.gather(*(world.use("a", options) for options in asked))
    num_layers = [sum(len(share.layers) for share in running.layout) for running in found]
    assert num_layers == [0, 4, 2, 4, 0, 3, 4]
    assert len(world.started) < 20


async def test_that_another_request_refuses_the_cpu_is_no_reason_to_fail(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes["a"] = 8 * GIB
    await world.use("a", LoadOptions(fail_if_not_gpu=True))
    world.gpus["sim0"] = 6 * GIB
    running = await world.use("a", CTX_8192)
    assert [len(share.layers) for share in running.layout] == [3]
