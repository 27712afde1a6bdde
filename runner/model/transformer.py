"""The forward pass: tokens of a batch to logits, or to the hidden states that embeddings are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq

import numpy as np

from runner.cache.layer import CacheLayer
from runner.kernels import Kernels
from runner.model.attention import Attention
from runner.model.ffn import feed_forward
from runner.model.ops import RotaryTable
from runner.model.spec import ModelSpec, NormPlacement
from runner.model.stage import Hidden, Layer, Place, stages
from runner.model.step import Float32Array, Step, Views, Visibility
from runner.model.weights import LayerWeights, RawRows, Weights
from runner.sequence import Batch, Int32Array


class Transformer:
    """A loaded model. One forward pass at a time; results are views of buffers that the next pass overwrites.

    ``places`` says where each layer lies, the output layer last; ``host`` is the CPU, where tokens become vectors.
    """

    def __init__(
        self, spec: ModelSpec, weights: Weights, cache: Seq[CacheLayer], host: Place, places: Seq[Place]
    ) -> None:
        self.spec = spec
        self._host = host
        layer_kind = _LAYERS[spec.facts.placement]
        layers = [layer_kind(spec, weights.layer(i), i, cache[i] if cache else None) for i in range(spec.num_layers)]
        self._stages = stages(layers, places[:-1])
        factors = weights.get("rope_freqs.weight")
        self._rotary = RotaryTable(spec.rope, factors)
        self._sliding_rotary = RotaryTable(spec.sliding_rope, factors) if spec.sliding_window else self._rotary
        self._embedding = Embedding(spec, weights)
        self._head = places[-1]
        self._output = (weights.need("output.weight"),) if spec.is_causal else ()
        self._output_norm = weights.get("output_norm.weight")

    @property
    def max_tokens(self) -> int:
        """Tokens that one batch may have."""
        return len(self._host.buffers["residual"])

    def forward(self, batch: Batch) -> Float32Array:
        """Logits of the rows that ``batch.outputs`` names, shape (num_outputs, num_vocab).

        Stores keys and values of every row. Raises ValueError if the batch or its outputs exceed the buffers.
        """
        buffers, kernels = self._head.buffers, self._head.kernels
        self._check(batch, len(buffers["logits"]))
        num_outputs = batch.outputs.size
        hidden = self._run(batch, batch.outputs)
        logits = buffers["logits"][:num_outputs]
        if num_outputs:
            normed = buffers["outputs"][:num_outputs]
            kernels.rms_norm(hidden, self._output_norm, self.spec.norm_epsilon, normed)
            kernels.linear(normed, self._output, (logits,))
            if self.spec.final_softcap:
                cap = np.float32(self.spec.final_softcap)
                np.tanh(np.divide(logits, cap, out=logits), out=logits)
                logits *= cap
        return logits

    def embed(self, batch: Batch) -> list[Float32Array]:
        """The hidden states of each segment of the batch, (tokens, embedding_length): views, until the next pass."""
        self._check(batch, batch.outputs.size)
        hidden = self._run(batch, np.arange(batch.num_tokens, dtype=np.int32))
        if self._output_norm is not None:
            self._head.kernels.rms_norm(hidden, self._output_norm, self.spec.norm_epsilon, hidden)
        return [hidden[segment.start : segment.stop] for segment in batch.segments]

    def shifted_by(self, distance: int) -> Callable[[CacheLayer, Int32Array], None]:
        """What turns the keys in some cells of a layer to positions that lie ``distance`` later."""
        kernels, is_neox = self._host.kernels, self.spec.rope.layout == "neox"
        turns = {False: self._rotary.turn(distance), True: self._sliding_rotary.turn(distance)}

        def turn(layer: CacheLayer, cells: Int32Array) -> None:
            kernels.shift_keys(layer.keys, cells, turns[layer.is_sliding], is_neox, layer.is_rotated)

        return turn

    def _check(self, batch: Batch, max_outputs: int) -> None:
        if not 0 < batch.num_tokens <= self.max_tokens:
            raise ValueError(f"a batch has {batch.num_tokens} tokens; allowed are 1 to {self.max_tokens}")
        if batch.outputs.size > max_outputs:
            raise ValueError(f"a batch asks for {batch.outputs.size} rows of logits; allowed are {max_outputs}")

    def _run(self, batch: Batch, outputs: Int32Array) -> Float32Array:
        """Hidden states of the rows in ``outputs`` after the last layer, before the output norm, on the head's device.

        Rows that are not wanted leave the pass in the last layer, as soon as their keys and values are stored.
        """
        hidden = Hidden(self._host, Views(self._host.buffers, self.spec, batch.num_tokens))
        full, sliding = self._visibility(batch)
        self._embedding(self._host.kernels, batch, hidden.views)
        only = outputs if outputs.size < batch.num_tokens else None
        last = self._stages[-1].layers[-1]
        for stage in self._stages:
            hidden.move_to(stage.place, self.spec)
            step = Step(stage.place.kernels, full, sliding)
            for layer in stage.layers:
                hidden.is_pending = layer(step, hidden.views, hidden.is_pending, only if layer is last else None)
        if only is not None:
            hidden.narrow(only, self.spec)
        hidden.settle()
        hidden.move_to(self._head, self.spec)
        return hidden.views.residual

    def _visibility(self, batch: Batch) -> tuple[Visibility, Visibility]:
        """What full and what sliding layers see."""
        spec = self.spec
        if not spec.is_causal:
            own = np.arange(batch.num_tokens, dtype=np.int32)
            everything = Visibility(batch.bidirectional_rows(), self._rotated(self._rotary, batch), own, own)
            return everything, everything
        full = Visibility(batch.causal_rows(0), self._rotated(self._rotary, batch), batch.cells, batch.own(batch.cells))
        if not spec.sliding_window:
            return full, full
        sliding = Visibility(
            batch.causal_rows(spec.sliding_window),
            self._rotated(self._sliding_rotary, batch),
            batch.sliding_cells,
            batch.own(batch.sliding_cells),
        )
        return full, sliding

    def _rotated(self, table: RotaryTable, batch: Batch) -> Float32Array | None:
        return table(batch.positions) if self.spec.rope.layout != "none" else None


class Embedding:
    """Token embeddings, plus positions, token types and a norm where the file has them."""

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self._spec = spec
        self._tokens = weights.need("token_embd.weight")
        self._positions = weights.get("position_embd.weight")
        self._types = weights.get("token_types.weight")
        self._norm = weights.get("token_embd_norm.weight")
        self._norm_bias = weights.get("token_embd_norm.bias")

    def __call__(self, kernels: Kernels, batch: Batch, views: Views) -> None:
        """Fills ``views.residual``."""
        tokens = self._tokens
        kernels.embed(
            tokens.type_id, tokens.data, tokens.cols, batch.tokens, views.residual, self._spec.embedding_scale
        )
        if self._positions is not None:
            self._add(kernels, views, self._positions, batch.positions)
        if self._types is not None:
            self._add(kernels, views, self._types, np.zeros(batch.num_tokens, np.int32))
        if self._norm is not None:
            kernels.layer_norm(views.residual, self._norm, self._norm_bias, self._spec.norm_epsilon, views.residual)

    @staticmethod
    def _add(kernels: Kernels, views: Views, table: RawRows, ids: Int32Array) -> None:
        kernels.embed(table.type_id, table.data, table.cols, ids, views.delta, 1.0)
        kernels.add(views.residual, views.delta)


class PreNormLayer:
    """x += attention(norm(x)); x += ffn(norm(x)). Sandwich norms, where present, act on what is added.

    The addition is left to the next norm, which does both in one pass over the residual.
    """

    def __init__(self, spec: ModelSpec, layer: LayerWeights, index: int, cache: CacheLayer | None) -> None:
        width = spec.embedding_length
        self._spec = spec
        self._attention = Attention(spec, layer, index, cache)
        self._ffn = feed_forward(spec, layer)
        self._attn_norm = layer.vector("attn_norm.weight", width)
        self._ffn_norm = layer.vector("ffn_norm.weight", width)
        self._post_attention_norm = layer.vector("post_attention_norm.weight", width)
        self._post_ffw_norm = layer.vector("post_ffw_norm.weight", width)

    def __call__(self, step: Step, views: Views, is_pending: bool, only: Int32Array | None) -> bool:
        kernels, epsilon = step.kernels, self._spec.norm_epsilon
        if is_pending:
            kernels.add_rms_norm(views.residual, views.delta, self._attn_norm, epsilon, views.normed)
        else:
            kernels.rms_norm(views.residual, self._attn_norm, epsilon, views.normed)
        self._attention.project(step, views)
        if only is not None:
            if not only.size:
                return False
            kept = views.residual[only]
            views = Views(views.buffers, self._spec, only.size)
            views.residual[:] = kept
        self._attention.attend(step, views, only)
        if self._post_attention_norm is not None:
            kernels.rms_norm(views.delta, self._post_attention_norm, epsilon, views.delta)
        kernels.add_rms_norm(views.residual, views.delta, self._ffn_norm, epsilon, views.normed)
        self._ffn(step, views)
        if self._post_ffw_norm is not None:
            kernels.rms_norm(views.delta, self._post_ffw_norm, epsilon, views.delta)
        return True


class PostNormLayer:
    """x = norm(x + attention(x)); x = norm(x + ffn(x)), with layer norms (BERT)."""

    def __init__(self, spec: ModelSpec, layer: LayerWeights, index: int, cache: CacheLayer | None) -> None:
        width = spec.embedding_length
        self._spec = spec
        self._attention = Attention(spec, layer, index, cache)
        self._ffn = feed_forward(spec, layer)
        self._norms = tuple(
            (layer.need(f"{name}.weight"), layer.vector(f"{name}.bias", width))
            for name in ("attn_output_norm", "layer_output_norm")
        )

    def __call__(self, step: Step, views: Views, is_pending: bool, only: Int32Array | None) -> bool:
        """Runs the layer on all rows; nothing is left to be added."""
        views.normed[:] = views.residual
        self._attention.project(step, views)
        self._attention.attend(step, views, None)
        self._join(step, views, *self._norms[0])
        views.normed[:] = views.residual
        self._ffn(step, views)
        self._join(step, views, *self._norms[1])
        return False

    def _join(self, step: Step, views: Views, weight: Float32Array, bias: Float32Array | None) -> None:
        step.kernels.add(views.residual, views.delta)
        step.kernels.layer_norm(views.residual, weight, bias, self._spec.norm_epsilon, views.residual)


_LAYERS: Mapping[NormPlacement, Callable[[ModelSpec, LayerWeights, int, CacheLayer | None], Layer]] = {
    "pre": PreNormLayer,
    "sandwich": PreNormLayer,
    "post": PostNormLayer,
}
