"""Takes the memory that a load needs: on each device one slab for weights, one for the cache, one to work in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runner.cache.storage import CacheStorage
from runner.devices.base import Device
from runner.footprint import CPU, DeviceName, device_workspace, places
from runner.gguf import GGUFFile
from runner.kernels import Kernels
from runner.model.spec import ModelSpec
from runner.model.step import Buffers
from runner.model.weights import Placed, stays_in_file
from runner.protocol import LoadRequest
from runner.tensor_storage import INPUT, stored_tensors

Devices = Mapping[DeviceName, Device]


@dataclass(frozen=True, slots=True)
class Allocation:
    """Memory that was taken for ``request``; it goes back when nothing refers to it any more."""

    request: LoadRequest
    places: tuple[DeviceName, ...]  # of the layers, the output layer last
    placed: tuple[Placed, ...]
    cache: CacheStorage
    buffers: Mapping[DeviceName, Buffers]


def allocate(gguf: GGUFFile, spec: ModelSpec, request: LoadRequest, devices: Devices, kernels: Kernels) -> Allocation:
    """Takes exactly the bytes that ``runner.footprint`` counts (input rows that stay mapped in the file excepted).

    Raises:
        OutOfMemoryError: a device is short of memory; what was taken before goes back.
        ModelError: the file or the layout cannot be, or the type of the cache with this model.
    """
    chosen = places(spec, request.layout)
    return Allocation(
        request=request,
        places=chosen,
        placed=_weights(gguf, spec, request, chosen, devices),
        cache=CacheStorage(spec, request, chosen[:-1], devices, kernels),
        buffers={device: _buffers(spec, request, device, devices[device]) for device in dict.fromkeys((CPU, *chosen))},
    )


def _weights(
    gguf: GGUFFile, spec: ModelSpec, request: LoadRequest, chosen: tuple[DeviceName, ...], devices: Devices
) -> tuple[Placed, ...]:
    sizes: dict[DeviceName, int] = {}
    starts = []
    tensors = stored_tensors(gguf, spec)
    for tensor in tensors:
        device = CPU if tensor.layer == INPUT else chosen[tensor.layer]
        start = sizes.get(device, 0)
        stop = start if request.use_mmap and stays_in_file(tensor) else start + tensor.nbytes
        starts.append((device, start, stop))
        sizes[device] = stop
    slabs = {device: devices[device].allocate(nbytes) for device, nbytes in sizes.items()}
    return tuple(
        Placed(tensor, slabs[device][start:stop]) for tensor, (device, start, stop) in zip(tensors, starts, strict=True)
    )


def _buffers(spec: ModelSpec, request: LoadRequest, name: DeviceName, device: Device) -> Buffers:
    shapes = device_workspace(spec, request, name)
    return Buffers(shapes, device.allocate(shapes.nbytes))
