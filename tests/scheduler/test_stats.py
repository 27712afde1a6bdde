"""Asking runners what they do: side by side, and without waiting for one that does not answer."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import UTC, datetime

import pytest

from runner.protocol import CacheStats, DeviceMemory, Histogram, Memory, RunnerStats
from scheduler.options import ModelFile
from scheduler.resident import ModelState, RunningModel
from scheduler.stats import poll

STATS = RunnerStats(
    num_active=2, cache=CacheStats(num_cells=64, fragmentation=0.5), step=Histogram(bounds=(0.1,), counts=(3, 1))
)
TELLS = {"stats": STATS.model_dump(mode="json")}


def resident(name, started):
    memory = Memory(input_weights=0, cpu=DeviceMemory(id="cpu", library="cpu", weights=(1,), cache=(0,), graph=0))
    model, now = ModelFile(name, None), datetime.now(UTC)
    running = started and RunningModel(model, started.client, memory, (), 64, 1, now, 0)
    return ModelState(model, "ready" if started else "loading", 1.0, now, 64, running)


async def test_everybody_is_asked_and_answers(start_fake):
    models = [resident(name, await start_fake(**TELLS)) for name in "ab"]
    assert await poll([*models, resident("loading", None)], 60) == {"a": STATS, "b": STATS}


async def test_nobody_waits_for_those_who_do_not_answer(start_fake):
    deaf = [await start_fake(**TELLS) for _ in range(5)]
    good = await start_fake(**TELLS)
    for started in deaf:
        assert await poll([resident("deaf", started)], 60) == {"deaf": STATS}
        os.kill(started.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    found = await poll(
        [*(resident(f"deaf{i}", started) for i, started in enumerate(deaf)), resident("good", good)], 3.0
    )
    assert time.monotonic() - began < 12  # and not five times as long as one
    assert found == {**{f"deaf{i}": None for i in range(5)}, "good": STATS}


@pytest.mark.parametrize("script", [{}, {"stats": {"num_active": "many"}}])
async def test_an_answer_that_is_not_understood_is_none(start_fake, script):
    assert await poll([resident("a", await start_fake(**script))], 60) == {"a": None}


async def test_a_runner_that_was_killed_is_none(start_fake):
    started = await start_fake(**TELLS)
    started.process.kill()
    assert await poll([resident("a", started)]) == {"a": None}


async def test_a_runner_that_is_let_go_is_left_out(start_fake):
    started = await start_fake(**TELLS)
    await started.stop()
    assert await poll([resident("a", started)]) == {}


async def test_a_runner_that_is_let_go_meanwhile_is_none(start_fake):
    started = await start_fake(**TELLS)
    os.kill(started.process.pid, signal.SIGSTOP)
    asked = asyncio.create_task(poll([resident("a", started)]))
    await asyncio.sleep(0.05)
    os.kill(started.process.pid, signal.SIGCONT)
    started.process.kill()
    await started.client.aclose()
    assert await asked in ({"a": None}, {"a": STATS})
