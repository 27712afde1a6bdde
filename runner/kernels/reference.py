"""The reference kernels: plain NumPy in float32 on dequantized weights, slow and obviously right.

They are the oracle of every fast kernel. Same facade as ``runner.kernels.cpu``; see ``runner.kernels.Kernels``
for shapes. A matrix is held dequantized, outside the storage that the footprint counts: these kernels are for
checking, not for serving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runner.ggml_types import TYPES, row_bytes
from runner.kernels.dequantize import dequantize
from runner.kernels.reference_cache import ReferenceCache, hadamard

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ReferenceMatrix:
    type_name: str
    rows: int
    cols: int
    nbytes: int
    values: Float32Array  # (rows, cols)


class ReferenceKernels:
    """Every operation as its definition. All arrays are float32 unless said otherwise; T = tokens."""

    name = "reference"
    isa = "numpy"
    num_thread = 1

    def set_num_thread(self, num_thread: int) -> None:
        """Nothing to do: these kernels have one thread."""

    def accepts(self, type_id: int) -> bool:
        """Whether matrices of this type can be packed without conversion."""
        return type_id in TYPES

    def pack(
        self, type_id: int, rows: int, cols: int, source: npt.NDArray[np.uint8], storage: npt.NDArray[np.uint8]
    ) -> ReferenceMatrix:
        values = dequantize(type_id, source, cols)
        if values.shape != (rows, cols):
            raise ValueError(f"source holds {values.shape[0]} rows of {cols}; {rows} are needed")
        return ReferenceMatrix(TYPES[type_id].name, rows, cols, storage.nbytes, values)

    def linear(
        self,
        x: Float32Array,
        matrices: Sequence[Any],
        outs: Sequence[Float32Array],
        biases: Sequence[Float32Array | None] | None = None,
    ) -> None:
        for index, (matrix, out) in enumerate(zip(matrices, outs, strict=True)):
            np.matmul(x, matrix.values.T, out=out)
            bias = biases[index] if biases is not None else None
            if bias is not None:
                out += bias

    def embed(
        self,
        type_id: int,
        source: npt.NDArray[np.uint8],
        cols: int,
        ids: npt.NDArray[np.int32],
        out: Float32Array,
        scale: float = 1.0,
    ) -> None:
        rows = source.reshape(-1, row_bytes(TYPES[type_id], cols))
        out[:] = dequantize(type_id, rows[ids].reshape(-1), cols) * np.float32(scale)

    def rms_norm(self, x: Float32Array, weight: Float32Array | None, eps: float, out: Float32Array) -> None:
        scale = 1.0 / np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True) + eps)
        out[:] = x * scale.astype(np.float32) * (1.0 if weight is None else weight)

    def add_rms_norm(
        self, residual: Float32Array, delta: Float32Array, weight: Float32Array | None, eps: float, out: Float32Array
    ) -> None:
        residual += delta
        self.rms_norm(residual, weight, eps, out)

    def layer_norm(
        self, x: Float32Array, weight: Float32Array | None, bias: Float32Array | None, eps: float, out: Float32Array
    ) -> None:
        centered = x - x.mean(axis=-1, keepdims=True, dtype=np.float64)
        scale = 1.0 / np.sqrt(np.mean(np.square(centered), axis=-1, keepdims=True) + eps)
        out[:] = (centered * scale).astype(np.float32) * (1.0 if weight is None else weight)
        if bias is not None:
            out += bias

    def add(self, x: Float32Array, delta: Float32Array) -> None:
        x += delta

    def rope(self, x: Float32Array, table: Float32Array, neox: bool) -> None:
        half = table.shape[1] // 2
        cosine, sine = table[:, None, :half], table[:, None, half:]
        rotated = x[:, :, : 2 * half]
        # Views, so that the assignment below writes into x.
        first, second = (rotated[..., :half], rotated[..., half:]) if neox else (rotated[..., ::2], rotated[..., 1::2])
        turned = first * cosine - second * sine, first * sine + second * cosine
        first[:], second[:] = turned

    def cache(self, type_name: str, num_heads: int, length: int, storage: npt.NDArray[np.uint8]) -> ReferenceCache:
        return ReferenceCache(type_name, num_heads, length, storage)

    def store_kv(self, k: Float32Array, v: Float32Array, keys: Any, values: Any, cells: npt.NDArray[np.int32]) -> None:
        keys.store(cells, k)
        values.store(cells, v)

    def hadamard(self, x: Float32Array) -> None:
        hadamard(x)

    def shift_keys(
        self, keys: Any, cells: npt.NDArray[np.int32], table: Float32Array, neox: bool, rotated: bool
    ) -> None:
        moved = keys.load(cells)
        if rotated:
            hadamard(moved)
        self.rope(moved, np.broadcast_to(table, (len(cells), table.size)), neox)
        if rotated:
            hadamard(moved)
        keys.store(cells, moved)

    def attention(
        self,
        q: Float32Array,
        keys: Any,
        values: Any,
        cells: npt.NDArray[np.int32],
        rows: npt.NDArray[np.int32],
        scale: float,
        softcap: float,
        out: Float32Array,
    ) -> None:
        group = q.shape[1] // keys.num_heads
        for row, (offset, first, end) in enumerate(rows):
            seen = cells[offset + first : offset + end]
            k = keys.load(seen).repeat(group, axis=1)  # (positions, heads, key_length)
            v = values.load(seen).repeat(group, axis=1)
            scores = np.einsum("hd,phd->hp", q[row], k) * np.float32(scale)
            if softcap:
                scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[row] = np.einsum("hp,phd->hd", weights, v)

    def swiglu(self, gate: Float32Array, up: Float32Array, out: Float32Array) -> None:
        with np.errstate(over="ignore"):  # exp(-gate) may reach infinity; the quotient is then 0, as it should be
            out[:] = gate / (1.0 + np.exp(-gate)) * up

    def geglu(self, gate: Float32Array, up: Float32Array, out: Float32Array) -> None:
        inner = math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3)
        out[:] = 0.5 * gate * (1.0 + np.tanh(inner)) * up

    def gelu(self, x: Float32Array, out: Float32Array) -> None:
        erf = np.vectorize(math.erf, otypes=[np.float64])
        out[:] = 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))

    def top_k(self, logits: Float32Array, k: int) -> tuple[npt.NDArray[np.int32], Float32Array]:
        order = np.argsort(-logits, kind="stable")
        ids = order[:k] if 0 < k < logits.size else order
        return ids.astype(np.int32), logits[ids]

    def log_sum_exp(self, logits: Float32Array) -> float:
        peak = float(logits.max())
        return peak + math.log(np.exp(logits.astype(np.float64) - peak).sum())
