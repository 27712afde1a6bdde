"""Requests for a loaded model with other options."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from scheduler.errors import (
    LayoutNotAllocatedError,
    ModelFileError,
    NotOnGPUError,
    SettingsError,
    SystemMemoryError,
)
from scheduler.events import Unload
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
    async with asyncio.timeout(60):
        assert (await world.use("a")).num_ctx == 4096
        assert (await world.use("a", LoadOptions(num_ctx=640))).num_ctx == 640  # its own; the model has more
    assert len(world.started) == 2


async def test_requests_that_exclude_each_other_are_all_served(new_world):
    """Each reloads the model under the others, but none for ever."""
    world = new_world(gpus={"sim0": 8 * GIB}, fail_if_not_gpu=True)
    asked = [LoadOptions(num_gpu=0, fail_if_not_gpu=False), LoadOptions(), LoadOptions(num_gpu=2), CTX_8192]
    asked += [LoadOptions(num_ctx=100, num_gpu=0, fail_if_not_gpu=False), LoadOptions(num_gpu=3), LoadOptions()]
    async with asyncio.timeout(60):
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


# ---- a file that was replaced --------------------------------------------------------------------


async def use(world, model, options=LoadOptions()):  # noqa: B008  # frozen
    async with world.scheduler.acquire(model, options) as running:
        return running


async def test_a_replaced_file_is_loaded_anew(new_world):
    world = new_world()
    old = world.model("a")
    new = replace(old, digest="new")
    await use(world, old)
    world.sizes["a"] = 2 * GIB
    running = await use(world, new)
    assert (running.model, running.memory.total_bytes) == (new, 2 * GIB)
    assert (await use(world, new)).client is running.client
    assert len(world.started) == 2
    assert world.observer.of("unloaded") == [("unloaded", "a", Unload.RELOAD)]


async def test_requests_under_way_end_on_the_old_file(new_world):
    world = new_world()
    old = world.model("a")
    async with world.scheduler.acquire(old):
        request = asyncio.create_task(use(world, replace(old, digest="new")))
        await asyncio.sleep(0.05)
        assert not request.done()
        assert world.processes("a")[0].is_alive
    assert (await request).model.digest == "new"


async def test_requests_for_either_state_of_a_file_are_all_served(new_world):
    """Those that found the old one come late; nobody waits for ever."""
    world = new_world()
    models = [replace(world.model("a"), digest=digest) for digest in ("old", "new", "old", "new", "new", "old")]
    async with asyncio.timeout(60):
        found = await asyncio.gather(*(use(world, model) for model in models))
    assert [running.model.digest for running in found] == ["old", "new", "old", "new", "new", "old"]
    assert len(world.started) <= len(models)


# ---- loads that are bound to fail --------------------------------------------------------------


@pytest.mark.parametrize("keep_alive_s", [None, -1])
async def test_nobody_loses_a_model_for_a_load_that_is_bound_to_fail(new_world, keep_alive_s):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes["a"] = 12 * GIB
    first = await world.use("a", keep_alive_s=keep_alive_s)
    with pytest.raises(LayoutNotAllocatedError, match="num_gpu = 3"):
        await world.use("a", LoadOptions(num_gpu=3))
    assert (await world.use("a")).client is first.client
    assert len(world.started) == 1


async def test_what_others_hold_is_no_reason_to_refuse_a_reload(new_world):
    """Neither is what the model holds itself."""
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=5 * GIB, b=2 * GIB)
    for name in "ab":
        await world.use(name)
    world.sizes["a"] = 8 * GIB
    running = await world.use("a", LoadOptions(num_ctx=5000, fail_if_not_gpu=True))
    assert running.num_ctx == 5000
    assert world.names() == ["a"]


async def test_a_model_stays_where_the_host_has_too_little_for_its_reload(new_world):
    world = new_world()
    await world.use("a")
    world.sizes["a"] = 65 * GIB
    with pytest.raises(SystemMemoryError, match=r"65\.0 GiB"):
        await use(world, replace(world.model("a"), digest="new"))
    assert world.names() == ["a"]


async def test_a_model_stays_where_its_new_file_cannot_be_read(new_world, monkeypatch):
    world = new_world()
    await world.use("a")

    def refuse(*arguments):
        raise ModelFileError("damaged")

    monkeypatch.setattr(world, "header", refuse)
    with pytest.raises(ModelFileError, match="damaged"):
        await use(world, replace(world.model("a"), digest="new"))
    assert world.names() == ["a"]


async def test_options_that_only_fit_together_with_those_of_others_are_no_reason_to_refuse(new_world, monkeypatch):
    world = new_world()
    await world.use("a", LoadOptions(kv_cache_type="q4_0"))
    memory = world.memory

    def needs_a_small_cache(path, request, devices=()):
        world.sizes["a"] = GIB if request.kv_cache_type == "q4_0" else 65 * GIB
        return memory(path, request, devices)

    monkeypatch.setattr(world, "memory", needs_a_small_cache)
    assert (await world.use("a", CTX_8192)).num_ctx == 8192


async def test_the_memory_of_a_load_under_way_is_no_reason_to_refuse_a_reload(new_world, until):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=2 * GIB, b=5 * GIB)
    await world.use("a")
    gate = world.hold("b")
    loading = world.start("b")
    await until(lambda: world.committed() >= {"b"})
    world.sizes["a"] = 4 * GIB
    reloading = world.start("a", LoadOptions(num_gpu=4, num_ctx=5000))
    await asyncio.sleep(0.05)
    assert not reloading.done()
    gate.set()
    await loading
    assert (await reloading).num_ctx == 5000


async def test_a_loaded_model_serves_while_a_reload_is_being_refused(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes["a"] = 12 * GIB
    await world.use("a")
    refused = [world.start("a", LoadOptions(num_gpu=4)) for _ in range(3)]
    await asyncio.sleep(0)
    await world.use("a")
    for outcome in await asyncio.gather(*refused, return_exceptions=True):
        assert isinstance(outcome, LayoutNotAllocatedError)
    assert len(world.started) == 1


@pytest.mark.parametrize("asked", [2, 999])
async def test_layers_on_the_cpu_are_refused_whatever_num_gpu_says(new_world, asked):
    """The model is there with fewer layers on the GPU than the request demands."""
    world = new_world(gpus={"sim0": 8 * GIB})
    await world.use("a", LoadOptions(num_gpu=1))
    on_gpu = LoadOptions(num_gpu=asked, fail_if_not_gpu=True)
    assert [len(share.layers) for share in (await world.use("a", on_gpu)).layout] == [min(asked, 4)]
    await world.scheduler.unload(world.model("a"))
    world.sizes["a"] = 64 * GIB
    resident = await world.use("a", LoadOptions(num_gpu=0))
    world.scheduler._residents[resident.model.path].options = LoadOptions(num_gpu=asked)  # all asked for, none had
    with pytest.raises((NotOnGPUError, LayoutNotAllocatedError)):
        await world.use("a", on_gpu)
    assert world.names() == ["a"]
