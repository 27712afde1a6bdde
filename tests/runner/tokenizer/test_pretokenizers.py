"""The table of pre-tokenizers: every name works, and those that differ cut differently."""

from __future__ import annotations

import time

import pytest
from tokenizers import Regex, pre_tokenizers

from runner.tokenizer import TokenizerError
from runner.tokenizer.pretokenizers import PRE_TOKENIZERS, pre_tokenizer


def cut(name: str, text: str) -> list[str]:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[name].patterns]
    return [word for word, _ in pre_tokenizers.Sequence(splits).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_pattern_compiles_and_loses_nothing(name: str) -> None:
    text = "Hello, y'all! 12345 ½\r\n\n  caféÉ 漢字かな한국 HTMLParser's I'LL \u3000 x/y //\n"
    assert "".join(cut(name, text)) == text


def test_there_are_91_names() -> None:
    assert len(PRE_TOKENIZERS) == 91


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt-2", "I'll see 1234  x", ["I", "'ll", " see", " 1234", " ", " x"]),
        ("llama-bpe", "I'LL see 1234  x", ["I", "'LL", " see", " ", "123", "4", " ", " x"]),
        ("qwen2", "a 123", ["a", " ", "1", "2", "3"]),
        ("gpt-4o", "camelCase's", ["camel", "Case's"]),
        ("tekken", "camelCase 12", ["camel", "Case", " ", "1", "2"]),
        ("deepseek-v3", "漢字abc12345", ["漢字", "abc", "123", "45"]),
        ("kimi-k2", "漢字abc漢", ["漢字", "abc", "漢"]),
        ("afmoe", "1 12 123 1234 1234567", ["1", " ", "12", " ", "123", " ", "1", "234", " ", "1", "234", "567"]),
        ("superbpe", "a1234567b", ["a", "1", "234", "567", "b"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
        ("laguna", "a\n\nb", ["a", "\n\n", "b"]),
        ("youtu", "1a한", ["1", "a", "한"]),
        ("default", "a1234!!", ["a", "123", "4", "!!"]),
    ],
)
def test_words_are_cut_as_the_name_says(name: str, text: str, words: list[str]) -> None:
    assert cut(name, text) == words


@pytest.mark.parametrize("name", ["afmoe", "tiny_aya", "superbpe"])
def test_a_long_run_of_digits_takes_linear_time(name: str) -> None:
    times = []
    for _ in range(3):
        start = time.process_time()
        assert len(cut(name, "1" * 50_000)) == 16_667
        times.append(time.process_time() - start)
    assert min(times) < 2


@pytest.mark.parametrize("name", [None, ""])
def test_a_missing_name_is_the_default(name: str | None) -> None:
    assert pre_tokenizer(name) is PRE_TOKENIZERS["default"]


def test_an_unknown_name_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(TokenizerError, match=r"'qwen9', which is none of the 91 known.*llama-bpe.*qwen2"):
        pre_tokenizer("qwen9")
