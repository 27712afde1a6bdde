"""Takes the memory that a load needs: on each device one slab for weights, one for the cache, one to work in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runner.cache_types import cache_row_bytes
from runner.devices.base import Bytes, Device
from runner.footprint import (
    CPU,
    INPUT,
    DeviceName,
    cache_bytes,
    cells_per_sequence,
    device_workspace,
    places,
    stored_tensors,
)
from runner.gguf import GGUFFile
from runner.kernels import CacheTensor, Kernels
from runner.kv_cache import CacheLayer
from runner.model.spec import ModelSpec
from runner.model.step import Buffers
from runner.model.weights import Placed, stays_in_file
from runner.protocol import CacheType, LoadRequest

Devices = Mapping[DeviceName, Device]


@dataclass(frozen=True, slots=True)
class Allocation:
    """Memory that was taken for ``request``; it goes back when nothing refers to it any more."""

    request: LoadRequest
    places: tuple[DeviceName, ...]  # of the layers, the output layer last
    placed: tuple[Placed, ...]
    cache: tuple[CacheLayer, ...]
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
        cache=_cache(spec, request, chosen, devices, kernels),
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


def _cache(
    spec: ModelSpec, request: LoadRequest, chosen: tuple[DeviceName, ...], devices: Devices, kernels: Kernels
) -> tuple[CacheLayer, ...]:
    if not spec.is_causal:
        return ()
    layers = chosen[:-1]
    sizes = dict.fromkeys(layers, 0)
    for layer, device in enumerate(layers):
        sizes[device] += sum(cache_bytes(spec, request, layer))
    slabs = {device: devices[device].allocate(nbytes) for device, nbytes in sizes.items()}
    cut = dict.fromkeys(layers, 0)
    cache = []
    for layer, device in enumerate(layers):
        keys, _ = both = cache_bytes(spec, request, layer)
        start = cut[device]
        cut[device] += sum(both)
        slab = slabs[device][start : cut[device]]
        cache.append(cache_layer(spec, request, layer, slab[:keys], slab[keys:], kernels))
    return tuple(cache)


def cache_layer(
    spec: ModelSpec, request: LoadRequest, layer: int, keys: Bytes, values: Bytes, kernels: Kernels
) -> CacheLayer:
    """The cells of one layer in memory of ``cache_bytes``."""
    num_cells = request.num_parallel * cells_per_sequence(spec, request, layer)

    def tensor(type_name: CacheType, length: int, storage: Bytes) -> CacheTensor:
        nbytes = num_cells * cache_row_bytes(type_name, spec.num_kv_heads, length)  # without what aligns the next one
        return kernels.cache(type_name, spec.num_kv_heads, length, storage[:nbytes])

    return CacheLayer(
        keys=tensor(request.key_cache_type, spec.key_length, keys),
        values=tensor(request.value_cache_type, spec.value_length, values),
    )


def _buffers(spec: ModelSpec, request: LoadRequest, name: DeviceName, device: Device) -> Buffers:
    shapes = device_workspace(spec, request, name)
    return Buffers(shapes, device.allocate(shapes.nbytes))
