"""The memory of the KV cache: on each device one slab with the keys and values of its layers, one layer after another.

The slabs can be given another number of cells while the cache holds something: what the first cells hold stays theirs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from runner.cache.layer import CacheLayer
from runner.cache.moves import MOVE_CHUNK_BYTES
from runner.cache_types import cache_row_bytes
from runner.devices.base import Bytes, Device, OutOfMemoryError
from runner.footprint import DeviceName, cells_per_sequence
from runner.kernels import CacheTensor, Kernels
from runner.model.spec import ModelSpec
from runner.protocol import LoadRequest
from runner.tensor_storage import ALIGNMENT


@dataclass(frozen=True, slots=True)
class _Part:
    """One layer's keys or its values."""

    device: DeviceName
    type_name: str
    num_heads: int
    length: int
    fixed_cells: int | None  # of a sliding layer; None: as many as the pool of the layers that see everything has

    def num_cells(self, num_cells: int) -> int:
        return num_cells if self.fixed_cells is None else self.fixed_cells

    def stored_bytes(self, num_cells: int) -> int:
        return self.num_cells(num_cells) * cache_row_bytes(self.type_name, self.num_heads, self.length)


class CacheStorage:
    """Takes the slabs when it is made. Raises OutOfMemoryError; what was taken before goes back.

    ``layers``: one for each layer of the model, none where attention is bidirectional.
    """

    def __init__(
        self,
        spec: ModelSpec,
        request: LoadRequest,
        layer_devices: Seq[DeviceName],
        devices: Mapping[DeviceName, Device],
        kernels: Kernels,
    ) -> None:
        self.num_cells = request.num_ctx * request.num_parallel
        self._devices = devices
        self._kernels = kernels
        self._parts = _parts(spec, request, layer_devices) if spec.is_causal else ()
        sizes = self._sizes(self.num_cells)
        self._slabs = {name: devices[name].allocate(nbytes) for name, nbytes in sizes.items()}
        tensors = self._tensors(self.num_cells)
        is_sliding = (part.fixed_cells is not None for part in self._parts[::2])
        self.layers = tuple(map(CacheLayer, tensors[::2], tensors[1::2], is_sliding))

    @property
    def nbytes(self) -> int:
        return sum(slab.nbytes for slab in self._slabs.values())

    def num_cells_within(self, nbytes: int) -> int:
        """The most cells with which all slabs together take at most ``nbytes``.

        What sliding layers have does not change; where there are no others, neither does the number of cells.
        """
        per_cell = sum(part.stored_bytes(1) for part in self._parts if part.fixed_cells is None)
        if not per_cell:
            return self.num_cells
        counts = range(nbytes // per_cell + 2)
        return max(0, bisect_right(counts, nbytes, key=lambda count: sum(self._sizes(count).values())) - 1)

    def resize(self, num_cells: int) -> None:
        """Gives every layer that sees everything ``num_cells`` cells; cells that both sizes have keep their bytes.

        Nobody may compute with the layers meanwhile. Raises OutOfMemoryError, and has changed nothing, when memory for
        more cells is short.
        """
        self._set_lengths(self._sizes(max(num_cells, self.num_cells)))
        old, new = self._places(self.num_cells), self._places(num_cells)
        kept = [part.stored_bytes(min(num_cells, self.num_cells)) for part in self._parts]
        steps = list(zip(self._parts, old, new, kept, strict=True))
        for part, start, to, nbytes in steps if num_cells < self.num_cells else reversed(steps):
            _move(self._slabs[part.device], start, to, nbytes)
        self.num_cells = num_cells
        self._set_lengths(self._sizes(num_cells))
        tensors = self._tensors(num_cells)
        for layer, keys, values in zip(self.layers, tensors[::2], tensors[1::2], strict=True):
            layer.keys, layer.values = keys, values

    def _set_lengths(self, sizes: Mapping[DeviceName, int]) -> None:
        before = {name: slab.nbytes for name, slab in self._slabs.items()}
        try:
            for name, nbytes in sizes.items():
                if nbytes != self._slabs[name].nbytes:
                    self._slabs[name] = self._devices[name].resize(self._slabs[name], nbytes)
        except OutOfMemoryError:
            for name, nbytes in before.items():
                self._slabs[name] = self._devices[name].resize(self._slabs[name], nbytes)
            raise

    def _sizes(self, num_cells: int) -> dict[DeviceName, int]:
        sizes: dict[DeviceName, int] = {}
        for part in self._parts:
            sizes[part.device] = sizes.get(part.device, 0) + _aligned(part.stored_bytes(num_cells))
        return sizes

    def _places(self, num_cells: int) -> list[int]:
        """Where in its slab each part begins."""
        starts, ends = [], dict.fromkeys(self._slabs, 0)
        for part in self._parts:
            starts.append(ends[part.device])
            ends[part.device] += _aligned(part.stored_bytes(num_cells))
        return starts

    def _tensors(self, num_cells: int) -> list[CacheTensor]:
        tensors = []
        for part, start in zip(self._parts, self._places(num_cells), strict=True):
            storage = self._slabs[part.device][start : start + part.stored_bytes(num_cells)]
            tensors.append(self._kernels.cache(part.type_name, part.num_heads, part.length, storage))
        return tensors


def _parts(spec: ModelSpec, request: LoadRequest, layer_devices: Seq[DeviceName]) -> tuple[_Part, ...]:
    parts = []
    for layer, device in enumerate(layer_devices):
        fixed = request.num_parallel * cells_per_sequence(spec, request, layer) if spec.window(layer) else None
        parts.append(_Part(device, request.key_cache_type, spec.num_kv_heads, spec.key_length, fixed))
        parts.append(_Part(device, request.value_cache_type, spec.num_kv_heads, spec.value_length, fixed))
    return tuple(parts)


def _move(slab: Bytes, start: int, to: int, nbytes: int) -> None:
    """Copies bytes to where they may overlap with themselves, in pieces, so that little scratch is needed."""
    pieces = range(0, nbytes, MOVE_CHUNK_BYTES) if start != to else ()
    for offset in pieces if to < start else reversed(pieces):
        stop = min(offset + MOVE_CHUNK_BYTES, nbytes)
        slab[to + offset : to + stop] = slab[start + offset : start + stop]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
