"""NVML through a module that has the names of ``pynvml`` and answers from a table."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from scheduler.nvml import find_gpus

GIB = 2**30
A100 = "GPU-0f9d3c1e-7c1b-4d0f-8a3e-000000000001"
H200 = "GPU-52a0b7aa-1111-2222-3333-000000000002"


class NVMLError(Exception):
    pass


class NotSupportedError(NVMLError):
    pass


class NotFoundError(NVMLError):
    pass


def card(uuid, name, capability=(8, 0), free=30 * GIB, instances=None, **more):
    facts = {"uuid": uuid, "name": name, "capability": capability, "free": free, "total": 40 * GIB}
    return SimpleNamespace(**facts, instances=instances, error=None, bus="00000000:65:00.0", **more)


def instance(uuid, name, free, gi, ci=0):
    return SimpleNamespace(uuid=uuid, name=name, free=free, total=10 * GIB, gi=gi, ci=ci, error=None)


class FakeNvml(ModuleType):
    """Only what the real module has; a wrong name is an AttributeError."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NotSupportedError
    NVMLError_NotFound = NotFoundError
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, *cards, is_driver_there=True):
        super().__init__("pynvml")
        self.cards = cards
        self.is_driver_there = is_driver_there
        self.num_open = 0

    def nvmlInit(self):  # noqa: N802
        if not self.is_driver_there:
            raise NVMLError("NVML Shared Library Not Found")
        self.num_open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.num_open -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        assert self.num_open
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if self.cards[index].error:
            raise self.cards[index].error
        return self.cards[index]

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return handle.uuid

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return handle.name

    def nvmlDeviceGetPciInfo(self, handle):  # noqa: N802
        return SimpleNamespace(busId=handle.bus)

    def nvmlDeviceGetCudaComputeCapability(self, handle):  # noqa: N802
        return list(handle.capability)

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(total=handle.total, free=handle.free, used=handle.total - handle.free)

    def nvmlDeviceGetMigMode(self, handle):  # noqa: N802
        if handle.instances is None:
            raise NotSupportedError("Not Supported")
        return [int(bool(handle.instances)), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, index):  # noqa: N802
        if index not in handle.instances:
            raise NotFoundError("Not Found")
        return handle.instances[index]

    def nvmlDeviceGetGpuInstanceId(self, handle):  # noqa: N802
        return handle.gi

    def nvmlDeviceGetComputeInstanceId(self, handle):  # noqa: N802
        return handle.ci


@pytest.fixture
def install(monkeypatch):
    def install(*cards, **more):
        fake = FakeNvml(*cards, **more)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


def test_the_facts_of_a_gpu(install):
    fake = install(card(H200, "NVIDIA H200", (9, 0)))
    (found,) = find_gpus()
    gpu = found.gpu
    assert (gpu.id, gpu.library, gpu.name, gpu.compute_capability) == (H200, "cuda", "NVIDIA H200", "9.0")
    assert (gpu.free_bytes, gpu.total_bytes, gpu.pci_id) == (30 * GIB, 40 * GIB, "00000000:65:00.0")
    assert not found.is_mig
    assert fake.num_open == 0


def test_old_versions_answer_bytes(install):
    install(card(H200.encode(), b"NVIDIA H200", (9, 0)))
    (found,) = find_gpus()
    assert (found.gpu.id, found.gpu.name) == (H200, "NVIDIA H200")


def test_mig_instances_may_have_gaps(install):
    instances = {0: instance("MIG-aaaa", "1g.10gb", 9 * GIB, gi=1), 3: instance("MIG-bbbb", "1g.10gb", GIB, gi=5, ci=2)}
    install(card(A100, "NVIDIA A100", instances=instances), card(H200, "NVIDIA H200", instances={}))
    mig, whole = find_gpus()
    assert mig.is_mig
    assert not whole.is_mig
    assert [each.gpu.id for each in mig.instances] == ["MIG-aaaa", "MIG-bbbb"]
    assert [each.gpu.free_bytes for each in mig.instances] == [9 * GIB, GIB]
    assert mig.instances[1].legacy_id == f"MIG-{A100}/5/2"
    assert mig.instances[1].gpu.compute_capability == "8.0"


def test_a_gpu_that_fails_is_left_out_and_said(install, caplog):
    fake = install(card(A100, "lost"), card(H200, "NVIDIA H200"))
    fake.cards[0].error = NVMLError("GPU is lost")
    assert [found.gpu.id for found in find_gpus()] == [H200]
    assert "GPU 0 is left out: GPU is lost" in caplog.text
    assert fake.num_open == 0


def test_no_driver(install):
    install(is_driver_there=False)
    assert find_gpus() is None


def test_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpus() is None


def test_no_gpu(install):
    install()
    assert find_gpus() == ()
