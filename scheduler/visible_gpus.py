"""``CUDA_VISIBLE_DEVICES``: which GPUs a process gets to see, by CUDA's rules (programming guide, environment
variables).

Entries are numbers, UUIDs or the beginning of one (``GPU-3f``), and MIG instances. An entry that is not known ends the
list, an entry that comes twice empties it. Numbers count by PCI bus, as with ``CUDA_DEVICE_ORDER=PCI_BUS_ID``: which
GPU CUDA itself takes for the fastest cannot be known without a context.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from scheduler.gpu import GPU
from scheduler.nvml import PhysicalGPU

VARIABLE = "CUDA_VISIBLE_DEVICES"

T = TypeVar("T")

_NUMBER = re.compile(r"[0-9]{1,9}")


def visible_gpus(found: Sequence[PhysicalGPU], variable: str | None) -> tuple[GPU, ...]:
    """The devices to use, in the variable's order. None: it is not set, so all of them, MIG instances one by one."""
    if variable is None:
        return tuple(gpu for physical in found for gpu in _devices(physical))
    chosen: list[GPU] = []
    for entry in variable.split(","):
        gpu = _find(found, entry.strip())
        if gpu is None:
            break
        if gpu in chosen:
            return ()
        chosen.append(gpu)
    return tuple(chosen)


def _devices(physical: PhysicalGPU) -> tuple[GPU, ...]:
    return tuple(instance.gpu for instance in physical.instances) if physical.is_mig else (physical.gpu,)


def _find(found: Sequence[PhysicalGPU], entry: str) -> GPU | None:
    if digits := _NUMBER.match(entry):
        number = int(digits[0])
        return _first(found[number]) if number < len(found) else None
    if entry.startswith("MIG-"):
        return _only(gpu for physical in found for gpu in _instances(physical, entry))
    if entry.startswith("GPU-"):
        physical = _only(each for each in found if each.gpu.id.startswith(entry))
        return None if physical is None else _first(physical)
    return None


def _first(physical: PhysicalGPU) -> GPU | None:
    """Of a GPU in MIG mode CUDA shows the first instance."""
    return next(iter(_devices(physical)), None)


def _instances(physical: PhysicalGPU, entry: str) -> Iterator[GPU]:
    for instance in physical.instances:
        if instance.legacy_id == entry or instance.gpu.id.startswith(entry):
            yield instance.gpu


def _only(found: Iterator[T]) -> T | None:
    """None if there is none, or more than one: a prefix must be unique."""
    first, second = next(found, None), next(found, None)
    return first if second is None else None
