"""On which GPUs a model is loaded: main_gpu, fail_if_not_gpu."""

from __future__ import annotations

import pytest

from scheduler.errors import (
    NotOnGPUError,
    SettingsError,
)
from scheduler.scheduler import LoadOptions

GIB = 2**30
ON_GPU = LoadOptions(fail_if_not_gpu=True)


async def test_main_gpu_has_the_model_where_it_fits(new_world):
    world = new_world(gpus={"sim0": 9 * GIB, "sim1": 8 * GIB})
    assert world.devices(await world.use("a")) == ["sim0"]
    assert world.devices(await world.use("b", LoadOptions(main_gpu=1))) == ["sim1"]
    world.sizes["c"] = 12 * GIB
    await world.scheduler.unload(world.model("a"))
    await world.scheduler.unload(world.model("b"))
    assert world.devices(await world.use("c", LoadOptions(main_gpu=1))) == ["sim0", "sim1"]


@pytest.mark.parametrize("where", ["option", "setting"])
async def test_fail_if_not_gpu_names_what_did_not_fit(new_world, where):
    world = new_world(gpus={"sim0": 8 * GIB}, fail_if_not_gpu=where == "setting")
    world.sizes["a"] = 16 * GIB
    options = ON_GPU if where == "option" else LoadOptions()
    await world.use("b", LoadOptions(fail_if_not_gpu=False))
    with pytest.raises(NotOnGPUError) as caught:
        await world.use("a", options)
    assert caught.value.status == 500
    assert str(caught.value) == (
        "fail_if_not_gpu: 2 of 4 layers fit, 8.0 GiB of layers would stay on the CPU; free: 8.0 GiB on sim0"
    )
    assert world.names() == ["b"]
    assert len(world.started) == 1
    await world.use("a", LoadOptions(fail_if_not_gpu=False))


async def test_fail_if_not_gpu_without_any(new_world):
    world = new_world()
    with pytest.raises(NotOnGPUError, match=r"^fail_if_not_gpu: there is no GPU that can be used$"):
        await world.use("a", ON_GPU)
    with pytest.raises(SettingsError, match="num_gpu 0 keeps all layers on the CPU"):
        await world.use("a", LoadOptions(num_gpu=0, fail_if_not_gpu=True))


async def test_fail_if_not_gpu_makes_room(new_world):
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes.update(a=6 * GIB, b=6 * GIB)
    await world.use("a")
    assert world.devices(await world.use("b", ON_GPU)) == ["sim0"]
    assert world.names() == ["b"]


async def test_a_model_that_is_partly_on_the_cpu_is_not_what_was_asked_for(new_world):
    """It is loaded again where that helps; where it would not, it stays as it is for the others."""
    world = new_world(gpus={"sim0": 8 * GIB})
    world.sizes["a"] = 12 * GIB
    await world.use("a")
    with pytest.raises(NotOnGPUError, match="2 of 4 layers fit"):
        await world.use("a", ON_GPU)
    assert len(world.started) == 1
    assert world.names() == ["a"]
    world.gpus["sim0"] = 16 * GIB
    assert [len(share.layers) for share in (await world.use("a", ON_GPU)).layout] == [4]
    await world.use("a", ON_GPU)
    assert len(world.started) == 2
