"""Several loads with real runners on simulated devices."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager

import pytest

from runner.protocol import Operation
from runner.sim_ledger import SimLedger
from scheduler.errors import NotOnGPUError
from scheduler.layout import num_placed
from scheduler.scheduler import LoadOptions, ModelFile, Scheduler, SchedulerSettings

MIB = 2**20
SMALL = LoadOptions(num_ctx=128, num_batch=64, num_parallel=1)


@asynccontextmanager
async def on(devices):
    scheduler = Scheduler(SchedulerSettings(devices=devices, kernels=os.environ.get("SHALE_KERNELS")))
    try:
        yield scheduler
    finally:
        await scheduler.close()


@pytest.fixture
def two_models(demo_model, tmp_path):
    copies = [tmp_path / f"{name}.gguf" for name in "ab"]
    for copy in copies:
        shutil.copyfile(demo_model, copy)
    return [ModelFile(copy.stem, copy) for copy in copies]


async def load(scheduler, model, options=SMALL):
    async with scheduler.acquire(model, options) as running:
        return running


def held(scheduler):
    return [SimLedger(scheduler.devices.sim_ledger, gpu.id).held_bytes() for gpu in scheduler.devices.gpus()]


async def test_two_models_load_on_two_devices_at_the_same_time(two_models, monkeypatch):
    """Each waits in its alloc until the other one has got as far: one after the other they would never end."""
    both = asyncio.Barrier(2)
    async with on("sim:9MiB,sim:9MiB") as scheduler:
        spawn = scheduler._spawn

        async def spawn_and_meet(*arguments):
            started = await spawn(*arguments)
            ask = started.client.load

            async def meet(request):
                if request.operation == Operation.ALLOC:
                    await both.wait()
                return await ask(request)

            monkeypatch.setattr(started.client, "load", meet)
            return started

        monkeypatch.setattr(scheduler, "_spawn", spawn_and_meet)
        async with asyncio.timeout(30):
            first, second = await asyncio.gather(*(load(scheduler, model) for model in two_models))
        assert {share.id for share in (*first.layout, *second.layout)} == {"sim0", "sim1"}
        assert num_placed(first.layout) == num_placed(second.layout) == 7
        assert sum(held(scheduler)) == first.memory.gpu_bytes + second.memory.gpu_bytes


async def test_a_quota_that_shrinks_under_way_leads_to_the_other_device(two_models, monkeypatch):
    async with on("sim:9MiB,sim:8MiB") as scheduler:
        ledger = SimLedger(scheduler.devices.sim_ledger, "sim0")
        spawn = scheduler._spawn

        async def spawn_and_shrink(*arguments):
            started = await spawn(*arguments)
            ask = started.client.load

            async def shrink(request):
                if request.operation == Operation.ALLOC:
                    ledger.set_quota(MIB)
                return await ask(request)

            monkeypatch.setattr(started.client, "load", shrink)
            return started

        monkeypatch.setattr(scheduler, "_spawn", spawn_and_shrink)
        running = await load(scheduler, two_models[0])
        assert [(share.id, len(share.layers)) for share in running.layout] == [("sim1", 7)]
        assert held(scheduler) == [0, running.memory.gpu_bytes]


async def test_room_is_made_and_the_accounts_are_exact(two_models):
    async with on("sim:9MiB") as scheduler:
        await load(scheduler, two_models[0])
        running = await load(scheduler, two_models[1])
        assert [each.model.name for each in scheduler.running()] == ["b"]
        assert num_placed(running.layout) == 7
        assert held(scheduler) == [running.memory.gpu_bytes]


async def test_fail_if_not_gpu_refuses_before_a_process_is_started(two_models):
    async with on("sim:2MiB") as scheduler:
        options = LoadOptions(num_ctx=128, num_batch=64, fail_if_not_gpu=True)
        with pytest.raises(NotOnGPUError, match=r"^fail_if_not_gpu: \d of 7 layers fit, .* free: 2.0 MiB on sim0$"):
            await load(scheduler, two_models[0], options)
        assert scheduler.residents() == []
        assert held(scheduler) == [0]


async def test_as_many_sequences_as_fit(two_models):
    options = LoadOptions(num_ctx=128, num_batch=64)
    async with on("sim:64MiB") as scheduler:
        assert (await load(scheduler, two_models[0], options)).num_parallel == 4
    async with on("sim:9MiB") as scheduler:
        plan = await scheduler.plan(two_models[0], LoadOptions(num_ctx=2048))
        running = await load(scheduler, two_models[0], LoadOptions(num_ctx=2048))
        assert running.num_parallel == plan.request.num_parallel == 1
