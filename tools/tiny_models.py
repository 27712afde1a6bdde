"""Tiny random models of every architecture that Shale runs, with a vocabulary each, as GGUF files for tests.

    python tools/tiny_models.py qwen3 OUT.gguf --type Q8_0
    write_tiny_model(path, "llama", "Q4_K", num_layers=1)

Tensor names and metadata keys are those that llama.cpp's converter writes. The same arguments give the same file.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, without an installation

from runner.ggml_types import BY_NAME
from tools.gguf_writer import Tensor, write_gguf, write_split_gguf
from tools.make_gguf import llama3_rope_factors
from tools.random_blocks import RANDOM_TYPES, random_tensor
from tools.vocabularies import (
    chatml_vocabulary,
    gemma_vocabulary,
    llama3_vocabulary,
    spm_vocabulary,
    wordpiece_vocabulary,
)

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
_POOLING = {"mean": 1, "cls": 2, "last": 3}
_MIN_WIDTH = 64


@dataclass(frozen=True)
class TinyModel:
    """What a tiny model is made of. Widths of 0 follow from the block size of the matrix type."""

    architecture: str
    vocabulary: Callable[[int], dict[str, Any]]
    num_vocab: int = 512
    num_layers: int = 2
    context_length: int = 512
    embedding_length: int = 0  # 0: the block size of the type, at least 64
    feed_forward_length: int = 0  # 0: twice embedding_length
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 0  # 0: embedding_length / num_heads
    is_tied: bool = False
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    has_post_norms: bool = False
    num_experts: int = 0
    num_experts_used: int = 2
    rms_epsilon: float = 1e-6
    rope_base: float = 10000.0
    rope_factor: float = 0.0  # > 0: rope_freqs for a context this many times the original one
    rope_scaling: tuple[str, float] | None = None  # ("linear" | "yarn", factor)
    sliding_window: int = 0
    rope_base_swa: float = 0.0
    pooling: str | None = None
    seed: int = 0


TINY_MODELS: Mapping[str, TinyModel] = {
    "llama": TinyModel("llama", llama3_vocabulary),
    "llama-tied": TinyModel("llama", spm_vocabulary, is_tied=True, num_kv_heads=4),
    "llama-rope-llama3": TinyModel("llama", llama3_vocabulary, rope_base=5e5, rope_factor=8.0),
    "llama-yarn": TinyModel("llama", llama3_vocabulary, rope_scaling=("yarn", 4.0)),
    "llama-linear": TinyModel("llama", llama3_vocabulary, rope_scaling=("linear", 4.0)),
    "mixtral": TinyModel("llama", spm_vocabulary, rope_base=1e6, rms_epsilon=1e-5, num_experts=4),
    "qwen2": TinyModel("qwen2", chatml_vocabulary, rope_base=1e6, is_tied=True, has_qkv_bias=True),
    "qwen3": TinyModel("qwen3", chatml_vocabulary, rope_base=1e6, is_tied=True, has_qk_norm=True, head_dim=32),
    "gemma3": TinyModel(
        "gemma3",
        gemma_vocabulary,
        num_layers=7,  # five that slide, one that does not, and one more
        head_dim=32,
        is_tied=True,
        has_qk_norm=True,
        has_post_norms=True,
        rope_base=1e6,
        rope_base_swa=1e4,
        sliding_window=16,
    ),
    "bert": TinyModel("bert", wordpiece_vocabulary, num_kv_heads=4, pooling="mean"),
    "bert-cls": TinyModel("bert", wordpiece_vocabulary, num_kv_heads=4, pooling="cls"),
}


def write_tiny_model(path: str | Path, architecture: str, type_name: str = "F16", **changes: Any) -> Path:
    """Writes a tiny model and returns its path.

    ``architecture`` names a row of ``TINY_MODELS``; ``type_name`` is the type of its matrices (vectors are F32), one of
    ``RANDOM_TYPES``; ``changes`` are fields of ``TinyModel``. Raises KeyError for an unknown row, TypeError for an
    unknown field, ValueError for widths that are not whole blocks.
    """
    model = _sized(TINY_MODELS[architecture], type_name, changes)
    return write_gguf(path, metadata(model, type_name), list(tensors(model, type_name)))


def write_tiny_split(
    path: str | Path, architecture: str, type_name: str = "F16", *, num_shards: int = 3, **changes: Any
) -> list[Path]:
    """The same as a split set beside ``path``; returns the paths of its files."""
    model = _sized(TINY_MODELS[architecture], type_name, changes)
    return write_split_gguf(path, metadata(model, type_name), list(tensors(model, type_name)), num_shards=num_shards)


def _sized(model: TinyModel, type_name: str, changes: Mapping[str, Any]) -> TinyModel:
    model = replace(model, **changes)
    width = model.embedding_length or max(_MIN_WIDTH, BY_NAME[type_name].block_size)
    return replace(
        model,
        embedding_length=width,
        feed_forward_length=model.feed_forward_length or 2 * width,
        head_dim=max(model.head_dim, width // model.num_heads) if "head_dim" not in changes else model.head_dim,
    )


def metadata(model: TinyModel, type_name: str) -> dict[str, Any]:
    """The metadata of a model whose widths are set."""
    facts = {**_sizes(model), **(_bert_facts(model) if model.architecture == "bert" else _decoder_facts(model))}
    return {
        "general.architecture": model.architecture,
        "general.type": "model",
        "general.name": f"tiny {model.architecture}",
        **{f"{model.architecture}.{key}": value for key, value in facts.items()},
        "general.file_type": _FILE_TYPES.get(type_name, 1),
        "general.quantization_version": 2,
        **model.vocabulary(model.num_vocab),
    }


def _sizes(model: TinyModel) -> dict[str, Any]:
    return {
        "block_count": model.num_layers,
        "context_length": model.context_length,
        "embedding_length": model.embedding_length,
        "feed_forward_length": model.feed_forward_length,
        "attention.head_count": model.num_heads,
    }


def _bert_facts(model: TinyModel) -> dict[str, Any]:
    return {
        "attention.layer_norm_epsilon": 1e-12,
        "attention.causal": False,
        "pooling_type": _POOLING[model.pooling or "mean"],
    }


def _decoder_facts(model: TinyModel) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "attention.head_count_kv": model.num_kv_heads,
        "rope.freq_base": model.rope_base,
        "attention.layer_norm_rms_epsilon": model.rms_epsilon,
        "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim,
    }
    if model.architecture == "llama":
        facts |= {"vocab_size": model.num_vocab, "rope.dimension_count": model.head_dim}
    if model.num_experts:
        facts |= {"expert_count": model.num_experts, "expert_used_count": model.num_experts_used}
    if model.sliding_window:
        facts |= {"attention.sliding_window": model.sliding_window, "rope.freq_base_swa": model.rope_base_swa}
    if model.rope_scaling is not None:
        kind, factor = model.rope_scaling
        facts |= {"rope.scaling.type": kind, "rope.scaling.factor": factor}
        if kind == "yarn":
            facts["rope.scaling.original_context_length"] = int(model.context_length / factor)
    if model.pooling is not None:
        facts["pooling_type"] = _POOLING[model.pooling]
    return facts


class _Maker:
    """Makes random tensors; each has a random stream of its own, so leaving one out changes no other."""

    def __init__(self, model: TinyModel, type_name: str) -> None:
        self._seed = model.seed
        self._type_name = type_name

    def matrix(self, name: str, *shape: int, type_name: str | None = None) -> Tensor:
        """A matrix of the model's type with values of about 1 / sqrt(columns)."""
        chosen = type_name or self._type_name
        return Tensor(name, chosen, shape, random_tensor(chosen, shape, self._rng(name), 1.2 * shape[0] ** -0.5))

    def vector(self, name: str, size: int, mean: float = 0.0, std: float = 0.2) -> Tensor:
        values = (mean + std * self._rng(name).standard_normal(size)).astype(np.float32)
        return Tensor(name, "F32", (size,), values)

    def norm(self, name: str, size: int) -> Tensor:
        return self.vector(name, size, mean=1.0, std=0.1)

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, zlib.crc32(name.encode())])


