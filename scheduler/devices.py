"""What this machine has: host memory, and the GPUs that a model's layers may go to.

Nothing here opens a CUDA context: that would take the very memory that is being measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from scheduler.cuda_probe import ask_cuda
from scheduler.errors import SettingsError
from scheduler.gpu import GPU, MINIMUM_GPU_BYTES
from scheduler.nvml import find_gpus
from scheduler.sim import SimGPUs
from scheduler.sizes import parse_bytes
from scheduler.system_memory import SystemMemory, system_memory
from scheduler.visible_gpus import VARIABLE, visible_gpus

__all__ = ["GPU", "MINIMUM_GPU_BYTES", "DeviceChoice", "Devices", "Machine", "SystemMemory", "parse_devices"]

NO_CUDA_REASON = "this version of Shale has no CUDA runner yet"


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything that layers can be placed on."""

    system: SystemMemory
    gpus: tuple[GPU, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """One entry of ``SHALE_DEVICES``. ``quota_bytes`` is the size of a simulated device, else 0."""

    kind: Literal["cpu", "sim"]
    quota_bytes: int = 0


def parse_devices(text: str) -> tuple[DeviceChoice, ...]:
    """``""`` or ``auto`` → (); ``cpu`` → the CPU alone; ``sim:8GiB,sim:6GiB`` → simulated devices.

    Raises SettingsError for anything else.
    """
    stripped = text.strip()
    if stripped in ("", "auto"):
        return ()
    return tuple(_parse_device(part.strip()) for part in stripped.split(","))


def _parse_device(part: str) -> DeviceChoice:
    if part == "cpu":
        return DeviceChoice("cpu")
    kind, _, size = part.partition(":")
    if kind != "sim" or not size:
        raise SettingsError(f"SHALE_DEVICES: {part!r} is not understood; allowed: auto, cpu, sim:SIZE (sim:8GiB)")
    try:
        return DeviceChoice("sim", parse_bytes(size))
    except ValueError as error:
        raise SettingsError(f"SHALE_DEVICES: {error}") from None


class Devices:
    """The devices that the server was told to use. One per process; ``close`` removes what simulated ones leave."""

    def __init__(
        self,
        text: str = "",
        sim_ledger: Path | None = None,
        *,
        environment: Mapping[str, str] = os.environ,
        system: Callable[[], SystemMemory] = system_memory,
    ) -> None:
        """``text`` is what ``SHALE_DEVICES`` says, ``sim_ledger`` the folder for simulated devices (None: a new one).

        Raises SettingsError.
        """
        self._choices = parse_devices(text)
        self._environment = environment
        self._system = system
        quotas = [choice.quota_bytes for choice in self._choices if choice.kind == "sim"]
        try:
            self._sims = SimGPUs(quotas, sim_ledger) if quotas else None
        except OSError as error:
            raise SettingsError(f"SHALE_SIM_LEDGER: {error}") from error

    @property
    def sim_ledger(self) -> Path | None:
        """The folder that runners are told; None without simulated devices."""
        return self._sims.folder if self._sims else None

    def machine(self) -> Machine:
        """What layers can be placed on at this moment."""
        return Machine(self._system(), self._sims.gpus() if self._sims else ())

    def gpus(self) -> tuple[GPU, ...]:
        """Every device beside the CPU, usable or not. Blocking, the first time for seconds where NVML is missing."""
        return self._sims.gpus() if self._sims else self._nvidia_gpus()

    def close(self) -> None:
        """May be called again."""
        if self._sims:
            self._sims.close()

    def _nvidia_gpus(self) -> tuple[GPU, ...]:
        if self._choices:  # "cpu"
            return ()
        found = find_gpus()
        gpus = self._from_cuda if found is None else visible_gpus(found, self._environment.get(VARIABLE))
        return tuple(replace(gpu, reason=NO_CUDA_REASON) for gpu in gpus)

    @cached_property
    def _from_cuda(self) -> tuple[GPU, ...]:
        return ask_cuda()  # once: a child for every look would cost a second each
