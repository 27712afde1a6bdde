"""Questions to drivers, on a thread that is theirs alone."""

from __future__ import annotations

import asyncio
import threading

import pytest

from scheduler.devices import Machine, SystemMemory
from scheduler.lookout import Lookout

MACHINE = Machine(SystemMemory(1, 1, 1))


@pytest.fixture
def may_answer():
    return threading.Event()


@pytest.fixture
def is_asked():
    return threading.Event()


@pytest.fixture
def hanging(may_answer, is_asked):
    """A lookout whose driver hangs until it may answer."""
    lookout = Lookout(lambda: is_asked.set() or (may_answer.wait(60) and MACHINE))
    yield lookout
    may_answer.set()
    lookout.close()


async def test_answers_and_errors():
    lookout = Lookout(lambda: MACHINE)
    assert await lookout.machine() == MACHINE
    with pytest.raises(ZeroDivisionError):
        await lookout.ask(lambda: 1 // 0)
    lookout.close()


async def test_one_that_hangs_holds_up_no_other_thread(hanging, may_answer):
    looks = [asyncio.create_task(hanging.machine()) for _ in range(50)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "at once"), 30) == "at once"
    assert not any(look.done() for look in looks)
    may_answer.set()
    assert await asyncio.gather(*looks) == [MACHINE] * 50


async def test_those_who_wait_are_given_up_on_close(hanging, may_answer, is_asked, until):
    looks = [asyncio.create_task(hanging.machine()) for _ in range(3)]
    await until(is_asked.is_set)
    hanging.close()
    hanging.close()
    may_answer.set()
    found = await asyncio.gather(*looks, return_exceptions=True)
    assert found[0] == MACHINE
    assert all(isinstance(each, asyncio.CancelledError) for each in found[1:])
