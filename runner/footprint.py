"""What a model takes on each device, to the byte, from its GGUF header alone.

One set of pure functions serves the estimate (before a runner exists), the runner's fit, and the allocation
itself, so the three cannot differ. Nothing here touches a tensor's data or imports a kernel. Weights are those of
``runner.tensor_storage``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from runner.cache_types import cache_row_bytes
from runner.gguf import GGUFFile
from runner.model.spec import ModelError, ModelSpec, read_spec
from runner.protocol import DeviceMemory, Layout, LoadRequest, Memory
from runner.tensor_storage import INPUT, aligned, stored_tensors

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
        CacheTypeError: the model's heads cannot be stored in a type that the request asks for.
    """
    cells = cells_per_sequence(spec, request, layer) * request.num_parallel
    if not cells:
        return 0, 0
    keys = cache_row_bytes(request.key_cache_type, spec.num_kv_heads, spec.key_length)
    values = cache_row_bytes(request.value_cache_type, spec.num_kv_heads, spec.value_length)
    return aligned(cells * keys), aligned(cells * values)


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
        return sum(aligned(4 * rows * cols) for _, rows, cols in self.shapes)


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
        CacheTypeError: the model's heads cannot be stored so.
        ModelError: the file is not a model that can run, or the layout is not one for this
            model and these devices.
    """
    return footprint_of(outline(gguf), request, devices)


def footprint_of(model: Outline, request: LoadRequest, devices: Sequence[DeviceName] = ()) -> Memory:
    """``footprint`` of a file that was read before.

    Raises ModelError for a layout that cannot be, CacheTypeError for a type that the model's heads do not allow."""
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
