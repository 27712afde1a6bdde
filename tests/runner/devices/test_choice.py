"""``SHALE_DEVICES`` in a runner: simulated devices are opened, what is not understood ends the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.devices.choice import DeviceChoiceError, open_devices
from runner.sim_ledger import SimLedger
from tests.runner.runner_process import running

MIB = 1 << 20


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    for number in range(2):
        SimLedger(tmp_path / "ledger", f"sim{number}").set_quota((number + 1) * MIB)
    return tmp_path / "ledger"


@pytest.mark.parametrize("text", ["", "auto", "cpu", " cpu "])
def test_no_devices(text: str) -> None:
    assert open_devices(text, None) == ()


def test_simulated_devices_are_as_large_as_the_ledger_says(ledger: Path) -> None:
    first, second = (device.info() for device in open_devices("sim:1GiB, sim:2GiB", ledger))
    assert (first.id, first.library, first.total_bytes) == ("sim0", "sim", MIB)
    assert (second.id, second.free_bytes) == ("sim1", 2 * MIB)


@pytest.mark.parametrize(
    ("text", "folder", "message"),
    [
        ("cuda:0", None, "SHALE_DEVICES names 'cuda:0'; this runner knows: auto, cpu, sim:SIZE"),
        ("auto,cpu", None, "SHALE_DEVICES names 'auto'"),
        ("sim:1GiB", None, "simulated devices need SHALE_SIM_LEDGER"),
        ("sim:1GiB", "nowhere", "SHALE_SIM_LEDGER: .*nowhere does not say how large sim0 is"),
    ],
)
def test_what_cannot_be_opened(text: str, folder: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceChoiceError, match=message):
        open_devices(text, tmp_path / folder if folder else None)


def test_a_runner_tells_its_devices_and_fit_has_an_entry_for_each(
    ledger: Path, demo_model: Path, tmp_path: Path
) -> None:
    environment = {"SHALE_DEVICES": "sim:1MiB,sim:2MiB", "SHALE_SIM_LEDGER": str(ledger), "SHALE_KERNELS": "reference"}
    with running(demo_model, tmp_path / "log", None, **environment) as runner:
        info = runner.client.get("/info").json()
        assert [device["id"] for device in info["devices"]] == ["cpu", "sim0", "sim1"]
        fit = runner.post("/load", {"operation": 0, "num_ctx": 64}).json()
        assert [gpu["id"] for gpu in fit["memory"]["gpus"]] == ["sim0", "sim1"]


def test_a_runner_that_cannot_open_its_devices_says_so_and_ends(demo_model: Path, tmp_path: Path) -> None:
    with running(demo_model, tmp_path / "log", None, SHALE_DEVICES="cuda:0", SHALE_KERNELS="reference") as runner:
        assert runner.process.wait(60) == 1
        assert "error: SHALE_DEVICES names 'cuda:0'" in runner.output()
