"""``SHALE_DEVICES`` as a runner reads it: which devices beside the CPU it opens."""

from __future__ import annotations

from pathlib import Path

from runner.devices.sim import SimDevice
from runner.sim_ledger import SimLedger

LEDGER_ENVIRONMENT_NAME = "SHALE_SIM_LEDGER"


class DeviceChoiceError(ValueError):
    """``SHALE_DEVICES`` names what a runner cannot open."""


def open_devices(text: str, ledger: Path | None) -> tuple[SimDevice, ...]:
    """``""``, ``auto`` and ``cpu`` → none; ``sim:8GiB,sim:6GiB`` → ``sim0`` and ``sim1``.

    ``ledger`` is the folder where the server has written how large they are. Raises DeviceChoiceError.
    """
    parts = [part.strip() for part in text.split(",")]
    if parts in ([""], ["auto"]):
        return ()
    unknown = [part for part in parts if part != "cpu" and not part.startswith("sim:")]
    if unknown:
        raise DeviceChoiceError(f"SHALE_DEVICES names {unknown[0]!r}; this runner knows: auto, cpu, sim:SIZE")
    num_sims = sum(part != "cpu" for part in parts)
    if num_sims and ledger is None:
        raise DeviceChoiceError(f"simulated devices need {LEDGER_ENVIRONMENT_NAME}; the parent process sets it")
    return tuple(_open(number, ledger) for number in range(num_sims) if ledger is not None)


def _open(number: int, folder: Path) -> SimDevice:
    device = SimDevice(f"sim{number}", SimLedger(folder, f"sim{number}"))
    try:
        device.info()
    except (OSError, ValueError) as error:
        raise DeviceChoiceError(f"{LEDGER_ENVIRONMENT_NAME}: {folder} does not say how large {device.id} is") from error
    return device
