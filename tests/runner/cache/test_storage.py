"""The cache's slabs at another size: what sequences have stored stays theirs, and memory goes back."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.cache import storage as cache_storage
from runner.cache.storage import CacheStorage
from runner.devices.base import OutOfMemoryError
from runner.devices.cpu import CpuDevice
from runner.devices.sim import SimDevice
from runner.footprint import CPU, DeviceName, cache_bytes
from runner.gguf import open_gguf
from runner.kernels import Kernels
from runner.load import LoadedModel, Loader
from runner.model.spec import ModelSpec, read_spec
from runner.protocol import DeviceLayers, LoadRequest, Operation
from runner.sim_ledger import SimLedger

Models = Callable[..., Path]
REQUEST = LoadRequest(operation=Operation.ALLOC, num_ctx=48, num_batch=16, num_parallel=2)
SIMS = (DeviceName("sim0", "sim"), DeviceName("sim1", "sim"))
GIB = 1 << 30


@pytest.fixture(scope="module")
def specs(tiny_models: Models) -> dict[str, ModelSpec]:
    found = {}
    for architecture, changes in (("llama", {"head_dim": 64}), ("gemma3", {"head_dim": 64}), ("bert", {})):
        with open_gguf(tiny_models(architecture, **changes)) as gguf:
            found[architecture] = read_spec(gguf)
    return found


def sims(folder: Path, *quotas: int) -> dict[DeviceName, SimDevice]:
    devices = {}
    for name, quota in zip(SIMS, quotas, strict=False):
        ledger = SimLedger(folder, name.id)
        ledger.set_quota(quota)
        devices[name] = SimDevice(name.id, ledger)
    return devices


def on_cpu(spec: ModelSpec, kernels: Kernels, **changes: object) -> CacheStorage:
    request = REQUEST.model_copy(update=changes)
    return CacheStorage(spec, request, [CPU] * spec.num_layers, {CPU: CpuDevice()}, kernels)


def fill(storage: CacheStorage) -> None:
    random = np.random.default_rng(3)
    for layer in storage.layers:
        for tensor in (layer.keys, layer.values):
            tensor.rows[:] = random.integers(0, 256, tensor.rows.shape, np.uint8)


def rows(storage: CacheStorage) -> list[np.ndarray]:
    return [tensor.rows.copy() for layer in storage.layers for tensor in (layer.keys, layer.values)]


@pytest.mark.parametrize("types", ["f16", ("q8_0", "q4_0"), ("f32", "bf16")])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bert"])
def test_it_takes_what_the_footprint_says(
    architecture: str, types: object, specs: dict[str, ModelSpec], fast: Kernels
) -> None:
    spec = specs[architecture]
    request = REQUEST.model_copy(update={"kv_cache_type": types})
    storage = on_cpu(spec, fast, kv_cache_type=types)
    wanted = sum(sum(cache_bytes(spec, request, layer)) for layer in range(spec.num_layers))
    assert storage.nbytes == (wanted if spec.is_causal else 0)
    assert len(storage.layers) == (spec.num_layers if spec.is_causal else 0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=5),
    architecture=st.sampled_from(["llama", "gemma3"]),
    types=st.sampled_from(["f16", ("q8_0", "q4_0"), ("f32", "f16")]),
    chunk_bytes=st.sampled_from([1000, 1 << 20]),
)
def test_cells_that_both_sizes_have_keep_their_bytes(
    sizes: list[int], architecture: str, types: object, chunk_bytes: int, specs: dict[str, ModelSpec], fast: Kernels
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_storage, "MOVE_CHUNK_BYTES", chunk_bytes)
        _resized_to(sizes, on_cpu(specs[architecture], fast, kv_cache_type=types), specs[architecture])


def _resized_to(sizes: list[int], storage: CacheStorage, spec: ModelSpec) -> None:
    fill(storage)
    for num_cells in sizes:
        before = rows(storage)
        storage.resize(num_cells)
        assert storage.num_cells == num_cells
        for index, (now, was) in enumerate(zip(rows(storage), before, strict=True)):
            slides = spec.window(index // 2) > 0
            assert len(now) == (len(was) if slides else num_cells)
            kept = min(len(now), len(was))
            assert np.array_equal(now[:kept], was[:kept])
        fill(storage)


def test_a_budget_is_used_up_and_not_passed(specs: dict[str, ModelSpec], fast: Kernels) -> None:
    for architecture in ("llama", "gemma3"):
        storage = on_cpu(specs[architecture], fast)
        full = storage.nbytes
        for budget in (full, full - 1, full - full // 8, 5 * full):
            num_cells = storage.num_cells_within(budget)
            storage.resize(num_cells)
            assert storage.nbytes <= budget
            storage.resize(num_cells + 1)
            assert storage.nbytes > budget
        assert storage.num_cells_within(0) == 0


def test_memory_goes_back_to_each_device_and_a_lack_of_it_changes_nothing(
    specs: dict[str, ModelSpec], fast: Kernels, tmp_path: Path
) -> None:
    spec = specs["llama"]
    devices = sims(tmp_path, GIB, GIB)
    where = [SIMS[layer % 2] for layer in range(spec.num_layers)]
    storage = CacheStorage(spec, REQUEST, where, devices, fast)
    fill(storage)
    first = rows(storage)
    storage.resize(40)
    held = {name: GIB - device.info().free_bytes for name, device in devices.items()}
    assert sum(held.values()) == storage.nbytes
    assert min(held.values()) > 0
    thief = devices[SIMS[1]].allocate(devices[SIMS[1]].info().free_bytes)
    with pytest.raises(OutOfMemoryError, match="out of memory on sim1"):
        storage.resize(96)
    assert GIB - devices[SIMS[0]].info().free_bytes == held[SIMS[0]]
    assert all(np.array_equal(now, was[:40]) for now, was in zip(rows(storage), first, strict=True))
    del thief
    gc.collect()
    storage.resize(96)
    assert all(np.array_equal(now[:40], was[:40]) for now, was in zip(rows(storage), first, strict=True))


# ---- under a model


def loaded(path: Path, kernels: Kernels, devices: dict[DeviceName, SimDevice], **changes: object) -> LoadedModel:
    layout = (
        DeviceLayers(id="sim0", library="sim", layers=(0, 3)),
        DeviceLayers(id="sim1", library="sim", layers=(1, 2, 4, 5, 6)),
    )
    request = REQUEST.model_copy(update={"layout": layout, **changes})
    loader = Loader(path, kernels, None, tuple(devices.values()))
    assert loader.handle(request).success
    assert loader.handle(request.model_copy(update={"operation": Operation.COMMIT})).success
    loader.wait()
    assert loader.model is not None, loader.health().message
    return loader.model


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("types", ["f16", ("q8_0", "q4_0")])
def test_answers_are_the_same_bytes_when_the_cache_changes_its_size_between_steps(
    architecture: str, types: object, tiny_models: Models, fast: Kernels, tmp_path: Path
) -> None:
    prompt, other = [3, 7, 44, 9, 9, 101, 5], [8] * 7
    answers = []
    for is_resized in (False, True):
        devices = sims(tmp_path / str(is_resized), GIB, GIB)
        model = loaded(tiny_models(architecture, num_layers=7, head_dim=64), fast, devices, kv_cache_type=types)
        neighbour, sequence = model.cache.open(), model.cache.open()
        assert neighbour is not None
        assert sequence is not None
        answer = []
        for step in range(8):
            run = prompt if step == 0 else [11 + step]
            answer.append(model.forward([(neighbour, other if step < 3 else [1], "none"), (sequence, run, "last")]))
            answer[-1] = answer[-1].copy()
            model.cache.check_integrity()
            if is_resized:
                if step == 2:
                    model.cache.close(neighbour, keep=False)
                    neighbour = model.cache.open()
                    assert neighbour is not None
                model.cache.resize((60, 48, 40, 500, 30, 33, 96, 64)[step])
        answers.append(np.concatenate(answer).tobytes())
    assert answers[0] == answers[1]


def test_a_budget_gives_memory_to_others_and_takes_it_back(tiny_models: Models, fast: Kernels, tmp_path: Path) -> None:
    devices = sims(tmp_path, GIB, GIB)
    model = loaded(tiny_models("llama", num_layers=7, head_dim=64), fast, devices)
    assert model.cache.stats().num_cells == 96
    free = [device.info().free_bytes for device in devices.values()]
    model.cache.resize_within(300_000)
    less = [device.info().free_bytes for device in devices.values()]
    assert all(now > before for now, before in zip(less, free, strict=True))
    model.cache.resize(96)
    assert [device.info().free_bytes for device in devices.values()] == free
