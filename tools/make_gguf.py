"""Writes GGUF files of random weights with the shapes of real models, for benchmarks.

    python tools/make_gguf.py llama-1b q4_k_m OUT.gguf
    python tools/make_gguf.py llama-70b q4_k_m OUT.gguf --header-only

The same arguments give the same file. A synthetic vocabulary and a chat template are inside, so a server can serve it.
With ``--header-only`` the tensors are a hole in the file, for whoever plans memory and reads no weights.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, without an installation

from tools.gguf_writer import Tensor, write_gguf
from tools.random_blocks import Bytes, block_chunks, quantize
from tools.vocabularies import chatml_vocabulary, llama3_vocabulary, wordpiece_vocabulary

_POOL_BYTES = 64 << 20
_FLOAT_TYPES = ("F32", "F16")
_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """The facts of a real model that decide the size and the order of its work."""

    architecture: str
    num_vocab: int
    num_layers: int
    embedding_length: int
    feed_forward_length: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    rope_base: float
    rms_epsilon: float
    vocabulary: Callable[[int], dict[str, Any]]
    is_tied: bool
    rope_factor: float | None = None  # Llama 3's long-context scaling, stored as the tensor rope_freqs
    has_qk_norm: bool = False
    experts: tuple[int, int] = (0, 0)  # in all, and used for a token; feed_forward_length is that of one
    pooling: int = 0  # of embedding models, llama.cpp's number: 1 mean, 2 first token


SHAPES: Mapping[str, Shape] = {
    "llama-1b": Shape(
        "llama", 128256, 16, 2048, 8192, 32, 8, 64, 131072, 5e5, 1e-5, llama3_vocabulary, True, rope_factor=32.0
    ),
    "llama-8b": Shape(
        "llama", 128256, 32, 4096, 14336, 32, 8, 128, 131072, 5e5, 1e-5, llama3_vocabulary, False, rope_factor=8.0
    ),
    "llama-70b": Shape(
        "llama", 128256, 80, 8192, 28672, 64, 8, 128, 131072, 5e5, 1e-5, llama3_vocabulary, False, rope_factor=8.0
    ),
    # The sizes of Qwen3-30B-A3B under Mixtral's tensor names.
    "llama-30b-a3b": Shape(
        "llama", 151936, 48, 2048, 768, 32, 4, 128, 40960, 1e6, 1e-6, chatml_vocabulary, False, experts=(128, 8)
    ),
    "qwen3-0.6b": Shape(
        "qwen3", 151936, 28, 1024, 3072, 16, 8, 128, 40960, 1e6, 1e-6, chatml_vocabulary, True, has_qk_norm=True
    ),
    "minilm-l6": Shape("bert", 30522, 6, 384, 1536, 12, 12, 32, 512, 0, 1e-12, wordpiece_vocabulary, True, pooling=1),
    "bge-small": Shape("bert", 30522, 12, 384, 1536, 12, 12, 32, 512, 0, 1e-12, wordpiece_vocabulary, True, pooling=2),
}


@dataclass(frozen=True)
class Recipe:
    """Which type each matrix gets. ``more`` is for attn_v and ffn_down of the layers that deserve more bits."""

    file_type: int  # llama.cpp's number, general.file_type
    base: str
    output: str
    more: str


RECIPES: Mapping[str, Recipe] = {
    "q4_k_m": Recipe(15, "Q4_K", "Q6_K", "Q6_K"),
    "q4_0": Recipe(2, "Q4_0", "Q6_K", "Q4_0"),
    "q8_0": Recipe(7, "Q8_0", "Q8_0", "Q8_0"),
    "q6_k": Recipe(18, "Q6_K", "Q6_K", "Q6_K"),
    "f16": Recipe(1, "F16", "F16", "F16"),
}


def write_model(path: Path, shape: Shape, recipe: Recipe, *, header_only: bool = False) -> Path:
    """Writes the file and returns its path."""
    pool = None if header_only else np.random.default_rng(1).integers(0, 256, _POOL_BYTES, np.uint8)
    return write_gguf(path, _metadata(shape, recipe), _tensors(shape, recipe, _Maker(pool)))


def _metadata(shape: Shape, recipe: Recipe) -> dict[str, Any]:
    facts = {
        "block_count": shape.num_layers,
        "context_length": shape.context_length,
        "embedding_length": shape.embedding_length,
        "feed_forward_length": shape.feed_forward_length,
        "attention.head_count": shape.num_heads,
        **(_embedding_facts(shape) if shape.pooling else _decoder_facts(shape)),
    }
    return {
        "general.architecture": shape.architecture,
        "general.type": "model",
        "general.name": "random weights",
        **{f"{shape.architecture}.{key}": value for key, value in facts.items()},
        "general.file_type": recipe.file_type,
        "general.quantization_version": 2,
        **shape.vocabulary(shape.num_vocab),
    }


def _embedding_facts(shape: Shape) -> dict[str, Any]:
    return {
        "attention.layer_norm_epsilon": shape.rms_epsilon,
        "attention.causal": False,
        "pooling_type": shape.pooling,
    }


def _decoder_facts(shape: Shape) -> dict[str, Any]:
    facts = {
        "attention.head_count_kv": shape.num_kv_heads,
        "rope.freq_base": shape.rope_base,
        "attention.layer_norm_rms_epsilon": shape.rms_epsilon,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "rope.dimension_count": shape.head_dim,
        "vocab_size": shape.num_vocab,
    }
    if any(shape.experts):
        facts |= dict(zip(("expert_count", "expert_used_count"), shape.experts, strict=True))
    return facts


@dataclass(frozen=True)
class _Maker:
    """``pool`` is where the random bytes come from; without one the tensors have no data."""

    pool: Bytes | None

    def matrix(self, name: str, type_name: str, *size: int) -> Tensor:
        seed = zlib.crc32(name.encode())
        if self.pool is None:
            return Tensor(name, type_name, size, None)
        if type_name in _FLOAT_TYPES:  # random bytes are no floats to compute with
            values = np.random.default_rng(seed).standard_normal(size[::-1], np.float32) * np.float32(_STD)
            return Tensor(name, type_name, size, quantize(type_name, values))
        return Tensor(name, type_name, size, partial(block_chunks, type_name, size, self.pool, seed, _STD))

    def constant(self, name: str, size: int, value: float = 1.0) -> Tensor:
        return Tensor(name, "F32", (size,), np.full(size, value, np.float32))


def _tensors(shape: Shape, recipe: Recipe, make: _Maker) -> list[Tensor]:
    return (_embedding_tensors if shape.pooling else _decoder_tensors)(shape, recipe, make)


def _decoder_tensors(shape: Shape, recipe: Recipe, make: _Maker) -> list[Tensor]:
    width, heads, kv = shape.embedding_length, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    hidden, matrix, ones = shape.feed_forward_length, make.matrix, make.constant

    tensors = [matrix("token_embd.weight", recipe.output, width, shape.num_vocab), ones("output_norm.weight", width)]
    if not shape.is_tied:
        tensors.append(matrix("output.weight", recipe.output, width, shape.num_vocab))
    if shape.rope_factor is not None:
        factors = llama3_rope_factors(shape.head_dim, shape.rope_base, shape.rope_factor, 8192)
        tensors.append(Tensor("rope_freqs.weight", "F32", (len(factors),), factors))
    for layer in range(shape.num_layers):
        more = recipe.more if has_more_bits(layer, shape.num_layers) else recipe.base
        prefix = f"blk.{layer}."
        tensors += [ones(prefix + "attn_norm.weight", width), ones(prefix + "ffn_norm.weight", width)]
        if shape.has_qk_norm:
            tensors += [ones(prefix + f"attn_{x}_norm.weight", shape.head_dim) for x in "qk"]
        tensors += [
            matrix(prefix + "attn_q.weight", recipe.base, width, heads),
            matrix(prefix + "attn_k.weight", recipe.base, width, kv),
            matrix(prefix + "attn_v.weight", more, width, kv),
            matrix(prefix + "attn_output.weight", recipe.base, heads, width),
        ]
        experts, ending = (shape.experts[:1], "_exps.weight") if any(shape.experts) else ((), ".weight")
        if experts:
            tensors.append(matrix(prefix + "ffn_gate_inp.weight", "F32", width, *experts))
        tensors += [
            matrix(prefix + "ffn_gate" + ending, recipe.base, width, hidden, *experts),
            matrix(prefix + "ffn_up" + ending, recipe.base, width, hidden, *experts),
            matrix(prefix + "ffn_down" + ending, more, hidden, width, *experts),
        ]
    return tensors


def _embedding_tensors(shape: Shape, recipe: Recipe, make: _Maker) -> list[Tensor]:
    """BERT's: norms after each part, and a bias for each matrix."""
    width, hidden = shape.embedding_length, shape.feed_forward_length

    def norm(name: str) -> list[Tensor]:
        return [make.constant(name + ".weight", width), make.constant(name + ".bias", width, 0.0)]

    tensors = [
        make.matrix("token_embd.weight", recipe.output, width, shape.num_vocab),
        make.matrix("position_embd.weight", "F32", width, shape.context_length),
        make.matrix("token_types.weight", "F32", width, 2),
        *norm("token_embd_norm"),
    ]
    sizes = {f"attn_{x}": (width, width) for x in ("q", "k", "v", "output")}
    sizes |= {"ffn_up": (width, hidden), "ffn_down": (hidden, width)}
    for layer in range(shape.num_layers):
        for name, size in sizes.items():
            tensors.append(make.matrix(f"blk.{layer}.{name}.weight", recipe.base, *size))
            tensors.append(make.constant(f"blk.{layer}.{name}.bias", size[1], 0.0))
        tensors += [*norm(f"blk.{layer}.attn_output_norm"), *norm(f"blk.{layer}.layer_output_norm")]
    return tensors


def has_more_bits(layer: int, num_layers: int) -> bool:
    """Whether llama.cpp's Q4_K_M gives attn_v and ffn_down Q6_K: first and last eighth, every third between."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def llama3_rope_factors(
    head_dim: int, base: float, factor: float, original_length: int, low: float = 1.0, high: float = 4.0
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(head_dim / 2,) divisors of the rotary frequencies, as Llama 3.1 scales them: 1 for short waves.

    ``low`` and ``high``: how many waves fit into the original context where the scaling is full, and where it ends.
    """
    waves = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original_length / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--header-only", action="store_true", help="leave a hole where the weights would be")
    arguments = parser.parse_args()
    shape, recipe = SHAPES[arguments.shape], RECIPES[arguments.recipe]
    write_model(arguments.path, shape, recipe, header_only=arguments.header_only)
    print(f"{arguments.path}: {arguments.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
