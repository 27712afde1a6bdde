"""What this machine has: host memory, and the GPUs that a model's layers may go to.

Nothing here opens a CUDA context: that would take the very memory that is being measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from scheduler.cuda_probe import ask_cuda
from scheduler.device_choice import parse_devices
from scheduler.errors import SettingsError
from scheduler.gpu import GPU, MINIMUM_GPU_BYTES
from scheduler.nvml import find_gpus
from scheduler.sim import SimGPUs
from scheduler.system_memory import SystemMemory, system_memory
from scheduler.visible_gpus import VARIABLE, visible_gpus

__all__ = ["GPU", "MINIMUM_GPU_BYTES", "Devices", "Machine", "SystemMemory"]

NO_CUDA_REASON = "this version of Shale has no CUDA runner yet"


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything that layers can be placed on."""

    system: SystemMemory
    gpus: tuple[GPU, ...] = ()


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
        self._choice = parse_devices(text)
        self._environment = environment
        self._system = system
        try:
            self._sims = SimGPUs(self._choice.sizes, sim_ledger) if self._choice.sizes else None
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
        if self._choice.kind == "cpu":
            return ()
        found = find_gpus()
        gpus = self._from_cuda if found is None else visible_gpus(found, self._environment.get(VARIABLE))
        return tuple(replace(gpu, reason=NO_CUDA_REASON) for gpu in gpus)

    @cached_property
    def _from_cuda(self) -> tuple[GPU, ...]:
        return ask_cuda()  # once: a child for every look would cost a second each
