"""From nothing to a model that answers: the process, the load loop, the weights."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from runner.protocol import LoadRequest, LoadResponse, Memory
from scheduler.clock import Clock
from scheduler.errors import LoadError, LoadTimeoutError, RunnerUnreachableError
from scheduler.layout import num_placed
from scheduler.load import Loaded, Situation, is_launched, is_ready, load_model, wait_until
from scheduler.spawn import Started

LOG = logging.getLogger("scheduler.load")


@dataclass(frozen=True, slots=True)
class BringUp:
    """How long each phase took, in seconds, and what came of it."""

    loaded: Loaded
    process_s: float  # until the runner answered for the first time
    layout_s: float  # fit and alloc
    weights_s: float  # commit, until all weights were there


async def bring_up(
    started: Started,
    situation: Situation,
    estimate: Memory,
    clock: Clock,
    stall_timeout_s: float,
    on_progress: Callable[[float], None] = lambda progress: None,
) -> BringUp:
    """Waits for the process, loads the model and waits for its weights, of which ``on_progress`` hears (0 … 1).

    Raises RunnerExitedError as soon as the process ends, LoadTimeoutError after ``stall_timeout_s`` without any
    progress (<= 0: never), and what ``scheduler.load`` raises. The process is not stopped here; but one that stalled
    is killed, because it may hear no other signal, and whoever waits for the load waits until it has ended.
    RunnerUnreachableError means that the process has ended: a broken connection to one that lives is a LoadError.
    """
    work = _bring_up(started, situation, estimate, clock, stall_timeout_s, on_progress)
    try:
        return await started.process.while_alive(work)
    except LoadTimeoutError:
        started.process.kill()
        raise
    except RunnerUnreachableError as error:
        if started.process.is_alive:  # no crash, and not to be counted as one
            words = f": {error.last_words}" if error.last_words else ""
            raise LoadError(f"model runner broke the connection while it was loading{words}") from error
        raise


async def _bring_up(
    started: Started,
    situation: Situation,
    estimate: Memory,
    clock: Clock,
    stall_timeout_s: float,
    on_progress: Callable[[float], None],
) -> BringUp:
    client, last_words = started.client, started.process.last_words

    async def post(request: LoadRequest) -> LoadResponse:
        try:
            async with asyncio.timeout(stall_timeout_s if stall_timeout_s > 0 else None):
                response = await client.load(request)
        except TimeoutError:
            raise LoadTimeoutError(0.0, last_words()) from None
        if not response.success:  # told here and not by the loop: plans rehearse that as well
            LOG.info("%d layers on GPUs did not fit: %s", num_placed(request.layout), response.message)
        return response

    begin = clock.monotonic()
    await wait_until(is_launched, client.health, clock, stall_timeout_s, last_words)
    launched = clock.monotonic()
    loaded = await load_model(post, situation, estimate)
    committed = clock.monotonic()
    await wait_until(is_ready, client.health, clock, stall_timeout_s, last_words, on_progress)
    return BringUp(loaded, launched - begin, committed - launched, clock.monotonic() - committed)
