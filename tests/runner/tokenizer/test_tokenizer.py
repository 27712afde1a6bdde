"""The whole tokenizer: real vocabularies, threads, the demo model."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from runner.gguf import open_gguf
from runner.tokenizer import Tokenizer

VOCABULARIES = (
    "aquila",
    "baichuan",
    "bert-bge",
    "deepseek-coder",
    "deepseek-llm",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "qwen2",
    "refact",
    "starcoder",
)


@pytest.fixture(scope="module")
def demo(demo_model: Path) -> Tokenizer:
    with open_gguf(demo_model) as file:
        return Tokenizer.from_metadata(file.metadata)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_and_texts_are_those_of_llama_cpp(shared: Path, name: str) -> None:
    from tools.oracle_text import tokenizer_rows

    ((found, ok, detail),) = tokenizer_rows(shared / "oracle", [name])
    assert found == name
    assert ok, detail


def test_no_vocabulary_of_the_reference_is_left_out(shared: Path) -> None:
    found = {path.name.removesuffix(".cases.json") for path in (shared / "oracle" / "tokenizers").glob("*.cases.json")}
    assert found == set(VOCABULARIES)


def test_the_demo_model_reads_and_writes(demo: Tokenizer) -> None:
    text = "Return the name of the file.\n\n    é😀 <|im_end|>"
    ids = demo.encode(text, add_special=True, parse_special=True)
    assert demo.decode(ids) == text
    assert ids[-1] in demo.eog_ids
    detokenizer = demo.detokenizer()
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == text


def test_a_small_vocabulary_is_built_in_no_time(demo_model: Path) -> None:
    """It is on the way of every start. Some 5 ms; the bound leaves room for a busy machine."""
    with open_gguf(demo_model) as file:
        times = []
        for _ in range(3):
            start = time.process_time()
            Tokenizer.from_metadata(file.metadata)
            times.append(time.process_time() - start)
    assert min(times) < 0.1


def test_other_threads_run_while_a_long_text_is_encoded(demo: Tokenizer) -> None:
    """A thread that holds the interpreter all the time would leave no ticks."""
    text = "the name of the file " * 100_000
    thread = threading.Thread(target=lambda: demo.encode(text, add_special=False, parse_special=True))
    ticks = 0
    longest = 0.0
    thread.start()
    last = time.perf_counter()
    while thread.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        ticks += 1
    assert ticks > 10, f"{ticks} ticks, the longest pause was {longest:.3f} s"


def test_many_threads_get_the_same(demo: Tokenizer) -> None:
    expected = demo.encode("the name of the file", add_special=True, parse_special=True)
    found: list[list[int]] = []

    def work() -> None:
        for _ in range(50):
            found.append(demo.encode("the name of the file", add_special=True, parse_special=True))
            demo.decode(expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 200
