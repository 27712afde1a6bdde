"""The buffers of one forward pass and everything its layers share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runner.devices.base import Bytes
from runner.footprint import Workspace
from runner.kernels import Kernels
from runner.model.spec import ModelSpec
from runner.sequence import Int32Array
from runner.tensor_storage import ALIGNMENT

Float32Array = npt.NDArray[np.float32]


class Buffers:
    """The workspace's slab, cut into named float32 buffers of (rows, columns)."""

    def __init__(self, shapes: Workspace, slab: Bytes) -> None:
        self._buffers: dict[str, Float32Array] = {}
        start = 0
        for name, rows, cols in shapes:
            nbytes = 4 * rows * cols
            self._buffers[name] = slab[start : start + nbytes].view(np.float32).reshape(rows, cols)
            start += -(-nbytes // ALIGNMENT) * ALIGNMENT

    def __getitem__(self, name: str) -> Float32Array:
        return self._buffers[name]


class Views:
    """The first T rows of every buffer, with heads told apart where a layer needs them."""

    def __init__(self, buffers: Buffers, spec: ModelSpec, num_tokens: int) -> None:
        def rows(name: str) -> Float32Array:
            return buffers[name][:num_tokens]

        def heads(flat: Float32Array, count: int) -> Float32Array:
            return flat.reshape(len(flat), count, flat.shape[1] // count)

        self.residual = rows("residual")
        self.normed = rows("normed")
        self.delta = rows("delta")
        self.query = rows("query")
        self.key = rows("key")
        self.value = rows("value")
        self.attended = rows("attended")
        self.gate = rows("gate")
        self.up = rows("up")
        self.query_heads = heads(self.query, spec.num_heads)
        self.key_heads = heads(self.key, spec.num_kv_heads)
        self.value_heads = heads(self.value, spec.num_kv_heads)
        self.attended_heads = heads(self.attended, spec.num_heads)
        self.buffers = buffers


@dataclass(frozen=True, slots=True)
class Visibility:
    """What the layers of one kind (full or sliding) see and where they store."""

    rows: Int32Array  # (T, 3), see Kernels.attention
    rotary: Float32Array | None  # (T, dims)
    cells: Int32Array  # of all sequences, one after the other
    slots: Int32Array  # (T,) where each row's own key and value go


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass as its layers see it."""

    kernels: Kernels
    full: Visibility
    sliding: Visibility
