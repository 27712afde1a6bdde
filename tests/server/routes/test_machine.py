"""``/api/devices`` and ``/api/plan``, with the real scheduler and the demo model, and nothing loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.scheduler import Scheduler
from scheduler.settings import SchedulerSettings

MIB = 2**20


@pytest.fixture
def planner(site: Any, models: Path, demo_model: Path) -> Iterator[Any]:
    """A site whose scheduler has two simulated devices of 8 and 6 MiB, and the demo model."""
    from server.routes.service import Service

    (models / "demo.gguf").symlink_to(demo_model)
    scheduler = Scheduler(SchedulerSettings(devices="sim:8MiB,sim:6MiB"))
    old = site.app.state.service
    site.app.state.service = Service(old.settings, old.catalog, scheduler, old.metrics)
    yield site
    scheduler.devices.close()


def test_devices(planner: Any) -> None:
    cpu, first, second = planner.get("/api/devices").json()["devices"]
    assert (cpu["id"], cpu["library"], cpu["usable"], cpu["reason"]) == ("cpu", "cpu", True, "")
    assert 0 < cpu["free_bytes"] <= cpu["total_bytes"]
    assert first == {
        "id": "sim0", "library": "sim", "name": "simulated GPU", "total_bytes": 8 * MIB, "free_bytes": 8 * MIB,
        "minimum_bytes": 0, "compute_capability": None, "pci_id": None, "is_integrated": False, "usable": True,
        "reason": "",
    }  # fmt: skip
    assert second["id"] == "sim1"


def test_a_plan_for_the_machine_as_it_is(planner: Any) -> None:
    answer = planner.post("/api/plan", {"model": "demo", "num_ctx": 256}).json()
    assert answer["fits_wholly"] is True
    assert answer["num_layers"] == answer["num_layers_on_gpu"] == 7
    assert (answer["num_ctx"], answer["num_parallel"], answer["kv_cache_type"]) == (256, 2, "f16")
    assert [device["id"] for device in answer["devices"]] == ["cpu", "sim0", "sim1"]
    assert sum(device["total_bytes"] for device in answer["devices"]) == answer["size"] == answer["size_vram"]
    assert 256 < answer["max_num_ctx"] < answer["trained_num_ctx"] == 2048
    assert [layer["layer"] for layer in answer["layers"]] == list(range(7))
    assert answer["notes"] == []


def test_a_plan_for_a_machine_that_one_thinks_of(planner: Any) -> None:
    thought_of = {"devices": "24GiB,12GiB", "system_memory": "64GiB"}
    asked = {"model": "demo", **thought_of, "kv_cache_type": "f32", "num_parallel": 2, "num_gpu": 3}
    answer = planner.post("/api/plan", asked).json()
    assert [device["id"] for device in answer["devices"]] == ["cpu", "gpu0", "gpu1"]
    assert [device["minimum_bytes"] for device in answer["machine"]] == [0, 457 * MIB, 457 * MIB]
    assert answer["devices"][1]["layers"] == [3, 4, 5]  # num_gpu does not count the output layer
    assert (answer["kv_cache_type"], answer["num_parallel"]) == ("f32", 2)
    assert answer["notes"] == ["457.0 MiB of each GPU are left to its driver"]
    listed = planner.post("/api/plan", {**asked, "devices": ["24GiB", 12 << 30], "system_memory": 64 << 30}).json()
    assert listed == answer


def test_a_plan_says_what_became_of_the_context(planner: Any) -> None:
    clamped = planner.post("/api/plan", {"model": "demo", "num_ctx": 99999}).json()
    assert clamped["notes"] == ["num_ctx 99999 was clamped to 2048, the length the model was trained for"]
    auto = planner.post("/api/plan", {"model": "demo", "options": {"num_ctx": "auto", "temperature": 0}}).json()
    assert auto["num_ctx"] == auto["max_num_ctx"]
    assert auto["fits_wholly"] is True
    assert auto["notes"] == [f'num_ctx "auto" is {auto["num_ctx"]}']


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "none"}, 404, "model 'none' not found"),
        ({"model": "demo", "kv_cache_type": "q5_1"}, 400, "kv_cache_type must be one of f16, bf16, f32, q8_0, q4_0, f"),
        ({"model": "demo", "kv_cache_type": 8}, 400, 'option "kv_cache_type" must be of type string'),
        ({"model": "demo", "num_ctx": "large"}, 400, 'option "num_ctx" must be of type integer'),
        ({"model": "demo", "num_parallel": 0}, 400, 'option "num_parallel" must be at least 1 (found 0)'),
        ({"model": "demo", "num_ctxx": 5}, 400, "unknown field 'num_ctxx'; known here: model, devices"),
        ({"model": "demo", "options": {"num_ctxx": 5}}, 400, 'unknown option "num_ctxx"; known: '),
        ({"model": "demo", "devices": "24GB"}, 400, "devices: '24GB' is not understood; allowed: "),
        ({"model": "demo", "devices": [0]}, 400, "devices: '0' has 0 bytes; allowed: "),
        ({"model": "demo", "devices": "sim:0"}, 400, "devices: 'sim:0' has 0 bytes; allowed: "),
        ({"model": "demo", "devices": {}}, 400, "field 'devices': must be a text such as"),
        ({"model": "demo", "system_memory": True}, 400, "field 'system_memory': must be a size"),
        ({"model": "demo", "devices": "cpu", "system_memory": 9}, 500, "model requires more system memory ("),
        ({"model": "plain"}, 500, "unable to load model: "),
    ],
)
def test_what_is_refused(planner: Any, body: dict[str, Any], status: int, message: str) -> None:
    answer = planner.post("/api/plan", body)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(message)


def test_a_plan_that_must_be_on_gpus_ends_as_its_load_would(planner: Any) -> None:
    asked = {"model": "demo", "num_ctx": 512, "devices": "sim:2MiB", "options": {"fail_if_not_gpu": True}}
    answer = planner.post("/api/plan", asked)
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("fail_if_not_gpu: 0 of 7 layers fit, ")
    assert planner.post("/api/plan", {**asked, "devices": "sim:64MiB"}).json()["fits_wholly"] is True
