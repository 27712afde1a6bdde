"""Attention of one layer: projections, query/key norms, rotation, cache, scores."""

from __future__ import annotations

import numpy as np

from runner.cache.layer import CacheLayer
from runner.kernels import CacheTensor, Kernels
from runner.model.spec import ModelSpec
from runner.model.step import Float32Array, Step, Views, Visibility
from runner.model.weights import LayerWeights
from runner.sequence import Int32Array


class Attention:
    """Grouped-query attention. Without a cache layer, keys and values are those of the batch itself."""

    def __init__(self, spec: ModelSpec, layer: LayerWeights, index: int, cache: CacheLayer | None) -> None:
        queries = spec.num_heads * spec.key_length
        keys = spec.num_kv_heads * spec.key_length
        values = spec.num_kv_heads * spec.value_length
        width = spec.embedding_length
        self._matrices = (
            layer.matrix("attn_q.weight", queries, width),
            layer.matrix("attn_k.weight", keys, width),
            layer.matrix("attn_v.weight", values, width),
        )
        self._biases = (
            layer.vector("attn_q.bias", queries),
            layer.vector("attn_k.bias", keys),
            layer.vector("attn_v.bias", values),
        )
        self._q_norm = layer.vector("attn_q_norm.weight", spec.key_length)
        self._k_norm = layer.vector("attn_k_norm.weight", spec.key_length)
        self._output = (layer.matrix("attn_output.weight", width, spec.num_heads * spec.value_length),)
        self._output_bias = (layer.vector("attn_output.bias", width),)
        self._is_sliding = bool(spec.window(index))
        self._is_neox = spec.rope.layout == "neox"
        self._scale = spec.attention_scale
        self._epsilon = spec.norm_epsilon
        self._key_length = spec.key_length
        self._cache = cache
        self._is_rotated = cache is not None and cache.is_rotated

    def project(self, step: Step, views: Views) -> None:
        """Queries, keys and values of ``views.normed``; keys and values go to the cache."""
        kernels = step.kernels
        kernels.linear(views.normed, self._matrices, (views.query, views.key, views.value), self._biases)
        if self._q_norm is not None:
            per_head = views.query.reshape(-1, self._key_length)
            kernels.rms_norm(per_head, self._q_norm, self._epsilon, per_head)
        if self._k_norm is not None:
            per_head = views.key.reshape(-1, self._key_length)
            kernels.rms_norm(per_head, self._k_norm, self._epsilon, per_head)
        seen = self._visibility(step)
        if seen.rotary is not None:
            kernels.rope(views.query_heads, seen.rotary, self._is_neox)
            kernels.rope(views.key_heads, seen.rotary, self._is_neox)
        if self._is_rotated:
            kernels.hadamard(views.query_heads)
            kernels.hadamard(views.key_heads)
        if self._cache is not None:
            kernels.store_kv(views.key_heads, views.value_heads, self._cache.keys, self._cache.values, seen.slots)

    def attend(self, step: Step, views: Views, only: Int32Array | None) -> None:
        """Fills ``views.attended`` and ``views.delta``.

        ``only`` selects the rows to compute; they become the first rows of both buffers, of which ``views`` must
        then hold ``only.size``.
        """
        seen = self._visibility(step)
        rows, query = seen.rows, views.query_heads
        if only is not None:
            rows = rows[only]
            query = views.buffers["query"].reshape(len(views.buffers["query"]), *query.shape[1:])[only]
        keys, values = self._stored(step, views)
        step.kernels.attention(query, keys, values, seen.cells, rows, self._scale, 0.0, views.attended_heads)
        step.kernels.linear(views.attended, self._output, (views.delta,), self._output_bias)

    def _visibility(self, step: Step) -> Visibility:
        return step.sliding if self._is_sliding else step.full

    def _stored(self, step: Step, views: Views) -> tuple[CacheTensor, CacheTensor]:
        if self._cache is not None:
            return self._cache.keys, self._cache.values
        return _own_cells(step.kernels, views.key_heads), _own_cells(step.kernels, views.value_heads)


def _own_cells(kernels: Kernels, heads: Float32Array) -> CacheTensor:
    """The batch's own rows (T, KH, D) as cells."""
    _, num_heads, length = heads.shape
    return kernels.cache("f32", num_heads, length, heads.reshape(-1).view(np.uint8))
