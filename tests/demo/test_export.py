"""The demo model's file: written by demo.export, and the one in the repository."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np

from demo.conversations import SMALL_TALK
from demo.data import Item
from demo.export import CHAT_TEMPLATE, write
from demo.vocabulary import END, SPECIAL, Encoder, train
from runner.gguf import open_gguf

SHAPE = {
    "num_tokens": 600, "width": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 64,
    "rope_base": 10000.0, "norm_epsilon": 1e-5,
}  # fmt: skip
ITEMS = {f"module.name{i}": Item("function", f"Return the value number {i} of a list.", "()") for i in range(100)}


def test_a_small_model_is_written_and_read_back(tmp_path: Path) -> None:
    tokenizer = train(ITEMS, seed=1, num_tokens=600)
    num_tokens = tokenizer.get_vocab_size()
    embedding = np.linspace(-1, 1, num_tokens * 32, dtype=np.float32).reshape(num_tokens, 32)
    tensors = {"token_embd.weight": embedding, "output_norm.weight": np.ones(32, np.float32)}

    write(tmp_path / "small.gguf", SHAPE | {"num_tokens": num_tokens}, json.loads(tokenizer.to_str()), tensors)
    with open_gguf(tmp_path / "small.gguf") as file:
        assert file.architecture == "llama"
        assert list(file.metadata["tokenizer.ggml.tokens"])[-4:] == list(SPECIAL)
        assert file.metadata["tokenizer.ggml.eos_token_id"] == tokenizer.token_to_id(END)
        stored = file.data("token_embd.weight").reshape(num_tokens, -1)
    read = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q8_0)
    assert np.abs(read - embedding).max() < 1 / 127


def test_an_exchange_becomes_the_chat_template(tmp_path: Path) -> None:
    encoder = Encoder(train(ITEMS, seed=1, num_tokens=600))
    question, answer = SMALL_TALK[0]
    ids = encoder.prompt(question) + encoder.reply(answer)
    assert encoder.decode(ids) == f"user\n{question}\nassistant\n{answer}"  # special tokens are not printed
    assert ids[-1] == encoder.end


def test_the_file_in_the_repository_is_what_its_readme_says(demo_model: Path) -> None:
    assert demo_model.stat().st_size <= 8_000_000
    with open_gguf(demo_model) as file:
        metadata = file.metadata
        num_parameters = sum(int(np.prod(tensor.shape)) for tensor in file.tensors.values())
        kinds = {tensor.type.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    assert file.architecture == "llama"
    assert kinds == {"Q8_0"}
    assert round(num_parameters / 1e6, 1) == 5.5
    assert len(metadata["tokenizer.ggml.tokens"]) == 4096
    assert metadata["llama.context_length"] == 2048
    assert metadata["tokenizer.chat_template"] == CHAT_TEMPLATE
