"""NVIDIA GPUs as the driver's management library (NVML) sees them: no CUDA context, so no GPU memory is taken.

``nvidia-ml-py`` (module ``pynvml``) is optional and imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scheduler.gpu import GPU

LOG = logging.getLogger("scheduler.nvml")

LIBRARY = "cuda"


@dataclass(frozen=True, slots=True)
class MigInstance:
    """A part of a GPU that CUDA treats as a device of its own."""

    gpu: GPU
    legacy_id: str  # "MIG-GPU-<uuid>/<GPU instance>/<compute instance>", the name before driver 470


@dataclass(frozen=True, slots=True)
class PhysicalGPU:
    """One GPU. In MIG mode only its instances can be used, and there may be none."""

    gpu: GPU
    is_mig: bool = False
    instances: tuple[MigInstance, ...] = ()


def find_gpus() -> tuple[PhysicalGPU, ...] | None:
    """Every GPU of the machine, by PCI bus. None: NVML is not here, or there is no driver for it to talk to."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        LOG.debug("nvidia-ml-py is not installed")
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        LOG.debug("NVML cannot be used: %s", error)
        return None
    try:
        return tuple(_gpus(nvml))
    finally:
        nvml.nvmlShutdown()


def _gpus(nvml: Any) -> Iterator[PhysicalGPU]:
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            yield _gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
        except nvml.NVMLError as error:
            LOG.warning("GPU %d is left out: %s", index, error)


def _gpu(nvml: Any, handle: Any) -> PhysicalGPU:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    pci_id = _text(nvml.nvmlDeviceGetPciInfo(handle).busId)
    gpu = _device(nvml, handle, f"{major}.{minor}", pci_id)
    if not _is_mig(nvml, handle):
        return PhysicalGPU(gpu)
    return PhysicalGPU(gpu, True, tuple(_instances(nvml, handle, gpu)))


def _instances(nvml: Any, parent: Any, gpu: GPU) -> Iterator[MigInstance]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(parent)):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, number)
        except nvml.NVMLError_NotFound:
            continue  # the numbers may have gaps
        ids = nvml.nvmlDeviceGetGpuInstanceId(handle), nvml.nvmlDeviceGetComputeInstanceId(handle)
        instance = _device(nvml, handle, gpu.compute_capability, gpu.pci_id)
        yield MigInstance(instance, f"MIG-{gpu.id}/{ids[0]}/{ids[1]}")


def _device(nvml: Any, handle: Any, compute_capability: str | None, pci_id: str | None) -> GPU:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return GPU(
        id=_text(nvml.nvmlDeviceGetUUID(handle)),
        library=LIBRARY,
        free_bytes=int(memory.free),
        total_bytes=int(memory.total),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        compute_capability=compute_capability,
        pci_id=pci_id,
    )


def _is_mig(nvml: Any, handle: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError_NotSupported:
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _text(value: str | bytes) -> str:
    """Versions before 12 answer bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
