"""Machines that somebody thinks of: ``24GiB,12GiB`` as the GPUs of a plan."""

from __future__ import annotations

from scheduler.device_choice import parse_plan_devices
from scheduler.devices import Machine
from scheduler.errors import SettingsError
from scheduler.gpu import GPU
from scheduler.sim import sim_gpu, sim_id
from scheduler.sizes import parse_bytes
from scheduler.system_memory import SystemMemory

LIBRARY = "gpu"
NAME = "GPU of the plan"


def hypothetical_machine(devices: str | None, system_memory: str | None, real: Machine) -> Machine:
    """A machine with these devices and this much host memory; what is None is as on the ``real`` one.

    Raises SettingsError.
    """
    system = real.system
    if system_memory is not None:
        num_bytes = _size(system_memory)
        system = SystemMemory(total_bytes=num_bytes, free_bytes=num_bytes, swap_bytes=0)
    return Machine(system, real.gpus if devices is None else parse_hypothetical(devices))


def parse_hypothetical(text: str) -> tuple[GPU, ...]:
    """``24GiB,12GiB`` → empty GPUs ``gpu0``, ``gpu1`` under a real GPU's rules (some memory must stay free).

    ``sim:8MiB`` is a simulated device, which may be full to the last byte; ``cpu`` is the CPU alone. Raises
    SettingsError for anything else.
    """
    choice = parse_plan_devices(text)
    if choice.kind == "sim":
        return tuple(sim_gpu(sim_id(i), total_bytes=size, free_bytes=size) for i, size in enumerate(choice.sizes))
    return tuple(
        GPU(id=f"gpu{i}", library=LIBRARY, free_bytes=size, total_bytes=size, name=NAME)
        for i, size in enumerate(choice.sizes)
    )


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise SettingsError(f"system_memory: {error}") from None
