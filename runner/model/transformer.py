"""The forward pass: tokens of a batch to logits, or to one embedding per sequence."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from runner.kernels import Kernels
from runner.kv_cache import CacheLayer
from runner.model.attention import Attention
from runner.model.ffn import feed_forward
from runner.model.ops import RotaryTable, pool
from runner.model.spec import ModelSpec
from runner.model.step import Buffers, Float32Array, Step, Views, Visibility
from runner.model.weights import LayerWeights, Weights
from runner.sequence import Batch, Int32Array


class Transformer:
    """A loaded model. One forward pass at a time; results are views of buffers that the next pass overwrites."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, cache: Seq[CacheLayer], buffers: Buffers, kernels: Kernels
    ) -> None:
        self.spec = spec
        self._weights = weights
        self._buffers = buffers
        self._kernels = kernels
        self._layers = tuple(
            _LAYERS[spec.facts.placement](spec, weights.layer(i), i, cache[i] if cache else None)
            for i in range(spec.num_layers)
        )
        factors = weights.get("rope_freqs.weight")
        self._rotary = RotaryTable(spec.rope, factors)
        self._sliding_rotary = RotaryTable(spec.sliding_rope, factors) if spec.sliding_window else self._rotary
        self._embedding = Embedding(spec, weights)
        self._output = (weights.need("output.weight"),) if spec.is_causal else ()
        self._output_norm = weights.get("output_norm.weight")

    @property
    def max_tokens(self) -> int:
        """Tokens that one batch may have."""
        return len(self._buffers["residual"])

    def forward(self, batch: Batch) -> Float32Array:
        """Logits of the rows that ``batch.outputs`` names, shape (num_outputs, num_vocab).

        Stores keys and values of every row. Raises ValueError if the batch or its outputs exceed the buffers.
        """
        self._check(batch, len(self._buffers["logits"]))
        num_outputs = batch.outputs.size
        hidden = self._run(batch, batch.outputs)
        logits = self._buffers["logits"][:num_outputs]
        if num_outputs:
            normed = self._buffers["outputs"][:num_outputs]
            self._kernels.rms_norm(hidden, self._output_norm, self.spec.norm_epsilon, normed)
            self._kernels.linear(normed, self._output, (logits,))
            if self.spec.final_softcap:
                cap = np.float32(self.spec.final_softcap)
                np.tanh(np.divide(logits, cap, out=logits), out=logits)
                logits *= cap
        return logits

    def embed(self, batch: Batch) -> Float32Array:
        """One pooled vector per sequence of the batch, not normalized, shape (num_sequences, embedding_length)."""
        self._check(batch, batch.outputs.size)
        hidden = self._run(batch, np.arange(batch.num_tokens, dtype=np.int32))
        if self._output_norm is not None:
            self._kernels.rms_norm(hidden, self._output_norm, self.spec.norm_epsilon, hidden)
        return np.stack([pool(hidden[s.start : s.stop], self.spec.pooling or "mean") for s in batch.segments])

    def _check(self, batch: Batch, max_outputs: int) -> None:
        if not 0 < batch.num_tokens <= self.max_tokens:
            raise ValueError(f"a batch has {batch.num_tokens} tokens; allowed are 1 to {self.max_tokens}")
        if batch.outputs.size > max_outputs:
            raise ValueError(f"a batch asks for {batch.outputs.size} rows of logits; allowed are {max_outputs}")

    def _run(self, batch: Batch, outputs: Int32Array) -> Float32Array:
        """Hidden states of the rows in ``outputs`` after the last layer, before the output norm."""
        step = self._step(batch)
        views = Views(self._buffers, self.spec, batch.num_tokens)
        self._embedding(step, batch, views)
        is_pending = False  # whether views.delta still has to be added to views.residual
        for layer in self._layers[:-1]:
            is_pending = layer(step, views, is_pending, None)
        only = outputs if outputs.size < batch.num_tokens else None
        last = self._layers[-1]
        is_pending = last(step, views, is_pending, only)
        views = views if only is None else Views(self._buffers, self.spec, outputs.size)
        if is_pending and outputs.size:
            self._kernels.add(views.residual, views.delta)
        return views.residual

    def _step(self, batch: Batch) -> Step:
        spec = self.spec
        if not spec.is_causal:
            own = np.arange(batch.num_tokens, dtype=np.int32)
            everything = Visibility(batch.bidirectional_rows(), self._rotated(self._rotary, batch), own, own)
            return Step(self._kernels, everything, everything)
        full = sliding = Visibility(
            batch.causal_rows(0), self._rotated(self._rotary, batch), batch.cells, batch.own(batch.cells)
        )
        if spec.sliding_window:
            sliding = Visibility(
                batch.causal_rows(spec.sliding_window),
                self._rotated(self._sliding_rotary, batch),
                batch.sliding_cells,
                batch.own(batch.sliding_cells),
            )
        return Step(self._kernels, full, sliding)

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

    def __call__(self, step: Step, batch: Batch, views: Views) -> None:
        """Fills ``views.residual``."""
        kernels = step.kernels
        tokens = self._tokens
        kernels.embed(
            tokens.type_id, tokens.data, tokens.cols, batch.tokens, views.residual, self._spec.embedding_scale
        )
        if self._positions is not None:
            self._add(step, views, self._positions, batch.positions)
        if self._types is not None:
            self._add(step, views, self._types, np.zeros(batch.num_tokens, np.int32))
        if self._norm is not None:
            kernels.layer_norm(views.residual, self._norm, self._norm_bias, self._spec.norm_epsilon, views.residual)

    @staticmethod
    def _add(step: Step, views: Views, table: object, ids: Int32Array) -> None:
        step.kernels.embed(table.type_id, table.data, table.cols, ids, views.delta, 1.0)  # type: ignore[attr-defined]
        step.kernels.add(views.residual, views.delta)


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
        """Runs the layer; returns whether ``views.delta`` is still to be added to ``views.residual``.

        ``only`` restricts what follows the keys and values to some rows, which become the buffers' first rows.
        """
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


_LAYERS = {"pre": PreNormLayer, "sandwich": PreNormLayer, "post": PostNormLayer}
