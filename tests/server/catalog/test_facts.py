"""What is said about a file is what its header says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from runner.gguf import open_gguf
from server.catalog.facts import FILE_TYPES, Facts, clean_text, human_count, read_facts

WriteModel = Callable[..., Path]


def facts_of(path: Path) -> Facts:
    with open_gguf(path) as file:
        return read_facts(file)


def test_facts_come_from_the_header(write_model: WriteModel) -> None:
    metadata = {"llama__context_length": 77, "llama__embedding_length": 64, "general__license": "mit"}
    tokens = {"tokenizer__ggml__bos_token_id": 0, "tokenizer__ggml__eos_token_id": 1}
    facts = facts_of(write_model("a.gguf", general__file_type=15, tokenizer__chat_template="T", **metadata, **tokens))
    assert (facts.architecture, facts.num_parameters, facts.quantization) == ("llama", 3 * 64, "Q4_K_M")
    assert (facts.context_length, facts.embedding_length, facts.license) == (77, 64, "mit")
    assert (facts.chat_template, facts.bos_token, facts.eos_token) == ("T", "<s>", "</s>")
    assert facts.capabilities == ["completion"]


def test_a_file_without_a_type_has_that_of_its_tensors(write_model: WriteModel) -> None:
    assert facts_of(write_model("a.gguf")).quantization == "F32"


def test_pooling_makes_an_embedding_model(write_model: WriteModel) -> None:
    facts = facts_of(write_model("a.gguf", architecture="bert", bert__pooling_type=1))
    assert facts.capabilities == ["embedding"]


def test_a_token_id_out_of_range_is_no_token(write_model: WriteModel) -> None:
    assert facts_of(write_model("a.gguf", tokenizer__ggml__bos_token_id=99)).bos_token == ""


def test_file_types_are_those_of_llama_cpp() -> None:
    for number, name in FILE_TYPES.items():
        known = gguf.LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        assert known == name


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (999, "999"),
        (1500, "2K"),
        (5_477_760, "5.48M"),
        (2_000_000, "2M"),
        (1_235_814_432, "1.2B"),
        (70_000_000_000, "70B"),
    ],
)
def test_numbers_of_parameters_are_written_as_ollama_does(number: int, text: str) -> None:
    assert human_count(number) == text


def test_text_that_is_no_unicode_can_still_be_sent() -> None:
    assert clean_text(b"a\xff".decode("utf-8", "surrogateescape")) == "a\ufffd"
