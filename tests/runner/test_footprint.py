"""What a model takes: by hand for one small model, and equal to what loading really takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from runner.footprint import footprint, workspace
from runner.gguf import open_gguf
from runner.kernels import Kernels
from runner.model.spec import UnknownArchitectureError, read_spec
from runner.protocol import LoadRequest, Operation
from runner.tensor_storage import packed_bytes, stored_type
from tests.runner.loading import load

REQUEST = LoadRequest(operation=Operation.FIT, num_ctx=128, num_batch=32)
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3", "bert")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cache_grows_with_context_and_sequences(architecture: str, tiny_models: Callable[..., Path]) -> None:
    with open_gguf(tiny_models(architecture)) as gguf:
        one = footprint(gguf, REQUEST)
        four = footprint(gguf, REQUEST.model_copy(update={"num_parallel": 4}))
        spec = read_spec(gguf)
    assert sum(four.cpu.cache) == 4 * sum(one.cpu.cache)
    assert (sum(one.cpu.cache) == 0) == (not spec.is_causal)
    assert four.cpu.weights == one.cpu.weights
    assert len(one.cpu.weights) == len(one.cpu.cache) == spec.num_layers + 1


def test_keys_and_values_are_counted_apart(tiny_models: Callable[..., Path]) -> None:
    with open_gguf(tiny_models("llama")) as gguf:
        spec = read_spec(gguf)

        def cache(kv_cache_type: object) -> int:
            request = LoadRequest(**{**REQUEST.model_dump(), "kv_cache_type": kv_cache_type})
            return sum(footprint(gguf, request).cpu.cache)

        assert cache(("f16", "f16")) == cache("f16")
        assert cache(("f32", "f32")) == cache("f32") == 2 * cache("f16")
        assert spec.key_length == spec.value_length
        assert 2 * cache(("f32", "f16")) == 2 * cache(("f16", "f32")) == cache("f16") + cache("f32")


def test_tied_embeddings_are_counted_twice(tiny_models: Callable[..., Path]) -> None:
    with open_gguf(tiny_models("qwen2")) as gguf:
        spec = read_spec(gguf)
        embedding = gguf.tensors["token_embd.weight"]
        assert "output.weight" not in gguf.tensors
        memory = footprint(gguf, REQUEST)
    cols, rows = embedding.shape
    assert memory.input_weights >= embedding.nbytes
    assert memory.cpu.weights[spec.num_layers] >= packed_bytes(stored_type(embedding.type), rows, cols)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loading_takes_exactly_what_the_footprint_says(
    architecture: str, tiny_models: Callable[..., Path], fast: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.devices.cpu import CpuDevice

    taken: list[int] = []
    allocate = CpuDevice.allocate
    monkeypatch.setattr(CpuDevice, "allocate", lambda self, n: (taken.append(n), allocate(self, n))[1])
    path = tiny_models(architecture)
    load(path, fast, num_ctx=128, num_batch=32, use_mmap=False)
    with open_gguf(path) as gguf:
        assert sum(taken) == footprint(gguf, REQUEST).total_bytes


def test_unknown_architectures_are_refused_with_the_known_ones() -> None:
    file = SimpleNamespace(architecture="abacus", metadata={}, tensors={})
    with pytest.raises(UnknownArchitectureError, match="'abacus' is not known; known are: bert, gemma3, llama"):
        read_spec(file)  # type: ignore[arg-type]


def test_the_workspace_holds_a_whole_input_where_attention_is_bidirectional(tiny_models: Callable[..., Path]) -> None:
    with open_gguf(tiny_models("bert")) as gguf:
        rows = {name: rows for name, rows, _ in workspace(read_spec(gguf), REQUEST, has_layers=True, has_output=True)}
    assert rows["residual"] == 128
    assert rows["logits"] == 0
