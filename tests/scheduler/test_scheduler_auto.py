"""``num_ctx: "auto"`` that came to little while memory was short, after memory has become free again."""

from __future__ import annotations

import asyncio
import threading

import pytest

from scheduler.errors import ModelFileError
from scheduler.scheduler import LoadOptions

GIB = 2**30
TOKEN_BYTES = 8 << 20
AUTO = LoadOptions(num_ctx="auto")


@pytest.fixture
def world(new_world, monkeypatch):
    """``a`` takes 8 MiB for each token of its context. Beside ``big``, which is pinned, that is 512 tokens."""
    world = new_world()
    world.sizes["big"] = 60 * GIB
    world.taken["a"] = GIB
    memory = world.memory

    def grows_with_context(path, request, devices=()):
        if path.stem == "a":
            world.sizes["a"] = request.num_ctx * TOKEN_BYTES
        return memory(path, request, devices)

    monkeypatch.setattr(world, "memory", grows_with_context)
    return world


async def load_beside(world):
    await world.use("big", keep_alive_s=-1)
    assert (await world.use("a", AUTO)).num_ctx == 512


@pytest.mark.parametrize("options", [LoadOptions(), AUTO])
async def test_it_is_loaded_anew_once_more_would_fit(world, options):
    await load_beside(world)
    await world.use("a", keep_alive_s=-1)
    await world.scheduler.unload(world.model("big"))
    assert (await world.use("a", options)).num_ctx == 8192
    assert (await world.use("a", options)).num_ctx == 8192
    assert len(world.processes("a")) == 2
    assert world.scheduler.running()[0].expires_at.year > 2300  # it is still pinned


async def test_while_nothing_has_changed_nobody_looks(world):
    await load_beside(world)
    num_looks = world.num_looks
    for _ in range(5):
        for options in (LoadOptions(), AUTO, LoadOptions(num_ctx=100)):
            await world.use("a", options)
    assert world.num_looks == num_looks
    assert len(world.processes("a")) == 1


async def test_what_other_programs_give_back_is_found_after_a_while(world):
    world.total_bytes = 4 * GIB
    assert (await world.use("a", AUTO)).num_ctx == 512
    world.total_bytes = 64 * GIB
    world.clock.advance(29)
    assert (await world.use("a")).num_ctx == 512
    world.clock.advance(1)
    assert (await world.use("a")).num_ctx == 8192


@pytest.mark.parametrize(("total_gib", "num_ctx"), [(6, 512), (8, 1024)])
async def test_a_little_more_is_not_worth_a_reload(world, total_gib, num_ctx):
    world.total_bytes = 4 * GIB
    await world.use("a", AUTO)
    world.total_bytes = total_gib * GIB
    for _ in range(3):
        world.clock.advance(30)
        assert (await world.use("a")).num_ctx == num_ctx


async def test_a_small_number_that_was_asked_for_is_not_auto(world):
    await load_beside(world)
    await world.use("a", LoadOptions(num_ctx=600))
    await world.scheduler.unload(world.model("big"))
    num_started = len(world.started)
    assert (await world.use("a", AUTO)).num_ctx == 600
    assert len(world.started) == num_started


async def test_only_one_request_looks_and_the_others_are_served_at_once(world, until):
    await load_beside(world)
    await world.scheduler.unload(world.model("big"))
    gate = world.hold("a")
    async with world.scheduler.acquire(world.model("a"), LoadOptions(num_ctx=100)):
        first = world.start("a")
        second = world.start("a")
        assert (await second).num_ctx == 512
        await until(lambda: not world.names())
        gate.set()
    assert (await first).num_ctx == 8192
    assert len(world.processes("a")) == 2


async def test_a_file_that_cannot_be_read_any_more_is_no_reason_to_refuse_what_is_loaded(world, monkeypatch):
    await load_beside(world)
    await world.scheduler.unload(world.model("big"))

    def refuse(*arguments):
        raise ModelFileError("damaged")

    monkeypatch.setattr(world, "header", refuse)
    assert (await world.use("a", AUTO)).num_ctx == 512
    assert world.scheduler._residents[world.model("a").path].is_idle


async def test_a_client_that_leaves_during_the_look_does_not_hold_the_model(world, monkeypatch, until):
    await load_beside(world)
    await world.scheduler.unload(world.model("big"))
    header, is_looking, may_go_on = world.header, threading.Event(), threading.Event()

    def wait(path):
        is_looking.set()
        may_go_on.wait(60)
        return header(path)

    monkeypatch.setattr(world, "header", wait)
    request = world.start("a")
    await until(is_looking.is_set)
    request.cancel()
    await asyncio.wait([request])
    may_go_on.set()
    assert world.scheduler._residents[world.model("a").path].is_idle
    assert (await world.use("a")).num_ctx == 512  # somebody has looked


async def test_two_clients_do_not_reload_each_other(world):
    await load_beside(world)
    await world.scheduler.unload(world.model("big"))
    async with asyncio.timeout(60):
        for _ in range(4):
            for options in (AUTO, LoadOptions(), LoadOptions(num_ctx=700), LoadOptions(num_thread=2)):
                await world.use("a", options)
                world.clock.advance(40)
    assert len(world.processes("a")) <= 3
