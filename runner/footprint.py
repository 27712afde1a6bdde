"""What a model takes on each device, to the byte, from its GGUF header alone.

One set of pure functions serves the estimate (before a runner exists), the runner's fit, and the allocation
itself, so the three cannot differ. Nothing here touches a tensor's data or imports a kernel.

Placement: ``token_embd``, ``position_embd``, ``token_types`` and their norm are input weights and stay on the
CPU in the file's own format; ``blk.N.*`` belongs to layer N; ``output*`` belongs to the output layer, index
``num_layers``. A model without ``output.weight`` (tied embeddings) holds a second, packed copy of
``token_embd`` there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from runner.cache_types import cache_row_bytes
from runner.ggml_types import BY_NAME, GGMLType, row_bytes
from runner.gguf import GGUFFile, TensorInfo
from runner.model.spec import ModelError, ModelSpec, read_spec
from runner.protocol import DeviceMemory, Layout, LoadRequest, Memory

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
        return panels * _aligned(ROWS_PER_PANEL * row_bytes(type_, cols))
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
        nbytes = _aligned(4 * cols)
    elif layer == INPUT:
        storage = "raw"
        nbytes = _aligned(rows * count * row_bytes(type_, cols))
    else:
        storage = "matrix"
        nbytes = count * packed_bytes(type_, rows, cols)
    return StoredTensor(name or info.name, info, layer, storage, type_, rows, cols, count, nbytes)


# ---- cache and graph -----------------------------------------------------------------------------


def cells_per_sequence(spec: ModelSpec, request: LoadRequest, layer: int) -> int:
    """Token positions that one sequence can hold in ``layer``.

    A sliding layer holds a ring: its window, and the batch that is stored before the window moves on. None are
    needed where attention is bidirectional.
    """
    if not spec.is_causal:
        return 0
    window = spec.window(layer)
    return min(request.num_ctx, window + request.num_batch) if window else request.num_ctx


def cache_bytes(spec: ModelSpec, request: LoadRequest, layer: int) -> tuple[int, int]:
    """Bytes of one layer's keys and of its values.

    Raises:
        ModelError: the model's heads cannot be stored in a type that the request asks for.
    """
    cells = cells_per_sequence(spec, request, layer) * request.num_parallel
    if not cells:
        return 0, 0
    try:
        keys = cache_row_bytes(request.key_cache_type, spec.num_kv_heads, spec.key_length)
        values = cache_row_bytes(request.value_cache_type, spec.num_kv_heads, spec.value_length)
    except ValueError as error:
        raise ModelError(str(error)) from error
    return _aligned(cells * keys), _aligned(cells * values)


def batch_tokens(spec: ModelSpec, request: LoadRequest) -> int:
    """Tokens of the largest forward pass: a bidirectional model sees a whole input at once."""
    return max(request.num_batch, request.num_parallel) if spec.is_causal else max(request.num_batch, request.num_ctx)


@dataclass(frozen=True, slots=True)
class Workspace:
    """Float32 buffers of one forward pass on one device, as (name, rows, columns)."""

    shapes: tuple[tuple[str, int, int], ...]

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        return iter(self.shapes)

    @property
    def nbytes(self) -> int:
        return sum(_aligned(4 * rows * cols) for _, rows, cols in self.shapes)


def workspace(spec: ModelSpec, request: LoadRequest, *, has_layers: bool, has_output: bool) -> Workspace:
    """The buffers that a device needs for the worst batch.

    Every device that takes part has the hidden states; those with layers also what layers compute, the one with the
    output layer also the logits.
    """
    tokens = batch_tokens(spec, request)
    layer_tokens = tokens if has_layers else 0
    experts = layer_tokens if spec.num_experts else 0
    outputs = request.num_parallel if spec.is_causal and has_output else 0
    return Workspace(
        (
            ("residual", tokens, spec.embedding_length),
            ("delta", tokens, spec.embedding_length),
            ("normed", layer_tokens, spec.embedding_length),
            ("query", layer_tokens, spec.num_heads * spec.key_length),
            ("key", layer_tokens, spec.num_kv_heads * spec.key_length),
            ("value", layer_tokens, spec.num_kv_heads * spec.value_length),
            ("attended", layer_tokens, spec.num_heads * spec.value_length),
            ("gate", layer_tokens, spec.feed_forward_length),
            ("up", layer_tokens, spec.feed_forward_length),
            ("router", experts, spec.num_experts),
            ("expert_input", experts, spec.embedding_length),
            ("expert_output", experts, spec.embedding_length),
            ("outputs", outputs, spec.embedding_length),
            ("logits", outputs, spec.num_vocab),
        )
    )


# ---- all of it, by device ------------------------------------------------------------------------


class DeviceName(NamedTuple):
    """What identifies a device, here and on the wire."""

    id: str
    library: str


CPU = DeviceName("cpu", "cpu")


def places(spec: ModelSpec, layout: Layout) -> tuple[DeviceName, ...]:
    """The device of every layer, the output layer last.

    Raises:
        ModelError: a layer is out of range or named twice.
    """
    chosen = [CPU] * (spec.num_layers + 1)
    for share in layout:
        for layer in share.layers:
            if not 0 <= layer <= spec.num_layers:
                raise ModelError(f"the layout names layer {layer}; there are 0 to {spec.num_layers}")
            if chosen[layer] != CPU:
                raise ModelError(f"the layout names layer {layer} on {chosen[layer].id} and on {share.id}")
            chosen[layer] = DeviceName(share.id, share.library)
    return tuple(chosen)


def device_workspace(spec: ModelSpec, request: LoadRequest, device: DeviceName) -> Workspace:
    """The buffers that ``device`` needs under the request's layout: none if it takes no part."""
    return _workspace_on(spec, request, device, places(spec, request.layout))


