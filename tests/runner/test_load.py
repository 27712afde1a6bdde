"""The load operations: their order, what they take and give back, and layers split over devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runner.devices.sim import SimDevice
from runner.footprint import DeviceName, footprint
from runner.gguf import open_gguf
from runner.kernels import Kernels
from runner.load import LoadedModel, Loader, OperationOrderError
from runner.model.spec import ModelError
from runner.protocol import DeviceLayers, LoadRequest, Operation, Status
from runner.sim_ledger import SimLedger

REQUEST = LoadRequest(operation=Operation.ALLOC, num_ctx=64, num_batch=16)
PROMPT = [3, 7, 44, 9, 9, 101, 5, 62]
GIB = 1 << 30


def do(loader: Loader, operation: Operation, request: LoadRequest = REQUEST) -> bool:
    return loader.handle(request.model_copy(update={"operation": operation})).success


def sims(folder: Path, *quotas: int) -> list[SimDevice]:
    devices = []
    for number, quota in enumerate(quotas):
        ledger = SimLedger(folder, f"sim{number}")
        ledger.set_quota(quota)
        devices.append(SimDevice(f"sim{number}", ledger))
    return devices


def split(*shares: tuple[int, ...]) -> LoadRequest:
    """A request whose layout gives each share to one simulated device."""
    layout = tuple(DeviceLayers(id=f"sim{i}", library="sim", layers=share) for i, share in enumerate(shares))
    return REQUEST.model_copy(update={"layout": layout})


def loaded(loader: Loader, request: LoadRequest = REQUEST) -> LoadedModel:
    assert do(loader, Operation.ALLOC, request)
    assert do(loader, Operation.COMMIT, request)
    loader.wait()
    assert loader.model is not None, loader.health().message
    return loader.model


def logits(model: LoadedModel) -> bytes:
    sequence = model.cache.open()
    assert sequence is not None
    rows = []
    for run in (PROMPT, [17], [18]):
        rows.append(model.forward([(sequence, run, "last")]).copy())
    model.cache.close(sequence)
    return np.concatenate(rows).tobytes()


def test_the_operations_in_their_order(tiny_models: Callable[..., Path], fast: Kernels) -> None:
    loader = Loader(tiny_models("llama"), fast)
    assert loader.health().status == Status.LAUNCHED
    assert do(loader, Operation.FIT)
    loaded(loader)
    assert loader.health().status == Status.READY
    assert loader.health().progress == 1.0
    with pytest.raises(OperationOrderError, match="already loaded"):
        do(loader, Operation.ALLOC)
    assert do(loader, Operation.CLOSE)
    assert loader.model is None
    loaded(loader)


def test_commit_needs_an_alloc_of_the_same_request(tiny_models: Callable[..., Path], fast: Kernels) -> None:
    loader = Loader(tiny_models("llama"), fast)
    with pytest.raises(OperationOrderError, match="commit needs an alloc"):
        do(loader, Operation.COMMIT)
    do(loader, Operation.ALLOC)
    with pytest.raises(OperationOrderError, match="commit needs an alloc"):
        do(loader, Operation.COMMIT, REQUEST.model_copy(update={"num_ctx": 32}))


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mixtral"])
@pytest.mark.parametrize("shares", [((1, 2),), ((2,),), ((0,), (1, 2)), ((0, 1), (2,)), ((0, 1, 2),)], ids=str)
def test_a_split_model_gives_the_same_bytes(
    architecture: str,
    shares: tuple[tuple[int, ...], ...],
    tiny_models: Callable[..., Path],
    fast: Kernels,
    tmp_path: Path,
) -> None:
    path = tiny_models(architecture, num_layers=2)
    whole = logits(loaded(Loader(path, fast)))
    devices = sims(tmp_path, GIB, GIB)
    assert logits(loaded(Loader(path, fast, None, devices), split(*shares))) == whole


def test_fit_says_what_alloc_takes_on_every_device_and_close_gives_it_back(
    tiny_models: Callable[..., Path], fast: Kernels, tmp_path: Path
) -> None:
    path = tiny_models("llama", "Q8_0", num_layers=2)
    devices = sims(tmp_path, GIB, GIB)
    loader = Loader(path, fast, None, devices)
    request = split((0,), (1, 2))
    memory = loader.handle(request.model_copy(update={"operation": Operation.FIT})).memory
    with open_gguf(path) as gguf:
        assert footprint(gguf, request, [DeviceName(d.id, d.library) for d in devices]) == memory
    loaded(loader, request)
    held = [GIB - device.info().free_bytes for device in devices]
    assert held == [gpu.total_bytes for gpu in memory.gpus]
    assert all(held)
    do(loader, Operation.CLOSE)
    assert [device.info().free_bytes for device in devices] == [GIB, GIB]


def test_a_device_that_is_short_of_memory_is_no_error_but_an_answer(
    tiny_models: Callable[..., Path], fast: Kernels, tmp_path: Path
) -> None:
    devices = sims(tmp_path, GIB, 1000)
    loader = Loader(tiny_models("llama"), fast, None, devices)
    response = loader.handle(split((0,), (1, 2)))
    assert not response.success
    assert "out of memory on sim1" in response.message
    assert response.memory.gpus[1].total_bytes > 1000
    assert devices[0].info().free_bytes == GIB  # what was taken before went back
    loaded(loader, split((0, 1, 2)))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (((0,), (0, 1)), "layer 0 on sim0 and on sim1"),
        (((9,),), "names layer 9; there are 0 to 2"),
        (((0,), (1,), (2,)), "names sim2; there are cpu, sim0, sim1"),
    ],
)
def test_an_impossible_layout_is_refused(
    shares: tuple[tuple[int, ...], ...], message: str, tiny_models: Callable[..., Path], fast: Kernels, tmp_path: Path
) -> None:
    loader = Loader(tiny_models("llama", num_layers=2), fast, None, sims(tmp_path, GIB, GIB))
    with pytest.raises(ModelError, match=message):
        loader.handle(split(*shares))


def test_a_file_that_breaks_while_its_weights_are_read_is_told_through_health(
    tiny_models: Callable[..., Path], reference: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(tiny_models("llama"), reference)
    monkeypatch.setattr(type(reference), "pack", lambda *_: (_ for _ in ()).throw(ValueError("a torn page")))
    assert do(loader, Operation.ALLOC)
    assert do(loader, Operation.COMMIT)
    loader.wait()
    assert loader.health().status == Status.ERROR
    assert "a torn page" in loader.health().message
    assert do(loader, Operation.CLOSE)
