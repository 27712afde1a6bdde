"""What loaded models tell of themselves: one question to each runner, all of them side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from runner.protocol import RunnerStats
from scheduler.errors import SchedulerError
from scheduler.resident import ModelState, RunningModel

POLL_TIMEOUT_S = 1.0
"""A runner answers within milliseconds. One that is suspended, swapped out or dying does not; nobody waits for it."""


async def poll(models: Iterable[ModelState], timeout_s: float = POLL_TIMEOUT_S) -> dict[str, RunnerStats | None]:
    """What each runner tells, by the model's name; None for one that did not answer in ``timeout_s``, or not with that.

    Takes no longer than ``timeout_s`` for all together and raises nothing. It is no use of the models: their
    keep-alive clocks go on. Models without a runner, or with one that is being ended, are left out.
    """
    asked = [each.running for each in models if each.running and not each.running.client.is_closed]
    answers = await asyncio.gather(*(_ask(each, timeout_s) for each in asked))
    return {each.model.name: answer for each, answer in zip(asked, answers, strict=True)}


async def _ask(running: RunningModel, timeout_s: float) -> RunnerStats | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await running.client.stats()
    except (SchedulerError, TimeoutError):
        return None