def tensors(model: TinyModel, type_name: str) -> Iterator[Tensor]:
    """The tensors of a model whose widths are set, in the order of the file."""
    make = _Maker(model, type_name)
    layer = _bert_layer if model.architecture == "bert" else _decoder_layer
    yield from (_bert_ends if model.architecture == "bert" else _decoder_ends)(model, make)
    for index in range(model.num_layers):
        yield from layer(model, make, f"blk.{index}.")


def _decoder_ends(model: TinyModel, make: _Maker) -> Iterator[Tensor]:
    width = model.embedding_length
    if not model.is_tied:
        yield make.matrix("output.weight", width, model.num_vocab)
    yield make.norm("output_norm.weight", width)
    if model.rope_factor:
        factors = llama3_rope_factors(
            model.head_dim, model.rope_base, model.rope_factor, int(model.context_length / model.rope_factor)
        )
        yield Tensor("rope_freqs.weight", "F32", (len(factors),), factors)
    yield make.matrix("token_embd.weight", width, model.num_vocab)


def _decoder_layer(model: TinyModel, make: _Maker, prefix: str) -> Iterator[Tensor]:
    width, heads = model.embedding_length, model.num_heads * model.head_dim
    kv = model.num_kv_heads * model.head_dim
    yield make.norm(prefix + "attn_norm.weight", width)
    for letter, size in (("q", heads), ("k", kv), ("v", kv)):
        yield make.matrix(f"{prefix}attn_{letter}.weight", width, size)
        if model.has_qkv_bias:
            yield make.vector(f"{prefix}attn_{letter}.bias", size)
    yield make.matrix(prefix + "attn_output.weight", heads, width)
    if model.has_qk_norm:
        yield make.norm(prefix + "attn_q_norm.weight", model.head_dim)
        yield make.norm(prefix + "attn_k_norm.weight", model.head_dim)
    if model.has_post_norms:
        yield make.norm(prefix + "post_attention_norm.weight", width)
        yield make.norm(prefix + "post_ffw_norm.weight", width)
    yield make.norm(prefix + "ffn_norm.weight", width)
    yield from _experts(model, make, prefix) if model.num_experts else _feed_forward(model, make, prefix)


