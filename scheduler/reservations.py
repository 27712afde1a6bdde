"""What loads under way have taken for themselves, and what others see of the machine meanwhile.

A load claims the devices that it goes to, whole, and so many bytes of host memory. Until it ends, nobody else sees
those devices; so two loads that touch different devices proceed side by side, and neither measures the other's work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from runner.footprint import CPU, DeviceName
from runner.protocol import Layout, Memory
from scheduler.devices import Machine
from scheduler.gpu import GPU
from scheduler.system_memory import SystemMemory

Bytes = Mapping[DeviceName, int]
"""Bytes by device, the CPU (host memory) among them."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one load has to itself."""

    devices: frozenset[DeviceName] = frozenset()
    system_bytes: int = 0  # of host memory; nobody has all of that
    in_the_end: Bytes | None = (
        None  # what it will hold of its devices when it is done; None: all of them, for all we know
    )

    def less(self, taken_bytes: int) -> Claim:
        """The claim of a load that has so much host memory already, which is no longer free for anybody."""
        return replace(self, system_bytes=max(0, self.system_bytes - taken_bytes))


def device_name(gpu: GPU) -> DeviceName:
    return DeviceName(gpu.id, gpu.library)


def names_of(layout: Layout) -> frozenset[DeviceName]:
    """The devices that have a layer."""
    return frozenset(DeviceName(share.id, share.library) for share in layout)


def bytes_of(memory: Memory) -> dict[DeviceName, int]:
    """What a model takes on each device; input weights are in host memory."""
    gpus = {DeviceName(gpu.id, gpu.library): gpu.total_bytes for gpu in memory.gpus}
    return {CPU: memory.input_weights + memory.cpu.total_bytes, **gpus}


def total(held: Iterable[Bytes]) -> dict[DeviceName, int]:
    """The sum over several models."""
    result: Counter[DeviceName] = Counter()
    for each in held:
        result.update(each)
    return dict(result)


def without_claims(machine: Machine, claims: Iterable[Claim]) -> Machine:
    """The machine as a load sees it while others have these claims."""
    claims = tuple(claims)
    taken = frozenset[DeviceName]().union(*(claim.devices for claim in claims))
    gpus = tuple(gpu for gpu in machine.gpus if device_name(gpu) not in taken)
    return Machine(_without_reserved(machine.system, claims), gpus)


def after_claims(machine: Machine, claims: Iterable[Claim], held: Bytes) -> Machine:
    """The machine as it will be at best when the loads that have these claims are done; others hold ``held``."""
    claims = tuple(claims)
    holder = {device: claim for claim in claims for device in claim.devices}

    def then(gpu: GPU) -> GPU:
        device = device_name(gpu)
        claim = holder.get(device)
        if claim is None:
            return gpu
        if claim.in_the_end is None:
            return replace(gpu, free_bytes=0)
        rest = (gpu.total_bytes or gpu.free_bytes) - held.get(device, 0) - claim.in_the_end.get(device, 0)
        return replace(gpu, free_bytes=max(0, min(gpu.free_bytes, rest)))

    return Machine(_without_reserved(machine.system, claims), tuple(map(then, machine.gpus)))


def _without_reserved(system: SystemMemory, claims: tuple[Claim, ...]) -> SystemMemory:
    reserved = sum(claim.system_bytes for claim in claims)
    return replace(system, free_bytes=max(0, system.free_bytes - reserved))


def less_promised(machine: Machine, held: Bytes) -> Machine:
    """Free memory is at most what loaded models leave of the total, whatever the system says.

    A cache that no request has filled yet is not in use for the system, but it is promised.
    """
    system = machine.system
    free = min(system.free_bytes, max(0, system.total_bytes - held.get(CPU, 0)))
    return Machine(replace(system, free_bytes=free), tuple(_less_promised(gpu, held) for gpu in machine.gpus))


def _less_promised(gpu: GPU, held: Bytes) -> GPU:
    if not gpu.total_bytes:
        return gpu  # not known
    return replace(gpu, free_bytes=min(gpu.free_bytes, max(0, gpu.total_bytes - held.get(device_name(gpu), 0))))


def with_freed(machine: Machine, freed: Bytes) -> Machine:
    """The machine once those who hold these bytes are gone."""
    system = machine.system
    free = min(system.total_bytes, system.free_bytes + freed.get(CPU, 0))
    return Machine(replace(system, free_bytes=free), tuple(_with_freed(gpu, freed) for gpu in machine.gpus))


def _with_freed(gpu: GPU, freed: Bytes) -> GPU:
    free = gpu.free_bytes + freed.get(device_name(gpu), 0)
    return replace(gpu, free_bytes=min(free, gpu.total_bytes) if gpu.total_bytes else free)


def only(machine: Machine, devices: frozenset[DeviceName]) -> Machine:
    """The machine with no other devices than these."""
    return Machine(machine.system, tuple(gpu for gpu in machine.gpus if device_name(gpu) in devices))
