"""Tiny models: each opens and has what its row says, named as llama.cpp's converter names it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runner.gguf import GGUFFile, open_gguf
from tools.random_blocks import RANDOM_TYPES
from tools.tiny_models import TINY_MODELS, write_tiny_model, write_tiny_split


def _open(tmp_path: Path, name: str, type_name: str = "F16", **changes: object) -> GGUFFile:
    return open_gguf(write_tiny_model(tmp_path / "tiny.gguf", name, type_name, **changes))


def _layer(file: GGUFFile, index: int) -> set[str]:
    prefix = f"blk.{index}."
    return {name.removeprefix(prefix) for name in file.tensors if name.startswith(prefix)}


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_model_has_the_layers_heads_and_tokens_it_claims(tmp_path: Path, name: str) -> None:
    row = TINY_MODELS[name]
    with _open(tmp_path, name) as file:
        facts = {
            key.partition(".")[2]: value for key, value in file.metadata.items() if key.startswith(file.architecture)
        }
        assert file.architecture == row.architecture
        assert facts["block_count"] == row.num_layers
        assert {int(key.split(".")[1]) for key in file.tensors if key.startswith("blk.")} == set(range(row.num_layers))
        width, num_vocab = file.tensors["token_embd.weight"].shape
        assert (width, num_vocab) == (facts["embedding_length"], len(file.metadata["tokenizer.ggml.tokens"]))
        head_dim = facts.get("attention.key_length", width // row.num_heads)
        assert file.tensors["blk.0.attn_q.weight"].shape == (width, row.num_heads * head_dim)
        assert file.tensors["blk.0.attn_k.weight"].shape == (width, row.num_kv_heads * head_dim)
        assert file.file_bytes < 2_000_000


# The oracle's models were written by llama.cpp's own converter.
_CONVERTED = {
    "llama": "llama-F16",
    "llama-tied": "llama-tied-spm-F32",
    "llama-rope-llama3": "llama-rope-llama3-BF16",
    "mixtral": "mixtral-F16",
    "qwen2": "qwen2-F16",
    "qwen3": "qwen3-F16",
    "gemma3": "gemma3-F16",
    "bert": "bert-tiny-F16",
}


def _ours_only(key: str) -> bool:
    return not key.startswith(("general.", "tokenizer."))


@pytest.mark.parametrize("name", _CONVERTED)
def test_names_and_keys_are_those_of_the_converter(tmp_path: Path, shared: Path, name: str) -> None:
    with _open(tmp_path, name) as ours, open_gguf(shared / f"oracle/models/{_CONVERTED[name]}.gguf") as theirs:
        assert _layer(ours, 0) == _layer(theirs, 0)
        assert {key for key in ours.tensors if "blk." not in key} == {
            key for key in theirs.tensors if "blk." not in key
        }
        optional = {"attention.key_length", "attention.value_length"}  # the converter leaves these out at times
        keys = [{k.partition(".")[2] for k in file.metadata if _ours_only(k)} - optional for file in (ours, theirs)]
        assert keys[0] == keys[1]
        types = [
            {i.name: i.type.name == "F32" for i in f.tensors.values() if "blk.0" in i.name} for f in (ours, theirs)
        ]
        assert types[0] == types[1] or name == "llama-tied"  # whose converted file is F32 throughout


def test_tied_models_have_no_output_matrix_and_untied_ones_do(tmp_path: Path) -> None:
    with _open(tmp_path, "llama-tied") as file:
        assert "output.weight" not in file.tensors
    with _open(tmp_path, "llama-tied", is_tied=False) as file:
        assert file.tensors["output.weight"].shape == file.tensors["token_embd.weight"].shape


def test_rope_variants_say_what_they_are(tmp_path: Path) -> None:
    with _open(tmp_path, "llama-rope-llama3") as file:
        factors = file.data("rope_freqs.weight").view(np.float32)
        assert factors.shape == (file.metadata["llama.rope.dimension_count"] // 2,)
        assert (factors[0], factors[-1]) == (1, 8)
    with _open(tmp_path, "llama-yarn") as file:
        assert file.metadata["llama.rope.scaling.type"] == "yarn"
        assert file.metadata["llama.rope.scaling.factor"] == 4
        assert file.metadata["llama.rope.scaling.original_context_length"] == 128
    with _open(tmp_path, "gemma3", rope_scaling=("linear", 8.0)) as file:
        assert file.metadata["gemma3.rope.scaling.type"] == "linear"
        assert "gemma3.rope.scaling.original_context_length" not in file.metadata


def test_experts_biases_norms_and_pooling(tmp_path: Path) -> None:
    with _open(tmp_path, "mixtral") as file:
        assert file.tensors["blk.0.ffn_gate_exps.weight"].shape == (64, 128, 4)
        assert file.tensors["blk.0.ffn_down_exps.weight"].shape == (128, 64, 4)
        assert file.tensors["blk.0.ffn_gate_inp.weight"].type.name == "F32"
    with _open(tmp_path, "qwen2") as file:
        assert file.data("blk.1.attn_v.bias").view(np.float32).std() > 0.05
    with _open(tmp_path, "qwen3") as file:
        assert file.tensors["blk.0.attn_k_norm.weight"].shape == (32,)
    with _open(tmp_path, "gemma3") as file:
        assert {"post_attention_norm.weight", "post_ffw_norm.weight"} <= _layer(file, 5)
        assert file.metadata["gemma3.attention.sliding_window"] == 16
    for name, number in (("bert", 1), ("bert-cls", 2)):
        with _open(tmp_path, name) as file:
            assert file.metadata["bert.pooling_type"] == number
            assert file.metadata["bert.attention.causal"] is False


@pytest.mark.parametrize("type_name", sorted(RANDOM_TYPES))
def test_matrices_come_in_every_type(tmp_path: Path, type_name: str) -> None:
    with _open(tmp_path, "llama", type_name, num_layers=1) as file:
        assert {info.type.name for info in file.tensors.values() if len(info.shape) > 1} == {type_name}
        assert {info.type.name for info in file.tensors.values() if len(info.shape) == 1} == {"F32"}


def test_the_same_arguments_give_the_same_file_and_a_seed_another(tmp_path: Path) -> None:
    paths = [write_tiny_model(tmp_path / f"{i}.gguf", "qwen3", seed=seed) for i, seed in enumerate((1, 1, 2))]
    first, same, other = (path.read_bytes() for path in paths)
    assert first == same != other


def test_leaving_a_tensor_out_changes_no_other(tmp_path: Path) -> None:
    with _open(tmp_path, "llama") as file:
        untied = {name: file.data(name).tobytes() for name in file.tensors}
    with _open(tmp_path, "llama", is_tied=True) as file:
        assert {name: file.data(name).tobytes() for name in file.tensors}.items() <= untied.items()


def test_a_split_set_holds_the_same_model(tmp_path: Path) -> None:
    paths = write_tiny_split(tmp_path / "split.gguf", "llama", num_shards=3)
    with open_gguf(paths[1]) as split, _open(tmp_path, "llama") as whole:
        assert len(split.shards) == 3
        assert list(split.tensors) == list(whole.tensors)
        assert all(np.array_equal(split.data(name), whole.data(name)) for name in whole.tensors)


def test_unknown_rows_and_fields_and_broken_widths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="nope"):
        write_tiny_model(tmp_path / "m.gguf", "nope")
    with pytest.raises(TypeError, match="nope"):
        write_tiny_model(tmp_path / "m.gguf", "llama", nope=1)
    with pytest.raises(ValueError, match="96 columns of Q4_K"):
        write_tiny_model(tmp_path / "m.gguf", "llama", "Q4_K", embedding_length=96)


def test_the_script_runs_from_anywhere(repository_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository_root / "tools/tiny_models.py"), "bert", "out.gguf", "--type", "Q8_0"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    with open_gguf(tmp_path / "out.gguf") as file:
        assert file.tensors["blk.0.attn_q.weight"].type.name == "Q8_0"