def _feed_forward(model: TinyModel, make: _Maker, prefix: str) -> Iterator[Tensor]:
    width, hidden = model.embedding_length, model.feed_forward_length
    yield make.matrix(prefix + "ffn_gate.weight", width, hidden)
    yield make.matrix(prefix + "ffn_up.weight", width, hidden)
    yield make.matrix(prefix + "ffn_down.weight", hidden, width)


def _experts(model: TinyModel, make: _Maker, prefix: str) -> Iterator[Tensor]:
    width, hidden, count = model.embedding_length, model.feed_forward_length, model.num_experts
    yield make.matrix(prefix + "ffn_gate_inp.weight", width, count, type_name="F32")
    yield make.matrix(prefix + "ffn_gate_exps.weight", width, hidden, count)
    yield make.matrix(prefix + "ffn_up_exps.weight", width, hidden, count)
    yield make.matrix(prefix + "ffn_down_exps.weight", hidden, width, count)


def _bert_ends(model: TinyModel, make: _Maker) -> Iterator[Tensor]:
    width = model.embedding_length
    yield make.matrix("position_embd.weight", width, model.context_length, type_name="F32")
    yield make.matrix("token_embd.weight", width, model.num_vocab)
    yield from _layer_norm(make, "token_embd_norm", width)
    yield make.matrix("token_types.weight", width, 2, type_name="F32")


def _bert_layer(model: TinyModel, make: _Maker, prefix: str) -> Iterator[Tensor]:
    width, hidden = model.embedding_length, model.feed_forward_length
    heads = model.num_heads * model.head_dim
    sizes = {
        "attn_q": (width, heads),
        "attn_k": (width, heads),
        "attn_v": (width, heads),
        "attn_output": (heads, width),
        "ffn_up": (width, hidden),
        "ffn_down": (hidden, width),
    }
    for name, (num_columns, num_rows) in sizes.items():
        yield make.matrix(f"{prefix}{name}.weight", num_columns, num_rows)
        yield make.vector(f"{prefix}{name}.bias", num_rows)
    yield from _layer_norm(make, prefix + "attn_output_norm", width)
    yield from _layer_norm(make, prefix + "layer_output_norm", width)


def _layer_norm(make: _Maker, name: str, size: int) -> Iterator[Tensor]:
    yield make.norm(name + ".weight", size)
    yield make.vector(name + ".bias", size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=TINY_MODELS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--type", default="F16", choices=sorted(RANDOM_TYPES), help="type of the matrices")
    arguments = parser.parse_args()
    print(write_tiny_model(arguments.path, arguments.architecture, arguments.type))


if __name__ == "__main__":
    main()
