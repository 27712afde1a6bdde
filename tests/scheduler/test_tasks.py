"""Tasks that nobody waits for are kept, logged and cancelled."""

from __future__ import annotations

import asyncio
import gc

import pytest

from scheduler.tasks import Tasks


async def test_a_task_is_kept_until_it_ends():
    tasks, ended = Tasks(), []

    async def work():
        await asyncio.sleep(0.01)
        ended.append(True)

    tasks.start("work", work())
    gc.collect()
    await tasks.wait()
    assert ended


async def test_those_that_start_meanwhile_are_waited_for():
    tasks, ended = Tasks(), []

    async def last():
        await asyncio.sleep(0.01)
        ended.append("last")

    async def first():
        await asyncio.sleep(0)
        tasks.start("last", last())

    tasks.start("first", first())
    await tasks.wait()
    assert ended == ["last"]


async def test_one_that_fails_is_logged_and_stops_nobody(caplog: pytest.LogCaptureFixture):
    tasks = Tasks()

    async def fail():
        raise ValueError("no")

    tasks.start("load a", fail())
    await tasks.wait()
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("scheduler", "ERROR", "load a failed")
    assert isinstance(record.exc_info[1], ValueError)


async def test_those_that_are_cancelled_end_without_a_word(caplog: pytest.LogCaptureFixture):
    tasks = Tasks()
    tasks.start("sleep", asyncio.sleep(60))
    tasks.cancel()
    async with asyncio.timeout(30):
        await tasks.wait()
    assert not caplog.records
