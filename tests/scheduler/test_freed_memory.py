"""Memory that a driver gives back late."""

from __future__ import annotations

import pytest

from runner.footprint import CPU, DeviceName
from scheduler.devices import GPU, Machine, SystemMemory
from scheduler.freed_memory import LIMIT_S, freed_memory_appears

SIM0, SIM1 = DeviceName("sim0", "sim"), DeviceName("sim1", "sim")


def machine(*free):
    return Machine(SystemMemory(1000, 1000, 0), tuple(GPU(f"sim{i}", "sim", n) for i, n in enumerate(free)))


def looks(clock, *steps):
    """``(seconds, free on each GPU)``: from then on."""
    begin = clock.monotonic()

    async def look():
        return machine(*[free for at, free in steps if clock.monotonic() - begin >= at][-1])

    return look


@pytest.mark.parametrize(
    ("freed", "steps", "appears", "after_s"),
    [
        ({SIM0: 100}, [(0, (100, 0))], True, 0),  # at once, as simulated devices do
        ({SIM0: 100}, [(0, (0, 0)), (1, (74, 0)), (2, (75, 0))], True, 2),  # three quarters are enough
        ({SIM0: 100, SIM1: 40}, [(0, (100, 0)), (3, (0, 30))], True, 3),  # each device once
        ({SIM0: 100}, [(0, (0, 500))], False, LIMIT_S),
        ({CPU: 100}, [(0, (0, 0))], True, 0),
        ({SIM0: 0}, [(0, (0, 0))], True, 0),
        ({}, [(0, (0, 0))], True, 0),
        ({SIM0: 100}, [(0, ())], True, 0),  # the device is gone
    ],
)
async def test_waiting(clock, freed, steps, appears, after_s):
    begin = clock.monotonic()
    assert await freed_memory_appears(looks(clock, *steps), machine(0, 0), freed, clock) is appears
    assert after_s <= clock.monotonic() - begin < after_s + 0.2


async def test_what_was_free_before_does_not_count(clock):
    assert not await freed_memory_appears(looks(clock, (0, (90, 0))), machine(90, 0), {SIM0: 100}, clock)
