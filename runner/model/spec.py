"""Model facts: one frozen value read from GGUF metadata, one table row per architecture.

Architectures are rows of facts, not classes. Whatever the file states itself (a bias exists, experts exist,
query and key are normalized) is read from the file, not tabulated.

Sources: GGUF key names and default values follow llama.cpp's converter and its hyper-parameter loading
(``src/llama-arch.cpp``, ``src/models/*``); the meaning of each fact follows the models' own publications.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from runner.gguf import GGUFFile

NormKind = Literal["rms", "layer"]
NormPlacement = Literal["pre", "sandwich", "post"]
RopeLayout = Literal["none", "adjacent", "neox"]
Activation = Literal["swiglu", "geglu", "gelu"]
Pooling = Literal["mean", "cls", "last"]

MAX_LAYERS = 4096
MAX_DIMENSION = 1 << 24
MAX_HEADS = 1 << 16
MAX_HEAD_LENGTH = 8192
MAX_EXPERTS = 1 << 16
MAX_TOKENS = 1 << 40


class ModelError(ValueError):
    """The file is a valid GGUF file, but not a model that can run. Says what was found and what is allowed."""


class UnknownArchitectureError(ModelError):
    """``general.architecture`` names an architecture without a row in the table."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of every model of one architecture and is not stated in its files."""

    norm: NormKind = "rms"
    placement: NormPlacement = "pre"
    rope: RopeLayout = "neox"
    activation: Activation = "swiglu"
    is_causal: bool = True
    scales_embedding: bool = False  # by sqrt(embedding_length)
    sliding_pattern: int = 0  # every n-th layer is full, the others see the window; 0: all layers are full
    default_pooling: Pooling | None = None


ARCHITECTURES: Mapping[str, Facts] = MappingProxyType(
    {
        "llama": Facts(rope="adjacent"),
        "qwen2": Facts(),
        "qwen3": Facts(),
        "gemma3": Facts(placement="sandwich", activation="geglu", scales_embedding=True, sliding_pattern=6),
        "bert": Facts(
            norm="layer", placement="post", rope="none", activation="gelu", is_causal=False, default_pooling="mean"
        ),
    }
)

POOLING_BY_NUMBER: Mapping[int, Pooling | None] = MappingProxyType({0: None, 1: "mean", 2: "cls", 3: "last"})


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """How positions become angles. ``factor`` divides positions; YaRN blends per frequency."""

    layout: RopeLayout
    num_dims: int
    base: float
    scaling: Literal["none", "linear", "yarn"] = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything the engine needs to know of a model beside its tensors. Lengths are counts of values."""

    architecture: str
    facts: Facts
    num_layers: int
    context_length: int
    embedding_length: int
    feed_forward_length: int
    num_vocab: int
    num_heads: int
    num_kv_heads: int
    key_length: int
    value_length: int
    norm_epsilon: float
    attention_scale: float
    rope: RopeSpec
    sliding_rope: RopeSpec
    sliding_window: int  # tokens a sliding layer sees, itself included; 0: none
    sliding_layers: tuple[bool, ...]
    num_experts: int
    num_experts_used: int
    final_softcap: float
    pooling: Pooling | None
    parameter_count: int

    @property
    def embedding_scale(self) -> float:
        return math.sqrt(self.embedding_length) if self.facts.scales_embedding else 1.0

    @property
    def is_causal(self) -> bool:
        return self.facts.is_causal

    @property
    def can_shift(self) -> bool:
        """Whether keys can be turned to other positions: all that a layer knows of a position is how it is rotated."""
        return self.is_causal and self.rope.layout != "none"

    def window(self, layer: int) -> int:
        """Tokens that ``layer`` sees, itself included; 0 means all."""
        return self.sliding_window if self.sliding_layers[layer] else 0


class _Keys:
    """Typed, checked access to the metadata under one architecture's prefix."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata = metadata
        self._prefix = architecture

    def integer(self, key: str, default: int | None = None, *, low: int = 0, high: int = MAX_DIMENSION) -> int:
        name = f"{self._prefix}.{key}"
        value = self._metadata.get(name, default)
        if isinstance(value, np.ndarray):
            value = self._uniform(name, value)
        if value is None:
            raise ModelError(f"{name} is missing")
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ModelError(f"{name} is {value!r}; an integer is needed")
        if not low <= value <= high:
            raise ModelError(f"{name} is {value}; allowed are {low} to {high}")
        return int(value)

    @staticmethod
    def _uniform(name: str, values: np.ndarray) -> int:
        if values.size == 0 or (values != values[0]).any():
            raise ModelError(f"{name} differs between layers; only equal values are supported")
        return int(values[0])

    def number(self, key: str, default: float | None = None) -> float:
        name = f"{self._prefix}.{key}"
        value = self._metadata.get(name, default)
        if value is None:
            raise ModelError(f"{name} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise ModelError(f"{name} is {value!r}; a finite number is needed")
        return float(value)

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"{self._prefix}.{key}", default)


