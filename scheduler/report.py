"""Where a model's bytes are, as people and API clients are told: the same rows for a plan and for a loaded model."""

from __future__ import annotations

from typing import Any

from runner.protocol import DeviceMemory, Layout, Memory


def device_rows(memory: Memory, layout: Layout) -> list[dict[str, Any]]:
    """One row for each device of ``memory``, the CPU first; layers that ``layout`` does not name are the CPU's.

    ``total_bytes`` of all rows add up to ``memory.total_bytes``: the CPU's includes the input weights.
    """
    placed = {(share.id, share.library): list(share.layers) for share in layout}
    elsewhere = {layer for layers in placed.values() for layer in layers}
    on_cpu = [layer for layer in range(len(memory.cpu.weights)) if layer not in elsewhere]
    return [
        _row(memory.cpu, on_cpu, memory.input_weights),
        *(_row(gpu, placed.get((gpu.id, gpu.library), []), 0) for gpu in memory.gpus),
    ]


def _row(device: DeviceMemory, layers: list[int], input_weights: int) -> dict[str, Any]:
    return {
        "id": device.id,
        "library": device.library,
        "layers": layers,
        "weights_bytes": sum(device.weights),
        "cache_bytes": sum(device.cache),
        "graph_bytes": device.graph,
        "input_weights_bytes": input_weights,
        "total_bytes": device.total_bytes + input_weights,
    }


def layer_rows(memory: Memory, layout: Layout) -> list[dict[str, Any]]:
    """Weights and cache of every layer, the output layer last, with the device it is on."""
    where = {layer: share.id for share in layout for layer in share.layers}
    devices = (memory.cpu, *memory.gpus)
    return [
        {
            "layer": layer,
            "device": where.get(layer, memory.cpu.id),
            "weights_bytes": sum(device.weights[layer] for device in devices),
            "cache_bytes": sum(device.cache[layer] for device in devices),
        }
        for layer in range(len(memory.cpu.weights))
    ]


def vram_bytes(memory: Memory) -> int:
    """Ollama's ``size_vram``: where no layer is on the CPU, input weights and the CPU's graph count as well.

    So a model that is on GPUs wholly is told to be there to 100 %.
    """
    if memory.gpu_bytes and not any(memory.cpu.weights) and not any(memory.cpu.cache):
        return memory.total_bytes
    return memory.gpu_bytes
