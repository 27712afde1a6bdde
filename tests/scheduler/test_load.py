"""The load loop against a scripted runner: every transition, and close after every failure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from runner.protocol import DeviceMemory, Health, LoadRequest, LoadResponse, Memory, Operation, Status
from scheduler.clock import SystemClock
from scheduler.devices import GPU, Machine, SystemMemory
from scheduler.errors import (
    CommitError,
    LayoutNotAllocatedError,
    LoadError,
    LoadTimeoutError,
    RequireFullError,
    RunnerUnreachableError,
    SystemMemoryError,
)
from scheduler.layout import LayoutRules, num_placed, unknown_memory
from scheduler.load import Situation, is_launched, is_ready, load_model, wait_until

FIT, ALLOC, COMMIT, CLOSE = Operation
PLENTY = SystemMemory(2**50, 2**50, 0)


@dataclass
class ScriptedRunner:
    """Measures with ``measure(layout) -> Memory``; ``refuses(request) -> reason`` makes success false."""

    measure: Callable[[tuple], Memory]
    refuses: Callable[[LoadRequest], str] = lambda request: ""
    dies_in: Operation | None = None
    posts: list[tuple[Operation, int]] = field(default_factory=list)

    async def post(self, request: LoadRequest) -> LoadResponse:
        self.posts.append((request.operation, num_placed(request.layout)))
        if request.operation == self.dies_in:
            raise RunnerUnreachableError("signal: SIGKILL (Killed)")
        reason = self.refuses(request)
        return LoadResponse(success=not reason, memory=self.measure(request.layout), message=reason)


def model(layers, graph_of=lambda layout: 0, gpu="g0"):
    """Measures ``layers`` bytes each, wherever they are, and a graph on the GPU that depends on the layout."""

    def measure(layout) -> Memory:
        zeros = (0,) * len(layers)
        on_gpu = {i for device in layout for i in device.layers}
        return Memory(
            input_weights=0,
            cpu=DeviceMemory(
                id="cpu",
                library="cpu",
                weights=tuple(0 if i in on_gpu else n for i, n in enumerate(layers)),
                cache=zeros,
                graph=0,
            ),
            gpus=(
                DeviceMemory(
                    id=gpu,
                    library="sim",
                    weights=tuple(n if i in on_gpu else 0 for i, n in enumerate(layers)),
                    cache=zeros,
                    graph=graph_of(layout),
                ),
            ),
        )

    return measure


def situation(free=1000, system=PLENTY, **rules):
    gpus = (GPU("g0", "sim", free, minimum_bytes=0),) if free is not None else ()
    return Situation(LoadRequest(operation=FIT), Machine(system, gpus), LayoutRules(**rules))


async def load(runner, where, num_layers=10, estimate=None):
    return await load_model(runner.post, where, estimate or unknown_memory(num_layers))


# ---- convergence -------------------------------------------------------------------------------


async def test_converges_at_once():
    runner = ScriptedRunner(model([100] * 10))
    loaded = await load(runner, situation())
    assert runner.posts == [(FIT, 10), (ALLOC, 10), (COMMIT, 10)]
    assert loaded.layout[0].layers == tuple(range(10))
    assert loaded.memory.gpu_bytes == 1000


async def test_a_machine_without_gpus_goes_the_same_way():
    runner = ScriptedRunner(model([100] * 10))
    loaded = await load(runner, situation(free=None))
    assert runner.posts == [(FIT, 0), (ALLOC, 0), (COMMIT, 0)]
    assert loaded.layout == ()


async def test_a_good_estimate_saves_a_step():
    measure = model([100] * 10)
    runner = ScriptedRunner(measure)
    await load(runner, situation(free=500), estimate=measure(()))
    assert runner.posts == [(FIT, 5), (ALLOC, 5), (COMMIT, 5)]


async def test_shrinks_twice():
    """The measured sizes leave room for 7; the graph of those 7 for 5."""
    runner = ScriptedRunner(model([100] * 10, graph_of=lambda layout: 200 if num_placed(layout) <= 7 else 0))
    await load(runner, situation(free=700))
    assert runner.posts == [(FIT, 10), (FIT, 7), (FIT, 5), (ALLOC, 5), (COMMIT, 5)]


async def test_shrinks_in_alloc_as_well():
    """Allocation takes more than fit said, by what the driver keeps."""
    graphs = {FIT: 0, ALLOC: 150}
    runner = ScriptedRunner(model([100] * 10))

    async def post(request):
        runner.measure = model([100] * 10, graph_of=lambda layout: graphs.get(request.operation, 150))
        return await runner.post(request)

    loaded = await load_model(post, situation(free=1000), unknown_memory(10))
    assert runner.posts == [(FIT, 10), (ALLOC, 10), (ALLOC, 8), (COMMIT, 8)]
    assert num_placed(loaded.layout) == 8


async def test_swings_between_39_and_41_and_settles_on_40():
    """With 41 layers the graph is so large that 39 fit; with 39 it is so small that 41 fit."""
    graphs = {41: 200, 40: 100, 39: 0}
    runner = ScriptedRunner(model([100] * 60, graph_of=lambda layout: graphs.get(num_placed(layout), 0)))
    loaded = await load(runner, situation(free=4100), num_layers=60)
    assert runner.posts == [(FIT, 60), (FIT, 41), (FIT, 39), (FIT, 40), (ALLOC, 40), (COMMIT, 40)]
    assert num_placed(loaded.layout) == 40


async def test_where_none_between_can_be_had_the_lower_one_is_used():
    graphs = {41: 200, 40: 200, 39: 0}
    runner = ScriptedRunner(model([100] * 60, graph_of=lambda layout: graphs.get(num_placed(layout), 0)))
    loaded = await load(runner, situation(free=4100), num_layers=60)
    assert num_placed(loaded.layout) == 39
    assert runner.posts[-2:] == [(ALLOC, 39), (COMMIT, 39)]


async def test_what_is_committed_was_the_last_to_be_allocated():
    """Neither 40 nor 39 again can be had for a moment: the runner is taken back to 39 before it commits."""
    graphs = {41: 200, 40: 200, 39: 0}
    runner = ScriptedRunner(model([100] * 60, graph_of=lambda layout: graphs.get(num_placed(layout), 0)))
    second_alloc = [(ALLOC, 39), (ALLOC, 40), (ALLOC, 39)]
    runner.refuses = lambda request: "busy" if runner.posts[-3:] == second_alloc else ""
    loaded = await load(runner, situation(free=4100), num_layers=60)
    assert num_placed(loaded.layout) == 39
    assert runner.posts[-5:] == [*second_alloc, (ALLOC, 39), (COMMIT, 39)]


async def test_a_layout_never_grows():
    """What alloc measures would leave room for all 10, but 8 were settled on."""
    runner = ScriptedRunner(model([100] * 10))

    async def post(request):
        size = 120 if request.operation == FIT else 100
        runner.measure = model([size] * 10)
        return await runner.post(request)

    loaded = await load_model(post, situation(free=1000, num_gpu=-1), unknown_memory(10))
    counts = [count for _, count in runner.posts]
    assert num_placed(loaded.layout) in (8, 9)
    assert counts[0] == 10
    assert max(counts[1:]) <= 9


# ---- memory that is short ----------------------------------------------------------------------


async def test_backoff_climbs_and_succeeds():
    """The GPU has 1000 free bytes but gives no more than 750."""
    runner = ScriptedRunner(
        model([100] * 10), refuses=lambda request: "750 free" if num_placed(request.layout) > 7 else ""
    )
    loaded = await load(runner, situation())
    assert [count for operation, count in runner.posts if operation == FIT][:4] == [10, 9, 8, 7]
    assert num_placed(loaded.layout) == 7


async def test_backoff_runs_out_and_says_why(caplog):
    caplog.set_level(logging.INFO)
    runner = ScriptedRunner(model([100] * 10), refuses=lambda request: "asked 100 bytes, 0 free")
    with pytest.raises(LayoutNotAllocatedError) as caught:
        await load(runner, situation())
    assert str(caught.value) == "memory layout cannot be allocated: asked 100 bytes, 0 free"
    assert runner.posts[-1] == (CLOSE, 0)
    assert [count for operation, count in runner.posts[:-1]] == list(range(10, -1, -1))
    assert caplog.messages == []  # a plan rehearses the same, and says nothing of it


async def test_success_false_without_gpus_says_why():
    runner = ScriptedRunner(model([100] * 3), refuses=lambda r: "cpu: 300 bytes" if r.operation == ALLOC else "")
    with pytest.raises(LayoutNotAllocatedError, match=r"memory layout cannot be allocated: cpu: 300 bytes"):
        await load(runner, situation(free=None), num_layers=3)
    assert runner.posts == [(FIT, 0), (ALLOC, 0), (CLOSE, 0)]


async def test_a_fixed_num_gpu_that_cannot_be_had():
    runner = ScriptedRunner(model([100] * 10), refuses=lambda request: "full")
    with pytest.raises(LayoutNotAllocatedError) as caught:
        await load(runner, situation(num_gpu=6))
    assert str(caught.value) == "memory layout cannot be allocated with num_gpu = 6: full"
    assert runner.posts[-1] == (CLOSE, 0)


async def test_require_full_ends_as_soon_as_it_is_known_not_to_fit():
    runner = ScriptedRunner(model([100] * 11))
    with pytest.raises(RequireFullError):
        await load(runner, situation(require_full=True), num_layers=11)
    assert runner.posts == [(FIT, 11), (CLOSE, 0)]


async def test_system_memory_that_is_short_after_measuring():
    runner = ScriptedRunner(model([100] * 11))
    with pytest.raises(SystemMemoryError, match=r"\(100 B\) than is available \(50 B\)"):
        await load(runner, situation(system=SystemMemory(50, 50, 0)), num_layers=11)
    assert runner.posts[-1] == (CLOSE, 0)


# ---- failure -----------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [FIT, ALLOC, COMMIT])
async def test_death_in_each_operation_is_told_and_close_is_sent(operation):
    runner = ScriptedRunner(model([100] * 10), dies_in=operation)
    with pytest.raises(RunnerUnreachableError, match=r"SIGKILL"):
        await load(runner, situation())
    assert [op for op, _ in runner.posts] == [*(op for op in Operation if op <= operation), CLOSE]


async def test_death_in_close_does_not_hide_the_first_error():
    runner = ScriptedRunner(model([100] * 3), refuses=lambda request: "full", dies_in=CLOSE)
    with pytest.raises(LayoutNotAllocatedError):
        await load(runner, situation(), num_layers=3)


@pytest.mark.parametrize("operation", [FIT, ALLOC, COMMIT])
async def test_a_runner_that_stalls_is_not_asked_to_close(operation):
    runner = ScriptedRunner(model([100] * 10))

    async def post(request):
        if request.operation == operation:
            raise LoadTimeoutError(0.0, "stuck")
        return await runner.post(request)

    with pytest.raises(LoadTimeoutError, match=r"stuck"):
        await load_model(post, situation(), unknown_memory(10))
    assert [op for op, _ in runner.posts] == [op for op in Operation if op < operation]


async def test_a_commit_that_fails_says_why():
    runner = ScriptedRunner(model([100] * 3), refuses=lambda r: "disk" if r.operation == COMMIT else "")
    with pytest.raises(CommitError, match=r"^failed to commit memory for model: disk$"):
        await load(runner, situation(), num_layers=3)
    assert runner.posts[-1] == (CLOSE, 0)


async def test_close_is_sent_when_the_load_is_cancelled():
    runner = ScriptedRunner(model([100] * 3))
    blocked = asyncio.Event()

    async def post(request):
        if request.operation == ALLOC:
            blocked.set()
            await asyncio.Event().wait()
        return await runner.post(request)

    task = asyncio.create_task(load_model(post, situation(), unknown_memory(3)))
    await blocked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert runner.posts[-1] == (CLOSE, 0)


# ---- waiting -----------------------------------------------------------------------------------


def healths(*answers):
    """Each answer in turn, the last for ever; an exception is raised."""
    rest = list(answers)

    async def health():
        answer = rest.pop(0) if len(rest) > 1 else rest[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return health


def loading(progress):
    return Health(status=Status.LOADING, progress=progress)


READY = Health(status=Status.READY, progress=1.0)


async def test_waits_until_ready(clock):
    await wait_until(is_ready, healths(loading(0.1), TimeoutError(), loading(0.9), READY), clock, 60, str)


@pytest.mark.parametrize("status", [Status.LAUNCHED, Status.READY, Status.LOADING])
async def test_any_answer_means_launched(clock, status):
    await wait_until(is_launched, healths(TimeoutError(), Health(status=status)), clock, 60, str)


async def test_a_load_without_progress_times_out(clock):
    begin = clock.monotonic()
    with pytest.raises(LoadTimeoutError) as caught:
        await wait_until(is_ready, healths(loading(0.25)), clock, 60, lambda: "stuck")
    assert str(caught.value) == "timed out waiting for llama runner to start - progress 0.25 - stuck"
    assert 60 < clock.monotonic() - begin < 61


async def test_a_runner_that_never_answers_times_out(clock):
    with pytest.raises(LoadTimeoutError, match=r"progress 0.00"):
        await wait_until(is_launched, healths(TimeoutError()), clock, 60, str)


async def test_an_answer_that_does_not_come_is_not_waited_for_longer_than_the_timeout():
    async def health():
        await asyncio.sleep(30)

    begin = time.monotonic()
    with pytest.raises(LoadTimeoutError):
        await wait_until(is_ready, health, SystemClock(), 0.2, str)
    assert time.monotonic() - begin < 20


async def test_any_progress_starts_the_timeout_anew(clock):
    """Each step takes 50 of 60 seconds; all together 250."""
    answers = [loading(i / 5) for i in range(5)] + [READY]
    begin = clock.monotonic()

    async def health():
        step = int((clock.monotonic() - begin) // 50)
        return answers[min(step, 5)]

    await wait_until(is_ready, health, clock, 60, str)
    assert clock.monotonic() - begin >= 250


async def test_no_timeout_where_it_is_switched_off(clock):
    begin = clock.monotonic()

    async def health():
        return READY if clock.monotonic() - begin > 10_000 else loading(0.5)

    await wait_until(is_ready, health, clock, 0, str)


async def test_a_runner_that_says_it_failed(clock):
    failed = Health(status=Status.ERROR, message="tensor blk.3 is damaged")
    with pytest.raises(LoadError, match=r"^tensor blk.3 is damaged$"):
        await wait_until(is_ready, healths(loading(0.5), failed), clock, 60, str)
