"""The scheduler on simulated devices, with real runners: splits, quotas that shrink under way, exact accounts."""

from __future__ import annotations

import json

import pytest

from runner.protocol import CompletionRequest, Operation, SamplingOptions
from scheduler.errors import LayoutNotAllocatedError
from scheduler.layout import num_placed
from scheduler.scheduler import LoadOptions, ModelFile

KIB = 2**10
MIB = 2**20
OPTIONS = {"num_ctx": 128, "num_batch": 64}
QUESTION = "What does textwrap.dedent do?"


@pytest.fixture
def model(demo_model):
    return ModelFile("demo", demo_model)


async def answer(running):
    options = SamplingOptions(temperature=0, num_predict=12, ignore_eos=True)
    lines = await running.client.completion(CompletionRequest(prompt=QUESTION, options=options))
    return "".join([json.loads(line).get("content", "") async for line in lines])


async def test_a_split_model_answers_as_on_the_cpu_and_the_accounts_are_exact(on, model):
    async with on("cpu") as world, world.scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
        expected = await answer(running)
    async with on("sim:4MiB,sim:4MiB") as world:
        plan = await world.scheduler.plan(model, LoadOptions(**OPTIONS))
        async with world.scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
            assert [share.id for share in running.layout] == ["sim0", "sim1"]
            assert num_placed(running.layout) == 7
            assert await answer(running) == expected
            assert world.held() == [gpu.total_bytes for gpu in running.memory.gpus]
            assert (plan.memory, plan.layout) == (running.memory, running.layout)
            devices = (await running.client.info()).devices
            assert [device.id for device in devices] == ["cpu", "sim0", "sim1"]
            assert [device.free_bytes for device in devices[1:]] == [4 * MIB - each for each in world.held()]
        await world.scheduler.unload(model)
        assert world.held() == [0, 0]


async def test_more_than_fits_goes_to_the_cpu(on, model):
    async with on("sim:2MiB") as world, world.scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
        assert 0 < num_placed(running.layout) < 7
        assert sum(running.memory.cpu.weights) > 0
        assert world.held() == [running.memory.gpu_bytes]
        assert running.memory.gpu_bytes <= 2 * MIB


async def test_a_quota_that_shrinks_between_fit_and_alloc_leads_to_a_smaller_layout(on, model):
    async with on("sim:4MiB,sim:4MiB") as world:
        allocs = world.before(Operation.ALLOC, lambda _: world.ledger("sim0").set_quota(3 * MIB))
        async with world.scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
            assert len(allocs) > 1
            assert num_placed(running.layout) < num_placed(allocs[0]) == 7
            assert world.held() == [gpu.total_bytes for gpu in running.memory.gpus]
            assert world.held()[0] <= 3 * MIB
            assert await answer(running)


async def test_a_quota_that_shrinks_at_every_try_still_ends_in_a_layout(on, model):
    async with on("sim:8MiB") as world:
        allocs = world.before(Operation.ALLOC, lambda n: world.ledger("sim0").set_quota((8 - 2 * n) * MIB // 2))
        async with world.scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
            assert len(allocs) > 2
            assert world.held() == [running.memory.gpu_bytes]
            assert await answer(running)


async def test_a_device_that_vanishes_leaves_the_model_on_the_cpu(on, model):
    async with on("sim:8MiB") as world:
        world.before(Operation.ALLOC, lambda _: world.ledger("sim0").set_quota(0))
        async with world.scheduler.acquire(model, LoadOptions(**OPTIONS)) as running:
            assert running.layout == ()
            assert world.held() == [0]
            assert await answer(running)


async def test_a_fixed_count_of_layers_does_not_back_off(on, model):
    async with on("sim:8MiB") as world:
        world.before(Operation.ALLOC, lambda _: world.ledger("sim0").set_quota(MIB))
        with pytest.raises(LayoutNotAllocatedError, match=r"num_gpu = 5: out of memory on sim0: \d+ bytes asked"):
            async with world.scheduler.acquire(model, LoadOptions(**OPTIONS, num_gpu=5)):
                pass
        assert world.held() == [0]
        assert world.scheduler.running() == []


async def test_auto_context_fills_the_device_and_a_number_above_it_reloads(on, model):
    async with on("sim:9MiB") as world:
        plan = await world.scheduler.plan(model, LoadOptions(num_ctx="auto"))
        async with world.scheduler.acquire(model, LoadOptions(num_ctx="auto")) as running:
            first = running.client
            assert 128 < running.num_ctx == plan.max_num_ctx < 2048
            assert num_placed(running.layout) == 7
            assert 9 * MIB - 64 * KIB < world.held()[0] <= 9 * MIB
        for options in (LoadOptions(), LoadOptions(num_ctx="auto"), LoadOptions(num_ctx=100)):
            async with world.scheduler.acquire(model, options) as running:
                assert running.client is first
        async with world.scheduler.acquire(model, LoadOptions(num_ctx=2048)) as running:
            assert running.num_ctx == 2048
            assert num_placed(running.layout) < 7
