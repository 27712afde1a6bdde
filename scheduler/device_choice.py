"""Devices beside the CPU as people write them: in ``SHALE_DEVICES``, and for a plan, which may think of others too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scheduler.errors import SettingsError
from scheduler.sizes import parse_bytes

MAX_DEVICES = 16  # with 64, one plan takes seconds, in which Python does little else

_SIM = "sim:"
_SIZES = f"each of at least 1 byte (B, KiB, MiB, GiB or TiB) and at most {MAX_DEVICES} of them"
_OF_A_SETTING = f"auto; cpu; or simulated devices alone, {_SIZES}, such as sim:8GiB,sim:6GiB"
_OF_A_PLAN = f"cpu; or devices of one kind, {_SIZES}, such as 24GiB,12GiB or sim:8GiB,sim:6GiB"


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """``auto``: what the machine has; ``cpu``: the CPU alone; else devices of these ``sizes`` in bytes, at least one:
    ``sim`` simulated ones, ``gpu`` such as a plan thinks of."""

    kind: Literal["auto", "cpu", "sim", "gpu"]
    sizes: tuple[int, ...] = ()


def parse_devices(text: str) -> DeviceChoice:
    """``""``, ``auto``, ``cpu`` or ``sim:8GiB,sim:6GiB``. Raises SettingsError for anything else."""
    if text.strip() in ("", "auto"):
        return DeviceChoice("auto")
    choice = _parse(text, _OF_A_SETTING)
    if choice.kind == "gpu":
        raise _error(f"{text!r} is not simulated", _OF_A_SETTING)
    return choice


def parse_plan_devices(text: str) -> DeviceChoice:
    """``24GiB,12GiB``, ``sim:8GiB,sim:6GiB`` or ``cpu``. Raises SettingsError for anything else."""
    return _parse(text, _OF_A_PLAN)


def _parse(text: str, allowed: str) -> DeviceChoice:
    parts = [part.strip() for part in text.split(",")]
    if parts == ["cpu"]:
        return DeviceChoice("cpu")
    if len(parts) > MAX_DEVICES:
        raise _error(f"there are {len(parts)}", allowed)
    kinds = {_kind(part) for part in parts}
    if len(kinds) > 1:
        raise _error(f"{text!r} mixes kinds of devices", allowed)
    return DeviceChoice("sim" if kinds == {"sim"} else "gpu", tuple(_size(part, allowed) for part in parts))


def _kind(part: str) -> str:
    if part in ("auto", "cpu"):
        return part
    return "sim" if part.startswith(_SIM) else "gpu"


def _size(part: str, allowed: str) -> int:
    try:
        num_bytes = parse_bytes(part.removeprefix(_SIM))
    except ValueError:
        raise _error(f"{part!r} is not understood", allowed) from None
    if not num_bytes:
        raise _error(f"{part!r} has 0 bytes", allowed)
    return num_bytes


def _error(found: str, allowed: str) -> SettingsError:
    return SettingsError(f"devices: {found}; allowed: {allowed}")
