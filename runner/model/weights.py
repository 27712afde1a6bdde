"""A model's tensors in memory: where each one goes, and how it gets there.

``load`` reads, converts and packs tensor by tensor into memory that was set aside. Names are the tensors' GGUF names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runner.devices.base import Bytes
from runner.gguf import GGUFFile
from runner.kernels import Kernels
from runner.kernels.dequantize import convert_to_bfloat16, dequantize
from runner.model.spec import ModelError, ModelSpec
from runner.tensor_storage import StoredTensor

Float32Array = npt.NDArray[np.float32]
Matrix = Any
"""A packed matrix; what it is, only its kernels know."""


@dataclass(frozen=True, slots=True)
class RawRows:
    """Rows in a GGUF type, dequantized one by one when they are looked up."""

    type_id: int
    cols: int
    rows: int
    data: Bytes


Tensor = Float32Array | RawRows | Matrix | tuple[Matrix, ...]


class Weights:
    """Every tensor of a model by GGUF name: vectors, raw rows, matrices, or one matrix per expert."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def get(self, name: str) -> Any:
        """The tensor, or None."""
        return self._tensors.get(name)

    def need(self, name: str) -> Any:
        """The tensor.

        Raises:
            ModelError: the file lacks it.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelError(f"tensor {name!r} is missing; architecture {self.spec.architecture!r} needs it")
        return tensor

    def layer(self, number: int) -> LayerWeights:
        return LayerWeights(self, f"blk.{number}.")


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's tensors by their names without the ``blk.N.`` prefix."""

    weights: Weights
    prefix: str

    def get(self, name: str) -> Any:
        return self.weights.get(self.prefix + name)

    def need(self, name: str) -> Any:
        return self.weights.need(self.prefix + name)

    def matrix(self, name: str, rows: int, cols: int) -> Matrix:
        """A matrix whose shape must be (rows, cols)."""
        matrix = self.need(name)
        if (matrix.rows, matrix.cols) != (rows, cols):
            raise ModelError(
                f"{self.prefix}{name} maps {matrix.cols} to {matrix.rows} values; {cols} to {rows} are needed"
            )
        return matrix

    def vector(self, name: str, size: int) -> Float32Array | None:
        """A vector whose length must be ``size``, or None if the file has none."""
        vector: Float32Array | None = self.get(name)
        if vector is not None and vector.shape != (size,):
            raise ModelError(f"{self.prefix}{name} has shape {vector.shape}; ({size},) is needed")
        return vector


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and the memory that was set aside for it."""

    tensor: StoredTensor
    storage: Bytes


def load(
    gguf: GGUFFile, placed: tuple[Placed, ...], kernels: Kernels, advance: Callable[[int], None]
) -> Mapping[str, Tensor]:
    """Reads every tensor into its place.

    ``advance`` is called with the file bytes that are done; it may raise to stop the load.
    """
    tensors: dict[str, Tensor] = {}
    for place in placed:
        tensors[place.tensor.name] = _LOADERS[place.tensor.storage](gguf, place, kernels)
        advance(place.tensor.source.nbytes)
    return tensors


def stays_in_file(tensor: StoredTensor) -> bool:
    """Whether the tensor can be used where it is mapped: raw input rows that need no conversion."""
    return tensor.storage == "raw" and tensor.type == tensor.source.type


def _load_raw(gguf: GGUFFile, place: Placed, kernels: Kernels) -> RawRows:
    tensor = place.tensor
    rows = tensor.rows * tensor.num_matrices
    if kernels.accepts(tensor.source.type.id):  # the reference kernels read every type as it is
        data = gguf.data(tensor.source.name)
        type_id = tensor.source.type.id
    else:
        data = convert_to_bfloat16(tensor.source.type.id, gguf.data(tensor.source.name), tensor.cols)
        type_id = tensor.type.id
    if place.storage.size:
        storage = place.storage[: data.size]
        storage[:] = data
        data = storage
    return RawRows(type_id, tensor.cols, rows, data)


def _load_vector(gguf: GGUFFile, place: Placed, kernels: Kernels) -> Float32Array:
    tensor = place.tensor
    vector = place.storage.view(np.float32)[: tensor.cols]
    vector[:] = dequantize(tensor.source.type.id, gguf.data(tensor.source.name), tensor.cols)[0]
    return vector


def _load_matrix(gguf: GGUFFile, place: Placed, kernels: Kernels) -> Matrix | tuple[Matrix, ...]:
    tensor = place.tensor
    data = gguf.data(tensor.source.name).reshape(tensor.num_matrices, -1)
    storage = place.storage.reshape(tensor.num_matrices, -1)
    packed = tuple(_pack(tensor, data[i], storage[i], kernels) for i in range(tensor.num_matrices))
    return packed if len(tensor.source.shape) == 3 else packed[0]


def _pack(tensor: StoredTensor, data: Bytes, storage: Bytes, kernels: Kernels) -> Matrix:
    type_id = tensor.source.type.id
    if not kernels.accepts(type_id):
        data = convert_to_bfloat16(type_id, data, tensor.cols)
        type_id = tensor.type.id
    return kernels.pack(type_id, tensor.rows, tensor.cols, data, storage)


_LOADERS: Mapping[str, Callable[[GGUFFile, Placed, Kernels], Tensor]] = {
    "raw": _load_raw,
    "vector": _load_vector,
    "matrix": _load_matrix,
}