def read_spec(gguf: GGUFFile) -> ModelSpec:
    """The facts of the model in ``gguf``.

    Raises:
        UnknownArchitectureError: the architecture has no row; the message lists the known ones.
        ModelError: a key is missing, of the wrong type, or out of range.
    """
    facts = _facts(gguf.architecture)
    keys = _Keys(gguf.metadata, gguf.architecture)
    embedding_length, num_vocab = _embedding(gguf, keys)
    num_layers = keys.integer("block_count", low=1, high=MAX_LAYERS)
    heads = _heads(keys, embedding_length)
    sliding_window, sliding_layers = _sliding(keys, facts, num_layers)
    num_experts = keys.integer("expert_count", 0, high=MAX_EXPERTS)
    return ModelSpec(
        architecture=gguf.architecture,
        facts=facts,
        num_layers=num_layers,
        context_length=keys.integer("context_length", low=1, high=MAX_TOKENS),
        embedding_length=embedding_length,
        feed_forward_length=keys.integer("feed_forward_length", low=1),
        num_vocab=num_vocab,
        num_heads=heads.num,
        num_kv_heads=heads.num_kv,
        key_length=heads.key_length,
        value_length=heads.value_length,
        norm_epsilon=_epsilon(keys, facts),
        attention_scale=_attention_scale(keys, gguf.architecture, num_layers, heads),
        rope=_rope(keys, facts, heads.key_length),
        sliding_rope=_sliding_rope(keys, facts, heads.key_length),
        sliding_window=sliding_window,
        sliding_layers=sliding_layers,
        num_experts=num_experts,
        num_experts_used=_experts_used(keys, num_experts),
        final_softcap=keys.number("final_logit_softcapping", 0.0),
        pooling=_pooling(keys, facts),
        parameter_count=sum(math.prod(t.shape) for t in gguf.tensors.values()),
    )


def _facts(architecture: str) -> Facts:
    facts = ARCHITECTURES.get(architecture)
    if facts is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnknownArchitectureError(f"architecture {architecture!r} is not known; known are: {known}")
    return facts


def _embedding(gguf: GGUFFile, keys: _Keys) -> tuple[int, int]:
    """The length of a token's row, and how many tokens there are."""
    tensor = gguf.tensors.get("token_embd.weight")
    if tensor is None or len(tensor.shape) != 2:
        raise ModelError("token_embd.weight is missing or not a matrix")
    length = keys.integer("embedding_length", low=1)
    if tensor.shape[0] != length:
        raise ModelError(f"token_embd.weight has rows of {tensor.shape[0]}; embedding_length is {length}")
    return length, int(tensor.shape[1])


@dataclass(frozen=True, slots=True)
class _Heads:
    num: int
    num_kv: int
    share: int  # of the embedding; how long a head is unless the file says otherwise
    key_length: int
    value_length: int


def _heads(keys: _Keys, embedding_length: int) -> _Heads:
    num = keys.integer("attention.head_count", low=1, high=MAX_HEADS)
    num_kv = keys.integer("attention.head_count_kv", num, low=1, high=MAX_HEADS)
    if num % num_kv:
        raise ModelError(f"{num} heads cannot share {num_kv} key/value heads evenly")
    share = embedding_length // num
    return _Heads(
        num=num,
        num_kv=num_kv,
        share=share,
        key_length=keys.integer("attention.key_length", share, low=1, high=MAX_HEAD_LENGTH),
        value_length=keys.integer("attention.value_length", share, low=1, high=MAX_HEAD_LENGTH),
    )


