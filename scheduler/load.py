"""The load loop: fit → alloc → commit, with layouts that follow what the runner measures.

Every answer of the runner tells more about what the model takes, so the layout is made anew after each. Layouts
only shrink; one that was tried before ends the loop; where graphs that move on and off a GPU make it swing between
two layer counts, those between are tried; where an allocation fails although the layout said that it fits, a growing
share of the GPUs' memory (the backoff) is left alone. Ollama's algorithm, its state kept in values that never change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from runner.protocol import Health, Layout, LoadRequest, LoadResponse, Memory, Operation, Status
from scheduler.clock import Clock
from scheduler.devices import Machine
from scheduler.errors import CommitError, LayoutNotAllocatedError, LoadError, LoadTimeoutError, SchedulerError
from scheduler.layout import MAX_BACKOFF, LayoutRules, create_layout, num_placed

LOG = logging.getLogger("scheduler.load")

BACKOFF_STEP = 0.1
CLOSE_TIMEOUT_S = 5.0

_FIRST_POLL_S = 0.005
_POLL_GROWTH = 1.2  # a load of any length is noticed at most a fifth later than it ends
_MAX_POLL_S = 0.25
_LAST_ANSWER_S = 0.25  # that the runner is given for its last chance to tell of progress

Post = Callable[[LoadRequest], Awaitable[LoadResponse]]
AskHealth = Callable[[], Awaitable[Health]]


@dataclass(frozen=True, slots=True)
class Situation:
    """What stays the same during one load: the request but for operation and layout, the machine, the rules."""

    request: LoadRequest
    machine: Machine
    rules: LayoutRules

    def layout(self, memory: Memory, backoff: float, num_gpu: int | None = None) -> Layout:
        """Raises LayoutError."""
        rules = replace(self.rules, backoff=backoff, num_gpu=self.rules.num_gpu if num_gpu is None else num_gpu)
        return create_layout(memory, self.machine.gpus, self.machine.system, rules)

    def ask(self, operation: Operation, layout: Layout) -> LoadRequest:
        return self.request.model_copy(update={"operation": operation, "layout": layout})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One layout that the runner was asked for, and all that is known after its answer."""

    layout: Layout
    response: LoadResponse
    tried: frozenset[Layout]
    backoff: float = 0.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model whose weights are being read: where its layers are, and what it takes, measured."""

    layout: Layout
    memory: Memory


async def load_model(post: Post, situation: Situation, estimate: Memory) -> Loaded:
    """Takes a fresh runner through fit, alloc and commit; the runner then reads the weights on its own.

    Whatever fails, close is sent before the error leaves; but not to a runner that has stalled, and would not hear it.
    Raises LayoutError, LoadError, and what ``post`` raises.
    """
    try:
        layout = situation.layout(estimate, 0.0)
        attempt = await _attempt(post, situation, Operation.FIT, layout, frozenset(), 0.0)
        attempt = await _settle(post, situation, Operation.FIT, attempt)
        attempt = await _again(post, situation, Operation.ALLOC, attempt, attempt.layout)
        attempt = await _settle(post, situation, Operation.ALLOC, attempt)
        response = await post(situation.ask(Operation.COMMIT, attempt.layout))
        if not response.success:
            raise CommitError(response.message)
    except LoadTimeoutError:
        raise
    except BaseException:
        await _close(post, situation)
        raise
    return Loaded(attempt.layout, response.memory)


async def _settle(post: Post, situation: Situation, operation: Operation, attempt: Attempt) -> Attempt:
    """Repeats ``operation`` until the runner has the layout that its own measurements lead to."""
    while True:
        layout = situation.layout(attempt.response.memory, attempt.backoff)
        if layout not in attempt.tried and num_placed(layout) <= num_placed(attempt.layout):
            attempt = await _again(post, situation, operation, attempt, layout)
            continue
        if situation.rules.num_gpu < 0 and num_placed(layout) - num_placed(attempt.layout) > 1:
            between = await _explore(post, situation, operation, attempt, num_placed(layout))
            if between is not None:
                return between
            # The runner now holds a layout that did not work: back to the one that did.
            attempt = await _again(post, situation, operation, attempt, attempt.layout)
        if attempt.response.success:
            return attempt
        attempt = replace(attempt, backoff=_next_backoff(situation.rules, attempt))


async def _explore(
    post: Post, situation: Situation, operation: Operation, attempt: Attempt, upper: int
) -> Attempt | None:
    """Tries the layer counts below ``upper`` down to the last one. None: none of them can be had."""
    for num_gpu in range(upper - 1, num_placed(attempt.layout) - 1, -1):
        layout = situation.layout(attempt.response.memory, attempt.backoff, num_gpu)
        # What was tried is forgotten: the count has gone up, and must be able to come down again.
        found = await _attempt(post, situation, operation, layout, frozenset(), attempt.backoff)
        if found.response.success:
            proven = situation.layout(found.response.memory, attempt.backoff)
            if num_placed(layout) <= num_placed(proven):
                return replace(found, tried=frozenset())
    return None


async def _again(post: Post, situation: Situation, operation: Operation, attempt: Attempt, layout: Layout) -> Attempt:
    return await _attempt(post, situation, operation, layout, attempt.tried, attempt.backoff)


async def _attempt(
    post: Post, situation: Situation, operation: Operation, layout: Layout, tried: frozenset[Layout], backoff: float
) -> Attempt:
    response = await post(situation.ask(operation, layout))
    LOG.debug("%s of %d layers: success %s %s", operation.name, num_placed(layout), response.success, response.message)
    return Attempt(layout, response, tried | {layout}, backoff)


def _next_backoff(rules: LayoutRules, attempt: Attempt) -> float:
    """Raises LayoutNotAllocatedError where less cannot be asked for."""
    reason = attempt.response.message
    if rules.num_gpu >= 0:
        raise LayoutNotAllocatedError(rules.num_gpu, reason)
    if attempt.backoff >= MAX_BACKOFF:
        raise LayoutNotAllocatedError(-1, reason)
    backoff = round(attempt.backoff + BACKOFF_STEP, 3)
    LOG.debug("the layout did not fit: leaving %.0f %% of free memory alone (%s)", backoff * 100, reason)
    return backoff


async def _close(post: Post, situation: Situation) -> None:
    """Best effort: the runner may be the very thing that failed."""
    with contextlib.suppress(SchedulerError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await post(situation.ask(Operation.CLOSE, ()))


# ---- waiting -----------------------------------------------------------------------------------


async def wait_until(
    is_reached: Callable[[Health], bool],
    health: AskHealth,
    clock: Clock,
    stall_timeout_s: float,
    last_words: Callable[[], str],
    on_progress: Callable[[float], None] = lambda progress: None,
) -> None:
    """Asks for the runner's health until ``is_reached``; any change of status or progress starts the timeout anew.

    ``on_progress`` is called with the weights' progress (0 … 1) at each such change.

    Raises LoadTimeoutError after ``stall_timeout_s`` without a change (<= 0: never), also where ``health`` does not
    return; LoadError if the runner says that it failed; and what ``health`` raises but TimeoutError (a runner that is
    busy may be late).
    """
    seen = Health(status=Status.NOT_RESPONDING)
    changed_at = clock.monotonic()
    pause_s = _FIRST_POLL_S
    while True:
        rest_s = changed_at + stall_timeout_s - clock.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(rest_s, _LAST_ANSWER_S) if stall_timeout_s > 0 else None):
                found = await health()
            if is_reached(found):
                return
            if found.status == Status.ERROR:
                raise LoadError(found.message or last_words() or "model failed to load")
            if (found.status, found.progress) != (seen.status, seen.progress):
                seen, changed_at = found, clock.monotonic()
                on_progress(found.progress)
        if 0 < stall_timeout_s < clock.monotonic() - changed_at:
            raise LoadTimeoutError(seen.progress, last_words())
        await clock.sleep(pause_s)
        pause_s = min(pause_s * _POLL_GROWTH, _MAX_POLL_S)


def is_launched(health: Health) -> bool:
    """It answers: load operations can be sent."""
    return health.status != Status.ERROR


def is_ready(health: Health) -> bool:
    """All weights are there."""
    return health.status in (Status.READY, Status.BUSY)