def _workspace_on(
    spec: ModelSpec, request: LoadRequest, device: DeviceName, chosen: tuple[DeviceName, ...]
) -> Workspace:
    *layers, output = chosen
    if device not in (CPU, output, *layers):
        return Workspace(())
    return workspace(spec, request, has_layers=device in layers, has_output=device == output)


@dataclass(frozen=True, slots=True)
class Outline:
    """All of a file's header that its footprint depends on: small enough to be kept when the file is closed."""

    spec: ModelSpec
    input_weights: int
    layer_weights: tuple[int, ...]  # bytes, the output layer last


def outline(gguf: GGUFFile) -> Outline:
    """Raises ModelError: the file is not a model that can run."""
    spec = read_spec(gguf)
    input_weights = 0
    layer_weights = [0] * (spec.num_layers + 1)
    for tensor in stored_tensors(gguf, spec):
        if tensor.layer == INPUT:
            input_weights += tensor.nbytes
        else:
            layer_weights[tensor.layer] += tensor.nbytes
    return Outline(spec, input_weights, tuple(layer_weights))


def footprint(gguf: GGUFFile, request: LoadRequest, devices: Sequence[DeviceName] = ()) -> Memory:
    """What loading ``gguf`` as ``request`` says takes on each device.

    ``devices`` are those beside the CPU; each has an entry in the result, whether the layout uses it or not.

    Raises:
        ModelError: the file is not a model that can run, or the layout or the type of the KV cache is not one for this
            model and these devices.
    """
    return footprint_of(outline(gguf), request, devices)


def footprint_of(model: Outline, request: LoadRequest, devices: Sequence[DeviceName] = ()) -> Memory:
    """``footprint`` of a file that was read before.

    Raises ModelError for a layout that cannot be, and for a KV cache type that the model's heads do not allow."""
    spec = model.spec
    chosen = places(spec, request.layout)
    unknown = {device.id for device in chosen} - {device.id for device in (CPU, *devices)}
    if unknown:
        raise ModelError(f"the layout names {min(unknown)}; there are cpu, {', '.join(d.id for d in devices)}")
    cache_by_window = {
        spec.window(layer): sum(cache_bytes(spec, request, layer)) for layer in _one_layer_of_each_window(spec)
    }
    layer_cache = (*(cache_by_window[spec.window(layer)] for layer in range(spec.num_layers)), 0)
    cpu, *others = (
        DeviceMemory(
            id=device.id,
            library=device.library,
            weights=_where(chosen, device, model.layer_weights),
            cache=_where(chosen, device, layer_cache),
            graph=_workspace_on(spec, request, device, chosen).nbytes,
        )
        for device in (CPU, *devices)
    )
    return Memory(input_weights=model.input_weights, cpu=cpu, gpus=tuple(others))


def _one_layer_of_each_window(spec: ModelSpec) -> Iterator[int]:
    return iter({spec.window(layer): layer for layer in range(spec.num_layers)}.values())


def _where(chosen: tuple[DeviceName, ...], device: DeviceName, layer_bytes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n if place == device else 0 for place, n in zip(chosen, layer_bytes, strict=True))


def converted_tensors(gguf: GGUFFile, spec: ModelSpec) -> tuple[StoredTensor, ...]:
    """Matrices that take more room in memory than in the file, because their type becomes BF16."""
    return tuple(t for t in stored_tensors(gguf, spec) if t.storage != "vector" and t.type != t.source.type)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
