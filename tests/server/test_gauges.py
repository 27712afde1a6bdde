"""Who holds which bytes at the moment of a scrape."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from runner.protocol import DeviceLayers, DeviceMemory, Memory
from scheduler.devices import GPU, Machine, SystemMemory
from scheduler.scheduler import ModelFile, ModelState, RunningModel
from server.gauges import Scrape

MACHINE = Machine(
    SystemMemory(total_bytes=1000, free_bytes=600, swap_bytes=0),
    (GPU(id="sim0", library="sim", free_bytes=70), GPU(id="sim1", library="sim", free_bytes=80)),
)
MEMORY = Memory(
    input_weights=100,
    cpu=DeviceMemory(id="cpu", library="cpu", weights=(1, 0), cache=(2, 0), graph=4),
    gpus=(DeviceMemory(id="sim0", library="sim", weights=(0, 10), cache=(0, 20), graph=40),),
)
LAYOUT = (DeviceLayers(id="sim0", library="sim", layers=(1,)),)
LABELS = ("model", "device", "library", "kind", "state")  # in this order in what scrape() finds
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def resident(name: str, state: str = "ready") -> ModelState:
    model = ModelFile(name, Path(f"/{name}"), "00", 1)
    nobody: Any = None
    running = RunningModel(model, nobody, MEMORY, LAYOUT, 4096, 1, NOW, 0)
    return ModelState(model, state, 0.5, NOW, 4096, None if state == "loading" else running)


def scrape(*models: ModelState) -> dict[tuple[str, ...], float]:
    """Sample values by name and label values, through the text form."""
    text = generate_latest(Scrape(CollectorRegistry(), models, MACHINE)).decode()
    return {
        (sample.name, *(sample.labels[label] for label in LABELS if label in sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_devices_without_models_are_there() -> None:
    found = scrape()
    assert found["shale_device_bytes", "sim1", "sim", "weights"] == 0
    assert found["shale_device_bytes", "sim1", "sim", "free"] == 80
    assert found["shale_device_bytes", "cpu", "cpu", "free"] == 600
    assert found["shale_models_loaded",] == 0
    assert not [key for key in found if key[0] == "shale_model_bytes"]


def test_a_model_holds_its_bytes_by_device_and_kind() -> None:
    found = scrape(resident("a"))
    assert found["shale_model_bytes", "a", "cpu", "cpu", "weights"] == 101  # with the input weights
    assert found["shale_model_bytes", "a", "sim0", "sim", "cache"] == 20
    held = sum(value for key, value in found.items() if key[0] == "shale_model_bytes")
    assert held == MEMORY.total_bytes


def test_a_device_holds_the_sum_of_its_models() -> None:
    found = scrape(resident("a"), resident("b", "stopping"), resident("c", "loading"))
    assert found["shale_device_bytes", "sim0", "sim", "graph"] == 80
    held = sum(value for key, value in found.items() if key[0] == "shale_device_bytes" and key[-1] != "free")
    assert held == 2 * MEMORY.total_bytes


def test_models_by_state() -> None:
    found = scrape(resident("a"), resident("b"), resident("c", "loading"))
    assert found["shale_models_loaded",] == 2
    assert [found["shale_models", state] for state in ("loading", "ready", "stopping")] == [1, 2, 0]
