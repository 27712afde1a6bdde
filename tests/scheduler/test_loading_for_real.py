"""Several loads with real runners on simulated devices."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from runner.protocol import Operation
from scheduler.errors import NotOnGPUError
from scheduler.layout import num_placed
from scheduler.scheduler import LoadOptions, ModelFile

MIB = 2**20
SMALL = LoadOptions(num_ctx=128, num_batch=64, num_parallel=1)


@pytest.fixture
def two_models(demo_model, tmp_path):
    copies = [tmp_path / f"{name}.gguf" for name in "ab"]
    for copy in copies:
        shutil.copyfile(demo_model, copy)
    return [ModelFile(copy.stem, copy) for copy in copies]


async def test_two_models_load_on_two_devices_at_the_same_time(on, two_models):
    """Each waits in its alloc until the other one has got as far: one after the other they would never end."""
    both = asyncio.Barrier(2)
    async with on("sim:9MiB,sim:9MiB") as world:
        world.before(Operation.ALLOC, lambda _: both.wait())
        async with asyncio.timeout(120):
            first, second = await asyncio.gather(*(world.use(model, SMALL) for model in two_models))
        assert {share.id for share in (*first.layout, *second.layout)} == {"sim0", "sim1"}
        assert num_placed(first.layout) == num_placed(second.layout) == 7
        assert sum(world.held()) == first.memory.gpu_bytes + second.memory.gpu_bytes


async def test_a_quota_that_shrinks_under_way_leads_to_the_other_device(on, two_models):
    async with on("sim:9MiB,sim:8MiB") as world:
        world.before(Operation.ALLOC, lambda _: world.ledger("sim0").set_quota(MIB))
        running = await world.use(two_models[0], SMALL)
        assert [(share.id, len(share.layers)) for share in running.layout] == [("sim1", 7)]
        assert world.held() == [0, running.memory.gpu_bytes]


async def test_room_is_made_and_the_accounts_are_exact(on, two_models):
    async with on("sim:9MiB") as world:
        await world.use(two_models[0], SMALL)
        running = await world.use(two_models[1], SMALL)
        assert [each.model.name for each in world.scheduler.running()] == ["b"]
        assert num_placed(running.layout) == 7
        assert world.held() == [running.memory.gpu_bytes]


async def test_fail_if_not_gpu_refuses_before_a_process_is_started(on, two_models):
    async with on("sim:2MiB") as world:
        options = LoadOptions(num_ctx=128, num_batch=64, fail_if_not_gpu=True)
        with pytest.raises(NotOnGPUError, match=r"^fail_if_not_gpu: \d of 7 layers fit, .* free: 2.0 MiB on sim0$"):
            await world.use(two_models[0], options)
        assert world.scheduler.residents() == []
        assert world.held() == [0]


async def test_as_many_sequences_as_fit(on, two_models):
    options = LoadOptions(num_ctx=128, num_batch=64)
    async with on("sim:64MiB") as world:
        assert (await world.use(two_models[0], options)).num_parallel == 4
    async with on("sim:9MiB") as world:
        plan = await world.scheduler.plan(two_models[0], LoadOptions(num_ctx=2048))
        running = await world.use(two_models[0], LoadOptions(num_ctx=2048))
        assert running.num_parallel == plan.request.num_parallel == 1
