"""The scheduler on simulated devices, with real runners: splits, quotas that shrink under way, exact accounts."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager

import pytest

from runner.protocol import CompletionRequest, Operation, SamplingOptions
from runner.sim_ledger import SimLedger
from scheduler.errors import LayoutNotAllocatedError
from scheduler.layout import num_placed
from scheduler.scheduler import LoadOptions, ModelFile, Scheduler, SchedulerSettings

KIB = 2**10
MIB = 2**20
OPTIONS = {"num_ctx": 128, "num_batch": 64}
QUESTION = "What does textwrap.dedent do?"


@asynccontextmanager
async def on(devices):
    scheduler = Scheduler(SchedulerSettings(devices=devices, kernels=os.environ.get("SHALE_KERNELS")))
    try:
        yield scheduler
    finally:
        await scheduler.close()


@pytest.fixture
def model(demo_model):
    return ModelFile("demo", demo_model)


async def answer(running):
    options = SamplingOptions(temperature=0, num_predict=12, ignore_eos=True)
    lines = await running.client.completion(CompletionRequest(prompt=QUESTION, options=options))
    return "".join([json.loads(line).get("content", "") async for line in lines])


def held(scheduler):
    folder = scheduler.devices.sim_ledger
    return [SimLedger(folder, gpu.id).held_bytes() for gpu in scheduler.devices.gpus()]


def before(monkeypatch, scheduler, operation, work):
    """Does ``work(how many of these operations there were)`` just before the runner is asked for one."""
    spawn, counts = scheduler._spawn, []

    async def spawn_and_meddle(*arguments):
        started = await spawn(*arguments)
        load = started.client.load

        async def meddle(request):
            if request.operation == operation:
                work(len(counts))
                counts.append(request.layout)
            return await load(request)

        monkeypatch.setattr(started.client, "load", meddle)
        return started

    monkeypatch.setattr(scheduler, "_spawn", spawn_and_meddle)
    return counts


async def test_a_split_model_answers_as_on_the_cpu_and_the_accounts_are_exact(model):
    async with on("cpu") as scheduler, scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
        expected = await answer(running)
    async with on("sim:4MiB,sim:4MiB") as scheduler:
        plan = await scheduler.plan(model, LoadOptions(**OPTIONS))
        async with scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
            assert [share.id for share in running.layout] == ["sim0", "sim1"]
            assert num_placed(running.layout) == 7
            assert await answer(running) == expected
            assert held(scheduler) == [gpu.total_bytes for gpu in running.memory.gpus]
            assert (plan.memory, plan.layout) == (running.memory, running.layout)
            devices = (await running.client.info()).devices
            assert [device.id for device in devices] == ["cpu", "sim0", "sim1"]
            assert [device.free_bytes for device in devices[1:]] == [4 * MIB - each for each in held(scheduler)]
        await scheduler.unload(model)
        assert held(scheduler) == [0, 0]


async def test_more_than_fits_goes_to_the_cpu(model):
    async with on("sim:2MiB") as scheduler, scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
        assert 0 < num_placed(running.layout) < 7
        assert sum(running.memory.cpu.weights) > 0
        assert held(scheduler) == [running.memory.gpu_bytes]
        assert running.memory.gpu_bytes <= 2 * MIB


async def test_a_quota_that_shrinks_between_fit_and_alloc_leads_to_a_smaller_layout(model, monkeypatch):
    async with on("sim:4MiB,sim:4MiB") as scheduler:
        ledger = SimLedger(scheduler.devices.sim_ledger, "sim0")
        allocs = before(monkeypatch, scheduler, Operation.ALLOC, lambda _: ledger.set_quota(3 * MIB))
        async with scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
            assert len(allocs) > 1
            assert num_placed(running.layout) < num_placed(allocs[0]) == 7
            assert held(scheduler) == [gpu.total_bytes for gpu in running.memory.gpus]
            assert held(scheduler)[0] <= 3 * MIB
            assert await answer(running)


async def test_a_quota_that_shrinks_at_every_try_still_ends_in_a_layout(model, monkeypatch):
    async with on("sim:8MiB") as scheduler:
        ledger = SimLedger(scheduler.devices.sim_ledger, "sim0")
        allocs = before(monkeypatch, scheduler, Operation.ALLOC, lambda n: ledger.set_quota((8 - 2 * n) * MIB // 2))
        async with scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
            assert len(allocs) > 2
            assert held(scheduler) == [running.memory.gpu_bytes]
            assert await answer(running)


async def test_a_device_that_vanishes_leaves_the_model_on_the_cpu(model, monkeypatch):
    async with on("sim:8MiB") as scheduler:
        ledger = SimLedger(scheduler.devices.sim_ledger, "sim0")
        before(monkeypatch, scheduler, Operation.ALLOC, lambda _: ledger.set_quota(0))
        async with scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
            assert running.layout == ()
            assert held(scheduler) == [0]
            assert await answer(running)


async def test_a_fixed_count_of_layers_does_not_back_off(model, monkeypatch):
    async with on("sim:8MiB") as scheduler:
        ledger = SimLedger(scheduler.devices.sim_ledger, "sim0")
        before(monkeypatch, scheduler, Operation.ALLOC, lambda _: ledger.set_quota(MIB))
        with pytest.raises(LayoutNotAllocatedError, match=r"num_gpu = 5: out of memory on sim0: \d+ bytes asked"):
            async with scheduler.acquire(model, LoadOptions(**OPTIONS, num_gpu=5)):
                pass
        assert held(scheduler) == [0]
        assert scheduler.running() == []


async def test_auto_context_fills_the_device_and_a_number_above_it_reloads(model):
    async with on("sim:9MiB") as scheduler:
        plan = await scheduler.plan(model, LoadOptions(num_ctx="auto"))
        async with scheduler.acquire(model, LoadOptions(num_ctx="auto")) as running:
            first = running.client
            assert 128 < running.num_ctx == plan.max_num_ctx < 2048
            assert num_placed(running.layout) == 7
            assert 9 * MIB - 64 * KIB < held(scheduler)[0] <= 9 * MIB
        for options in (LoadOptions(), LoadOptions(num_ctx="auto"), LoadOptions(num_ctx=100)):
            async with scheduler.acquire(model, options) as running:
                assert running.client is first
        async with scheduler.acquire(model, LoadOptions(num_ctx=2048)) as running:
            assert running.num_ctx == 2048
            assert num_placed(running.layout) < 7
