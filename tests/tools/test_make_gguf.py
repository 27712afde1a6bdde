"""Benchmark files: the shapes of the real models, and what is inside."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runner.gguf import open_gguf
from runner.model.spec import read_spec
from tools.make_gguf import RECIPES, SHAPES, llama3_rope_factors, write_model

_NUM_PARAMETERS = {  # of the published models, whose shapes these are
    "llama-1b": 1_235_814_400,
    "llama-8b": 8_030_261_248,
    "qwen3-0.6b": 596_049_920,
    "llama-30b-a3b": 30_532_122_624 - 48 * 2 * 128,  # without the norms of queries and keys
    "minilm-l6": 22_713_216 - 384 * 385,  # without the layer for whole texts, which no file has
    "bge-small": 33_360_000 - 384 * 385,
}


@pytest.mark.parametrize("name", _NUM_PARAMETERS)
def test_a_shape_has_the_parameters_of_the_real_model(tmp_path: Path, name: str) -> None:
    shape = replace(SHAPES[name], vocabulary=lambda size: {})
    with open_gguf(write_model(tmp_path / "m.gguf", shape, RECIPES["q8_0"], header_only=True)) as file:
        sizes = {key: int(np.prod(info.shape)) for key, info in file.tensors.items() if key != "rope_freqs.weight"}
        assert sum(sizes.values()) == _NUM_PARAMETERS[name]


@pytest.mark.parametrize(
    ("recipe", "down", "embedding"), [("q4_k_m", "Q6_K", "Q6_K"), ("q4_0", "Q4_0", "Q6_K"), ("q8_0", "Q8_0", "Q8_0")]
)
def test_a_small_one_is_whole_and_the_same_each_time(tmp_path: Path, recipe: str, down: str, embedding: str) -> None:
    shape = replace(
        SHAPES["qwen3-0.6b"], num_vocab=600, num_layers=2, embedding_length=256, feed_forward_length=512, num_heads=2
    )
    paths = [write_model(tmp_path / f"{i}.gguf", shape, RECIPES[recipe]) for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with open_gguf(paths[0]) as file:
        assert file.architecture == "qwen3"
        assert len(file.metadata["tokenizer.ggml.tokens"]) == file.tensors["token_embd.weight"].shape[1] == 600
        assert file.tensors["token_embd.weight"].type.name == embedding
        assert file.tensors["blk.1.ffn_down.weight"].type.name == down
        assert file.tensors["blk.1.attn_q_norm.weight"].shape == (128,)
        assert file.metadata["general.file_type"] == RECIPES[recipe].file_type
        assert all(file.data(name).any() for name in file.tensors)


@pytest.mark.parametrize(("name", "pooling"), [("minilm-l6", "mean"), ("bge-small", "cls")])
def test_an_embedding_model_is_one(tmp_path: Path, name: str, pooling: str) -> None:
    shape = replace(SHAPES[name], num_vocab=600, num_layers=1, embedding_length=96, feed_forward_length=128)
    with open_gguf(write_model(tmp_path / "m.gguf", shape, RECIPES["f16"])) as file:
        spec = read_spec(file)
        assert (spec.pooling, spec.is_causal, spec.num_heads) == (pooling, False, 12)
        matrix = file.data("blk.0.ffn_up.weight").view(np.float16)
        assert abs(float(matrix.astype(np.float32).std()) - 0.02) < 0.002


def test_llama3_factors_divide_long_waves_only() -> None:
    factors = llama3_rope_factors(64, 5e5, 32.0, 8192)
    assert factors.shape == (32,)
    assert factors[0] == 1
    assert factors[-1] == 32
    assert (np.diff(factors) >= 0).all()


def test_the_script_runs_from_anywhere(repository_root: Path, tmp_path: Path) -> None:
    script = repository_root / "tools" / "make_gguf.py"
    command = [sys.executable, str(script), "llama-70b", "q4_k_m", "out.gguf", "--header-only"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    with open_gguf(tmp_path / "out.gguf") as file:
        assert file.metadata["llama.block_count"] == 80
        assert file.file_bytes > 42_000_000_000
