"""Which layer goes on which GPU: pure, from what a model takes and what the machine has.

The algorithm is Ollama's (``buildLayout`` … ``verifyLayout`` of its 2025 engine), restated with its
order of decisions and its float32 arithmetic, because its answers are what users compare with:

1. *build*: sort the GPUs, take from each what must stay free, try every library's GPUs on their own;
2. *assign*: the fewest GPUs that hold everything, else everything but the output layer;
3. *best fit*: the smallest share of every GPU's free memory that still places as many layers,
   found by binary search, so that GPUs fill in proportion to what they have;
4. *greedy fit*: fill from the last layer downwards, last GPU first;
5. *verify*: what is left must fit into host memory.

One difference: where the share cannot be represented any finer in float32, the search ends (the original
goes on for ever when a forced layer count needs more than 16 times the free memory).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from runner.protocol import DeviceLayers, DeviceMemory, Layout, Memory
from scheduler.devices import GPU, SystemMemory
from scheduler.errors import RequireFullError, SystemMemoryError

MAX_BACKOFF = 1.0
_FORCED_SHARE = 1000.0  # "almost infinite" memory, for a layer count that the user insists on
_SHARE_PRECISION = 1e-6


@dataclass(frozen=True, slots=True)
class LayoutRules:
    """What the user asks for and what an earlier attempt has taught."""

    num_gpu: int = -1  # layers to place on GPUs; -1: as many as fit
    require_full: bool = False  # all or an error, instead of leaving layers on the CPU
    backoff: float = 0.0  # share of every GPU's free memory that is not used
    overhead_bytes: int = 0  # kept free on every GPU on top of its minimum
    is_spread: bool = False  # use all GPUs even if fewer would do


@dataclass(frozen=True, slots=True)
class _Room:
    """One GPU during the search: what it can still hold."""

    gpu: GPU
    free_bytes: int
    is_integrated: bool


_Assignment = list[tuple[GPU, range]]


def create_layout(memory: Memory, gpus: Sequence[GPU], system: SystemMemory, rules: LayoutRules) -> Layout:
    """The layout for a model that takes ``memory``; GPUs without a layer are left out.

    ``memory`` may come from any earlier layout: only the sum of a layer over all devices counts.
    Raises RequireFullError or SystemMemoryError.
    """
    layers = layer_bytes(memory)
    assignment = _build(memory, layers, gpus, rules)
    layout = tuple(
        DeviceLayers(id=gpu.id, library=gpu.library, layers=tuple(placed)) for gpu, placed in assignment if placed
    )
    _verify(memory, layers, layout, gpus, system, rules)
    return layout


def unknown_memory(num_layers: int) -> Memory:
    """The memory of a model of which nothing is known: with it, all layers go to the largest GPU, to be measured."""
    zeros = (0,) * num_layers
    return Memory(input_weights=0, cpu=DeviceMemory(id="cpu", library="cpu", weights=zeros, cache=zeros, graph=0))


def num_placed(layout: Layout) -> int:
    """Layers that are on a GPU."""
    return sum(len(device.layers) for device in layout)


def layer_bytes(memory: Memory) -> list[int]:
    """Weights and cache of every layer, wherever it is now."""
    devices = (memory.cpu, *memory.gpus)
    return [sum(sizes) for sizes in zip(*(sizes for d in devices for sizes in (d.weights, d.cache)), strict=True)]


# ---- build -------------------------------------------------------------------------------------


def _build(memory: Memory, layers: list[int], gpus: Sequence[GPU], rules: LayoutRules) -> _Assignment:
    best: _Assignment = []
    for group in _by_library(gpus):
        reported = {(d.id, d.library): d for d in memory.gpus}
        rooms, last_used = [], 0
        for i, gpu in enumerate(group):
            device = reported.get((gpu.id, gpu.library))
            if device is not None and device.graph:
                last_used = i  # it must stay in use: otherwise what we know of its graph is lost and the loop cycles
            free = 0 if device is None else _usable_bytes(gpu, device.graph, rules)
            rooms.append(_Room(gpu, free, gpu.is_integrated))
        candidate = _assign(layers, rooms, rules, last_used)
        if _count(candidate) > _count(best):
            best = candidate
    return best


def _by_library(gpus: Sequence[GPU]) -> list[list[GPU]]:
    """GPUs of one library together: a model never runs on two. Discrete first, then the most free memory."""
    groups: dict[str, list[GPU]] = {}
    for gpu in sorted(gpus, key=lambda g: (g.is_integrated, -g.free_bytes)):
        groups.setdefault(gpu.library, []).append(gpu)
    return list(groups.values())


def _usable_bytes(gpu: GPU, graph_bytes: int, rules: LayoutRules) -> int:
    kept_back = _scaled(gpu.free_bytes, _float32(rules.backoff))
    return max(0, gpu.free_bytes - kept_back - gpu.minimum_bytes - rules.overhead_bytes - graph_bytes)


# ---- assign ------------------------------------------------------------------------------------


def _assign(layers: list[int], rooms: list[_Room], rules: LayoutRules, last_used: int) -> _Assignment:
    if rules.num_gpu >= 0 or rules.is_spread:
        rooms = [replace(room, is_integrated=False) for room in rooms]
    assignment: _Assignment = []
    # The second pass leaves out the output layer: if not everything fits, the blocks are worth more.
    for wanted in (layers, layers[:-1]):
        assignment = _assign_layers(wanted, rooms, rules, last_used)
        if _count(assignment) == len(wanted):
            break
    return assignment


def _assign_layers(layers: list[int], rooms: list[_Room], rules: LayoutRules, last_used: int) -> _Assignment:
    requested = min(len(layers), rules.num_gpu)
    if rules.is_spread:
        return _best_fit(layers, rooms, requested, is_forced=not rules.require_full)
    assignment: _Assignment = []
    for num_rooms in range(last_used + 1, len(rooms) + 1):
        is_forced = num_rooms == len(rooms) and not rules.require_full
        assignment = _best_fit(layers, rooms[:num_rooms], requested, is_forced=is_forced)
        if _count(assignment) in (len(layers), requested):
            break
    return assignment


# ---- best fit and greedy fit -------------------------------------------------------------------


def _best_fit(layers: list[int], rooms: list[_Room], requested: int, *, is_forced: bool) -> _Assignment:
    """``requested`` < 0: as many as fit. Discrete GPUs get the last layers, integrated ones those before them."""
    result: _Assignment = []
    for is_integrated in dict.fromkeys(room.is_integrated for room in rooms):
        group = [room for room in rooms if room.is_integrated == is_integrated]
        high = _FORCED_SHARE if requested >= 0 and is_forced else 1.0
        best = _smallest_share(layers, group, requested, high)
        num_assigned = _count(best)
        layers = layers[: len(layers) - num_assigned]
        requested -= num_assigned
        result = best + result
    return result


def _smallest_share(layers: list[int], rooms: list[_Room], requested: int, high: float) -> _Assignment:
    wanted = len(layers) if requested < 0 else min(requested, len(layers))
    suffix = [0, *accumulate(reversed(layers))]  # suffix[k]: bytes of the last k layers
    best = _greedy_fit(suffix, rooms, high, wanted)
    low = 0.0
    while high - low > _SHARE_PRECISION:
        middle = _float32((low + high) / 2)
        if middle in (low, high):
            break
        fit = _greedy_fit(suffix, rooms, middle, wanted)
        if _count(fit) == _count(best):
            best, high = fit, middle
        else:
            low = middle
    return best


def _greedy_fit(suffix: list[int], rooms: list[_Room], share: float, wanted: int) -> _Assignment:
    """Fills the rooms from the last one backwards with layers from the last one downwards.

    A layer that does not fit ends a room for good. ``suffix`` are running sums, so each room takes one bisection.
    """
    num_layers = len(suffix) - 1
    placed = 0
    result: _Assignment = []
    for room in reversed(rooms):
        limit = suffix[placed] + _scaled(room.free_bytes, share)
        end = min(wanted, bisect_right(suffix, limit) - 1)
        result.insert(0, (room.gpu, range(num_layers - end, num_layers - placed)))
        placed = end
        if placed == wanted:
            break
    return result


def _count(assignment: _Assignment) -> int:
    return sum(len(placed) for _, placed in assignment)


def _float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _scaled(num_bytes: int, share: float) -> int:
    """uint64(float32(num_bytes) * share): the product of two float32 is exact in a double, so it rounds once."""
    return int(_float32(_float32(num_bytes) * share))


# ---- verify ------------------------------------------------------------------------------------


def _verify(
    memory: Memory,
    layers: list[int],
    layout: Layout,
    gpus: Sequence[GPU],
    system: SystemMemory,
    rules: LayoutRules,
) -> None:
    placed = {layer for device in layout for layer in device.layers}
    on_cpu = memory.input_weights + memory.cpu.graph + sum(n for i, n in enumerate(layers) if i not in placed)
    if rules.require_full:
        is_partial = len(placed) < len(layers) and (rules.num_gpu < 0 or len(placed) < rules.num_gpu)
        if gpus and is_partial:
            raise RequireFullError
        if on_cpu > system.free_bytes:
            raise RequireFullError.of_system_memory(on_cpu, system.free_bytes)
    if on_cpu > system.free_bytes + system.swap_bytes:
        raise SystemMemoryError(on_cpu, system.free_bytes + system.swap_bytes)