def _experts_used(keys: _Keys, num_experts: int) -> int:
    return keys.integer("expert_used_count", low=1, high=num_experts) if num_experts else 0


def _epsilon(keys: _Keys, facts: Facts) -> float:
    key = "attention.layer_norm_rms_epsilon" if facts.norm == "rms" else "attention.layer_norm_epsilon"
    return keys.number(key)


def _attention_scale(keys: _Keys, architecture: str, num_layers: int, heads: _Heads) -> float:
    # The 27B Gemma 3 (62 layers) scales by its embedding share of a head (168), not by the head's length (128).
    per_head = heads.share if architecture == "gemma3" and num_layers == 62 else heads.key_length
    return keys.number("attention.scale", 0.0) or 1.0 / math.sqrt(per_head)


def _sliding(keys: _Keys, facts: Facts, num_layers: int) -> tuple[int, tuple[bool, ...]]:
    window = keys.integer("attention.sliding_window", 0, high=MAX_TOKENS) if facts.sliding_pattern else 0
    if not window:
        return 0, (False,) * num_layers
    pattern = keys.get("attention.sliding_window_pattern", facts.sliding_pattern)
    if isinstance(pattern, np.ndarray):
        if pattern.size < num_layers:
            raise ModelError(f"sliding_window_pattern has {pattern.size} entries for {num_layers} layers")
        return window, tuple(bool(p) for p in pattern[:num_layers])
    period = int(pattern)
    return window, tuple(period > 1 and layer % period < period - 1 for layer in range(num_layers))


def _rope(keys: _Keys, facts: Facts, key_length: int) -> RopeSpec:
    num_dims = keys.integer("rope.dimension_count", key_length, low=0, high=key_length)
    if num_dims % 2:
        raise ModelError(f"rope.dimension_count is {num_dims}; an even number is needed")
    scaling = keys.get("rope.scaling.type", "none")
    factor = keys.number("rope.scaling.factor", 0.0) or keys.number("rope.scale_linear", 0.0) or 1.0
    if scaling == "none" and factor != 1.0 and keys.get("rope.scaling.type") is None:
        scaling = "linear"  # files from before the type was written
    if scaling not in ("none", "linear", "yarn"):
        raise ModelError(f"rope.scaling.type is {scaling!r}; supported are none, linear, yarn")
    if factor <= 0:
        raise ModelError(f"rope.scaling.factor is {factor}; a positive number is needed")
    base = keys.number("rope.freq_base", 10000.0)
    if base <= 1:
        raise ModelError(f"rope.freq_base is {base}; a number above 1 is needed")
    return RopeSpec(
        layout=facts.rope,
        num_dims=num_dims,
        base=base,
        scaling=scaling,
        factor=factor if scaling != "none" else 1.0,
        original_context=keys.integer("rope.scaling.original_context_length", 0, high=MAX_TOKENS)
        or keys.integer("context_length", low=1, high=MAX_TOKENS),
        attention_factor=keys.number("rope.scaling.attn_factor", 1.0),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
    )


def _sliding_rope(keys: _Keys, facts: Facts, key_length: int) -> RopeSpec:
    """Sliding layers of Gemma 3 keep the short-context base and are never scaled."""
    return RopeSpec(
        layout=facts.rope,
        num_dims=keys.integer("rope.dimension_count", key_length, low=0, high=key_length),
        base=keys.number("rope.freq_base_swa", 10000.0),
    )


def _pooling(keys: _Keys, facts: Facts) -> Pooling | None:
    number = keys.get("pooling_type")
    if number is None:
        return facts.default_pooling
    if int(number) not in POOLING_BY_NUMBER:
        raise ModelError(f"pooling_type is {number}; supported are 0 (none), 1 (mean), 2 (cls), 3 (last)")
    return POOLING_BY_NUMBER[int(number)]
