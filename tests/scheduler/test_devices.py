"""``SHALE_DEVICES``, simulated devices and their ledger, and which GPUs are offered to layouts."""

from __future__ import annotations

import psutil
import pytest

from runner.sim_ledger import SimLedger
from scheduler import devices as module
from scheduler.devices import GPU, Devices, SystemMemory
from scheduler.errors import SettingsError
from scheduler.nvml import PhysicalGPU

MIB = 2**20


def test_what_is_not_a_device():
    with pytest.raises(SettingsError, match=r"^devices: 'gpu' is not understood; allowed: auto; cpu; or sim"):
        Devices("gpu")


def test_this_machine():
    machine = Devices("cpu").machine()
    assert 0 < machine.system.free_bytes <= machine.system.total_bytes <= psutil.virtual_memory().total
    assert machine.gpus == ()
    assert Devices("cpu").sim_ledger is None


def test_host_memory_is_looked_at_each_time():
    memories = [SystemMemory(9, 7, 0), SystemMemory(9, 5, 0)]
    devices = Devices("cpu", system=lambda: memories.pop(0))
    assert [devices.machine().system.free_bytes for _ in range(2)] == [7, 5]


def test_simulated_devices_have_what_the_ledger_says():
    devices = Devices("sim:8MiB,sim:6MiB")
    runner = SimLedger(devices.sim_ledger, "sim1")
    runner.take(MIB)
    assert devices.machine().gpus == devices.gpus()
    assert [(gpu.id, gpu.library, gpu.total_bytes, gpu.free_bytes, gpu.minimum_bytes) for gpu in devices.gpus()] == [
        ("sim0", "sim", 8 * MIB, 8 * MIB, 0),
        ("sim1", "sim", 6 * MIB, 5 * MIB, 0),
    ]
    assert all(gpu.is_usable for gpu in devices.gpus())
    runner.set_quota(2 * MIB)
    assert devices.machine().gpus[1].free_bytes == MIB
    devices.close()
    assert not devices.sim_ledger.exists()
    devices.close()


def test_a_ledger_that_is_given_stays(tmp_path):
    devices = Devices("sim:8MiB", tmp_path / "ledger")
    devices.close()
    assert SimLedger(tmp_path / "ledger", "sim0").quota_bytes() == 8 * MIB


def test_a_ledger_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="SHALE_SIM_LEDGER"):
        Devices("sim:8MiB", tmp_path / "file")


def cuda(name):
    return GPU(name, "cuda", free_bytes=5, total_bytes=9, compute_capability="9.0")


def test_nvidia_gpus_are_shown_with_a_reason_and_not_offered_to_layouts(monkeypatch):
    found = (PhysicalGPU(cuda("GPU-a")), PhysicalGPU(cuda("GPU-b")))
    monkeypatch.setattr(module, "find_gpus", lambda: found)
    devices = Devices(environment={"CUDA_VISIBLE_DEVICES": "1"})
    (gpu,) = devices.gpus()
    assert (gpu.id, gpu.is_usable, gpu.reason) == ("GPU-b", False, "this version of Shale has no CUDA runner yet")
    assert devices.machine().gpus == ()
    assert len(Devices(environment={}).gpus()) == 2


def test_a_choice_of_devices_leaves_nvidia_gpus_out(monkeypatch):
    monkeypatch.setattr(module, "find_gpus", lambda: (PhysicalGPU(cuda("GPU-a")),))
    assert Devices("cpu").gpus() == ()
    assert [gpu.library for gpu in Devices("sim:1MiB").gpus()] == ["sim"]


def test_without_nvml_cuda_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "find_gpus", lambda: None)
    monkeypatch.setattr(module, "ask_cuda", lambda: asked.append(1) or (cuda("GPU-a"),))
    devices = Devices()
    assert devices.gpus() == devices.gpus()
    assert [gpu.id for gpu in devices.gpus()] == ["GPU-a"]
    assert len(asked) == 1
