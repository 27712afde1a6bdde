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

Bytes = Mapping[DeviceName, int]
"""Bytes by device, the CPU (host memory) among them."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one load has to itself."""

    devices: frozenset[DeviceName] = frozenset()
    system_bytes: int = 0  # of host memory; nobody has all of that


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
    """The machine as a load sees it while others have these claims.

    Of host memory the whole claim is left alone although part of it is in use already: rather too little than too much.
    """
    claims = tuple(claims)
    taken = frozenset[DeviceName]().union(*(claim.devices for claim in claims))
    reserved = sum(claim.system_bytes for claim in claims)
    system = replace(machine.system, free_bytes=max(0, machine.system.free_bytes - reserved))
    return Machine(system, tuple(gpu for gpu in machine.gpus if device_name(gpu) not in taken))


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
