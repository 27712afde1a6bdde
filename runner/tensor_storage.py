"""How the tensors of a GGUF file lie in memory: to which layer each belongs, in which type and form, how many bytes.

``token_embd``, ``position_embd``, ``token_types`` and their norm are input weights and stay on the CPU in the file's
own format; ``blk.N.*`` belongs to layer N; ``output*`` belongs to the output layer, index ``num_layers``. A model
without ``output.weight`` (tied embeddings) holds a second, packed copy of ``token_embd`` there. All this from the
header alone: nothing here touches a tensor's data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from runner.ggml_types import BY_NAME, GGMLType, row_bytes
from runner.gguf import GGUFFile, TensorInfo
from runner.model.spec import ModelError, ModelSpec

ALIGNMENT = 64
ROWS_PER_PANEL = 16
INPUT = -1
"""Layer number of the input weights."""

NATIVE_TYPES = frozenset(
    {
        "F32",
        "F16",
        "BF16",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
        "MXFP4",
    }
)
"""Types that the kernels compute with as they are. Every other type is converted to BF16 at load."""

PANEL_UNITS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "Q4_0": (64, 576),
        "Q4_1": (64, 640),
        "Q5_0": (64, 704),
        "Q5_1": (64, 768),
        "Q8_0": (64, 1088),
        "Q2_K": (256, 1344),
        "Q3_K": (256, 1792),
        "Q4_K": (256, 2304),
        "Q5_K": (256, 2816),
        "Q6_K": (256, 3392),
        "IQ4_NL": (64, 576),
        "IQ4_XS": (256, 2176),
        "MXFP4": (128, 1088),
    }
)
"""Columns and bytes of the smallest piece of a 16-row panel (``csrc/cpu/quant_types.h``); float types have none."""

_BLOCK_TENSOR = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(.+)\Z")
_BLOCK_NAMES = frozenset(
    {
        "attn_norm.weight",
        "attn_norm.bias",
        "attn_q.weight",
        "attn_q.bias",
        "attn_k.weight",
        "attn_k.bias",
        "attn_v.weight",
        "attn_v.bias",
        "attn_output.weight",
        "attn_output.bias",
        "attn_q_norm.weight",
        "attn_k_norm.weight",
        "post_attention_norm.weight",
        "ffn_norm.weight",
        "ffn_norm.bias",
        "ffn_gate.weight",
        "ffn_gate.bias",
        "ffn_up.weight",
        "ffn_up.bias",
        "ffn_down.weight",
        "ffn_down.bias",
        "post_ffw_norm.weight",
        "ffn_gate_inp.weight",
        "ffn_gate_exps.weight",
        "ffn_up_exps.weight",
        "ffn_down_exps.weight",
        "attn_output_norm.weight",
        "attn_output_norm.bias",
        "layer_output_norm.weight",
        "layer_output_norm.bias",
    }
)
_INPUT_NAMES = frozenset(
    {
        "token_embd.weight",
        "position_embd.weight",
        "token_types.weight",
        "token_embd_norm.weight",
        "token_embd_norm.bias",
        "rope_freqs.weight",
    }
)
_OUTPUT_NAMES = frozenset({"output.weight", "output.bias", "output_norm.weight", "output_norm.bias"})

Storage = Literal["raw", "vector", "matrix"]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as it will lie in memory.

    ``raw`` keeps the file's bytes (rows are dequantized when looked up), ``vector`` is float32, ``matrix`` is
    packed in panels of 16 rows, once per expert. ``nbytes`` is a multiple of 64.
    """

    name: str
    source: TensorInfo
    layer: int
    storage: Storage
    type: GGMLType
    rows: int
    cols: int
    num_matrices: int
    nbytes: int


def stored_type(source: GGMLType) -> GGMLType:
    """The type in which the kernels hold a matrix of type ``source``."""
    return source if source.name in NATIVE_TYPES else BY_NAME["BF16"]


def packed_bytes(type_: GGMLType, rows: int, cols: int) -> int:
    """Bytes of a packed matrix of a native type: whole panels of 16 rows, each of whole units or cache lines."""
    panels = -(-rows // ROWS_PER_PANEL)
    unit = PANEL_UNITS.get(type_.name)
    if unit is None:
        return panels * aligned(ROWS_PER_PANEL * row_bytes(type_, cols))
    columns, nbytes = unit
    return panels * -(-cols // columns) * nbytes


def stored_tensors(gguf: GGUFFile, spec: ModelSpec) -> tuple[StoredTensor, ...]:
    """Every tensor of the file with its place, and the duplicate of a tied embedding.

    Raises:
        ModelError: a tensor that this engine does not know. Leaving it out would give wrong answers silently.
    """
    stored = tuple(_stored(info, _layer(info.name, spec)) for info in gguf.tensors.values())
    if "output.weight" in gguf.tensors or not spec.is_causal:
        return stored
    embedding = gguf.tensors["token_embd.weight"]
    return (*stored, _stored(embedding, spec.num_layers, name="output.weight"))


def _layer(name: str, spec: ModelSpec) -> int:
    if name in _INPUT_NAMES:
        return INPUT
    if name in _OUTPUT_NAMES:
        return spec.num_layers
    match = _BLOCK_TENSOR.match(name)
    if match is None or match[2] not in _BLOCK_NAMES:
        raise ModelError(f"tensor {name!r} is not known for architecture {spec.architecture!r}")
    if int(match[1]) >= spec.num_layers:
        raise ModelError(f"tensor {name!r} lies past the last of {spec.num_layers} layers")
    return int(match[1])


def _stored(info: TensorInfo, layer: int, name: str | None = None) -> StoredTensor:
    cols, *more = info.shape
    rows = more[0] if more else 1
    count = more[1] if len(more) > 1 else 1
    if len(more) > 2:
        raise ModelError(f"tensor {info.name!r} has {len(info.shape)} dimensions; at most 3 are allowed")
    type_ = stored_type(info.type)
    if len(info.shape) == 1:
        storage: Storage = "vector"
        nbytes = aligned(4 * cols)
    elif layer == INPUT:
        storage = "raw"
        nbytes = aligned(rows * count * row_bytes(type_, cols))
    else:
        storage = "matrix"
        nbytes = count * packed_bytes(type_, rows, cols)
    return StoredTensor(name or info.name, info, layer, storage, type_, rows, cols, count, nbytes)


def converted_tensors(gguf: GGUFFile, spec: ModelSpec) -> tuple[StoredTensor, ...]:
    """Matrices that take more room in memory than in the file, because their type becomes BF16."""
    return tuple(t for t in stored_tensors(gguf, spec) if t.storage != "vector" and t.type != t.source.type)


def aligned(nbytes: int) -> int:
    """The next multiple of 64: where the next tensor may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
