"""Feed-forward part of one layer: gated, plain, or a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from runner.kernels import Kernels
from runner.model.spec import Activation, ModelSpec
from runner.model.step import Float32Array, Step, Views
from runner.model.weights import LayerWeights, Matrix


class FeedForward(Protocol):
    def __call__(self, step: Step, views: Views) -> None:
        """Fills ``views.delta`` from ``views.normed``."""
        ...


def feed_forward(spec: ModelSpec, layer: LayerWeights) -> FeedForward:
    """The feed-forward part that the layer's tensors describe."""
    if layer.get("ffn_gate_inp.weight") is not None:
        return Experts(spec, layer)
    return Plain(spec, layer) if spec.facts.activation == "gelu" else Gated(spec, layer)


_GATES: dict[Activation, Callable[[Kernels], Callable[[Float32Array, Float32Array, Float32Array], None]]] = {
    "swiglu": lambda kernels: kernels.swiglu,
    "geglu": lambda kernels: kernels.geglu,
}


class Gated:
    """down(activation(gate(x)) · up(x))."""

    def __init__(self, spec: ModelSpec, layer: LayerWeights) -> None:
        width, hidden = spec.embedding_length, spec.feed_forward_length
        self._matrices = (layer.matrix("ffn_gate.weight", hidden, width), layer.matrix("ffn_up.weight", hidden, width))
        self._biases = (layer.vector("ffn_gate.bias", hidden), layer.vector("ffn_up.bias", hidden))
        self._down = (layer.matrix("ffn_down.weight", width, hidden),)
        self._down_bias = (layer.vector("ffn_down.bias", width),)
        self._gate = _GATES[spec.facts.activation]

    def __call__(self, step: Step, views: Views) -> None:
        kernels = step.kernels
        kernels.linear(views.normed, self._matrices, (views.gate, views.up), self._biases)
        self._gate(kernels)(views.gate, views.up, views.gate)
        kernels.linear(views.gate, self._down, (views.delta,), self._down_bias)


class Plain:
    """down(gelu(up(x)))."""

    def __init__(self, spec: ModelSpec, layer: LayerWeights) -> None:
        width, hidden = spec.embedding_length, spec.feed_forward_length
        self._up = (layer.matrix("ffn_up.weight", hidden, width),)
        self._up_bias = (layer.vector("ffn_up.bias", hidden),)
        self._down = (layer.matrix("ffn_down.weight", width, hidden),)
        self._down_bias = (layer.vector("ffn_down.bias", width),)

    def __call__(self, step: Step, views: Views) -> None:
        kernels = step.kernels
        kernels.linear(views.normed, self._up, (views.up,), self._up_bias)
        kernels.gelu(views.up, views.up)
        kernels.linear(views.up, self._down, (views.delta,), self._down_bias)


class Experts:
    """A router picks experts for each token; their outputs are summed by weight.

    Weights are the softmax over all experts, renormalized over the chosen ones (Mixtral). Experts are visited in
    ascending order, so the sum of a token does not depend on the other tokens of the batch.
    """

    def __init__(self, spec: ModelSpec, layer: LayerWeights) -> None:
        self._router = (layer.matrix("ffn_gate_inp.weight", spec.num_experts, spec.embedding_length),)
        self._gates: tuple[Matrix, ...] = layer.need("ffn_gate_exps.weight")
        self._ups: tuple[Matrix, ...] = layer.need("ffn_up_exps.weight")
        self._downs: tuple[Matrix, ...] = layer.need("ffn_down_exps.weight")
        self._num_used = spec.num_experts_used
        self._gate = _GATES[spec.facts.activation]

    def __call__(self, step: Step, views: Views) -> None:
        num_tokens = len(views.normed)
        logits = views.buffers["router"][:num_tokens]
        step.kernels.linear(views.normed, self._router, (logits,))
        chosen, weights = route(logits, self._num_used)
        views.delta[:] = 0
        for expert in np.unique(chosen):
            tokens, places = np.nonzero(chosen == expert)
            views.delta[tokens] += weights[tokens, places, None] * self._one(step, views, int(expert), tokens)

    def _one(self, step: Step, views: Views, expert: int, tokens: np.ndarray) -> Float32Array:
        """Output of one expert for some tokens."""
        kernels = step.kernels
        count = tokens.size
        x = views.buffers["expert_input"][:count]
        y = views.buffers["expert_output"][:count]
        gate, up = views.gate[:count], views.up[:count]
        np.take(views.normed, tokens, axis=0, out=x)
        kernels.linear(x, (self._gates[expert], self._ups[expert]), (gate, up))
        self._gate(kernels)(gate, up, gate)
        kernels.linear(gate, (self._downs[expert],), (y,))
        return y


def route(logits: Float32Array, num_used: int) -> tuple[np.ndarray, Float32Array]:
    """Chosen experts (T, num_used), best first, ties to the lower number, and their weights, which sum to 1."""
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :num_used]
    scores = np.take_along_axis(logits, chosen, axis=1)
    weights = np.exp(scores - scores[:, :1])
    return chosen, weights / weights.sum(axis=1, keepdims=True)
