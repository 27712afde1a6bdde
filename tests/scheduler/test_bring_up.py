"""A model is brought up on a real process that is scripted to go wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time

import pytest

from runner.protocol import LoadRequest, Operation
from scheduler.bring_up import bring_up
from scheduler.client import RunnerClient
from scheduler.clock import SystemClock
from scheduler.devices import Machine, SystemMemory
from scheduler.errors import (
    LayoutNotAllocatedError,
    LoadError,
    LoadTimeoutError,
    RunnerExitedError,
    RunnerRequestError,
    RunnerUnreachableError,
)
from scheduler.layout import LayoutRules, unknown_memory
from scheduler.load import Situation
from scheduler.scheduler import Scheduler, SchedulerSettings

SITUATION = Situation(LoadRequest(operation=Operation.FIT), Machine(SystemMemory(2**40, 2**40, 0)), LayoutRules())


async def bring(started, stall_timeout_s=60.0, clock=None):
    return await bring_up(started, SITUATION, unknown_memory(3), clock or SystemClock(), stall_timeout_s)


async def test_all_the_way(start_fake):
    up = await bring(await start_fake(load_polls=3))
    assert up.loaded.layout == ()
    assert up.loaded.memory.input_weights == 1000
    assert min(up.process_s, up.layout_s, up.weights_s) > 0


@pytest.mark.parametrize("operation", [Operation.FIT, Operation.ALLOC, Operation.COMMIT])
async def test_death_in_an_operation_tells_why(start_fake, operation):
    started = await start_fake(die_in_operation=int(operation))
    with pytest.raises((RunnerExitedError, RunnerUnreachableError), match=r"out of memory: tried to allocate 12 GiB"):
        await bring(started)


async def test_memory_that_cannot_be_had_is_told_in_the_log(start_fake, caplog):
    caplog.set_level(logging.INFO, "scheduler.load")
    with pytest.raises(LayoutNotAllocatedError, match=r"9 bytes asked, 1 bytes free"):
        await bring(await start_fake(refuse_alloc="9 bytes asked, 1 bytes free"))
    assert caplog.messages == ["0 layers on GPUs did not fit: 9 bytes asked, 1 bytes free"]


async def test_death_while_the_weights_are_read(start_fake):
    started = await start_fake(load_polls=10**9, die_in_health=True)
    with pytest.raises((RunnerExitedError, RunnerUnreachableError), match=r"ValueError: tensor blk.0 is damaged"):
        await bring(started)


async def test_a_process_that_ends_at_once(start_fake):
    started = await start_fake(exit_before_listening=2, say_first=["error: not a GGUF file"])
    with pytest.raises((RunnerExitedError, RunnerUnreachableError), match=r"error: not a GGUF file"):
        await bring(started)


async def test_a_load_that_stalls(start_fake, clock):
    started = await start_fake(stall=True)
    with pytest.raises(LoadTimeoutError, match=r"progress 0\.50"):
        await bring(started, clock=clock)


@pytest.mark.parametrize("is_loading", [True, False])
async def test_those_who_wait_hear_of_a_stall_when_its_time_has_passed(start_fake, new_world, until, is_loading):
    """The process is stopped (SIGSTOP): it answers nothing, and hears no SIGTERM."""
    started, world = await start_fake(stall=True), new_world()
    await started.client.health()

    async def spawn(*_):
        return started

    settings = SchedulerSettings(load_timeout_s=3.0)
    scheduler = Scheduler(settings, spawn=spawn, estimates=world, machine=world.machine)

    async def wait():
        async with scheduler.acquire(world.model("a")):
            pass

    waiting = [asyncio.create_task(wait()) for _ in range(2)]
    if is_loading:
        await until(lambda: any(each.progress for each in scheduler.residents()))
    os.kill(started.process.pid, signal.SIGSTOP)
    begin = time.monotonic()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert time.monotonic() - begin < 7.5  # not 5 s later, as where a signal is given time to be heard
    assert [type(outcome) for outcome in outcomes] == [LoadTimeoutError] * 2
    assert not started.process.is_alive
    assert scheduler.residents() == []
    await scheduler.close()


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (RunnerRequestError(500, "the file is no model"), "the file is no model"),
        (RunnerUnreachableError("late words"), "model runner broke the connection while it was loading: late words"),
        (RunnerUnreachableError(""), "model runner broke the connection while it was loading"),
    ],
)
async def test_a_load_that_fails_while_its_process_lives_is_no_crash(new_world, failure, told):
    world = new_world()
    world.failures["a"] = failure
    for _ in range(4):
        with pytest.raises((LoadError, RunnerRequestError)) as caught:
            await world.use("a")
        assert str(caught.value) == told
    assert len(world.processes("a")) == 4  # no pause in between
    assert world.observer.of("crashed") == []


async def test_a_cancellation_that_comes_with_an_answer_is_not_lost(start_fake, monkeypatch):
    """Otherwise a server that closes at the wrong moment waits for ever for a load that goes on."""
    started = await start_fake(stall=True)
    bringing = asyncio.create_task(bring(started))
    answer = started.client.load

    async def answer_and_cancel(request):
        response = await answer(request)
        bringing.cancel()
        return response

    monkeypatch.setattr(RunnerClient, "load", lambda self, request: answer_and_cancel(request))
    with pytest.raises(asyncio.CancelledError):
        await bringing
