"""Ollama's options are sorted into sampling and loading, and nothing in them is ignored."""

from __future__ import annotations

from typing import Any

import pytest

from runner.protocol import SamplingOptions
from scheduler.options import LoadOptions
from server.schemas.options import LOADING, SAMPLING, OptionError, read_options

CACHE_TYPE_FORMS = 'such as "q8_0", or "q8_0,f16" for keys and values'


def test_no_options_are_the_defaults() -> None:
    options = read_options(None)
    assert options.sampling == SamplingOptions()
    assert not options.loading


def test_sampling_and_loading_are_told_apart() -> None:
    options = read_options({"temperature": 0, "num_ctx": 128, "stop": ["a"], "use_mmap": False})
    assert options.sampling == SamplingOptions(temperature=0, stop=("a",))
    assert options.loading == {"num_ctx": 128, "use_mmap": False}


def test_options_of_loading_that_have_several_forms() -> None:
    given = {"kv_cache_type": {"k": "f16", "v": "f32"}, "flash_attention": "auto", "fail_if_not_gpu": True}
    loading = read_options(given).loading
    assert loading == {"kv_cache_type": ("f16", "f32"), "flash_attention": "auto", "fail_if_not_gpu": True}
    LoadOptions(**loading)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("q8_0", "q8_0"),
        ("Q8_0", "q8_0"),
        ("q8_0,f16", ("q8_0", "f16")),
        ("q8_0, q8_0", "q8_0"),
        (["q4_0", "f16"], ("q4_0", "f16")),
        ({"k": "bf16", "v": "f32"}, ("bf16", "f32")),
    ],
)
def test_the_type_of_the_cache_is_one_or_two(written: Any, read: Any) -> None:
    assert read_options({"kv_cache_type": written}).loading == {"kv_cache_type": read}


def test_the_prompt_may_be_kept_out_of_the_cache() -> None:
    assert read_options({}).cache_prompt is True
    assert read_options({"cache_prompt": False}).cache_prompt is False
    with pytest.raises(OptionError, match='option "cache_prompt" must be of type boolean'):
        read_options({"cache_prompt": 1})


def test_every_sampling_option_is_a_field_of_the_wire() -> None:
    assert set(SAMPLING) == set(SamplingOptions.model_fields)


def test_null_counts_as_not_given() -> None:
    everything = dict.fromkeys((*SAMPLING, *LOADING, "mirostat", "tfs_z"))
    assert read_options(everything) == read_options({})


def test_one_stop_string_may_stand_without_a_list() -> None:
    assert read_options({"stop": "a"}).sampling.stop == ("a",)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("top_k", "5", 'option "top_k" must be of type integer'),
        ("top_k", 5.5, 'option "top_k" must be of type integer'),
        ("top_k", True, 'option "top_k" must be of type integer'),
        ("seed", float(2**70), 'option "seed" must be of type integer'),
        ("top_p", "x", 'option "top_p" must be of type float32'),
        ("temperature", float("inf"), 'option "temperature" must be of type float32'),
        ("fail_if_not_gpu", 1, 'option "fail_if_not_gpu" must be of type boolean'),
        ("flash_attention", "yes", 'option "flash_attention" must be of type boolean, or "auto"'),
        ("kv_cache_type", {"k": "f16"}, f'option "kv_cache_type" must be of type string, {CACHE_TYPE_FORMS}'),
        ("kv_cache_type", "f16,f16,f16", f'option "kv_cache_type" must be of type string, {CACHE_TYPE_FORMS}'),
        ("kv_cache_type", ["f16", 8], f'option "kv_cache_type" must be of type string, {CACHE_TYPE_FORMS}'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean'),
        ("stop", 1, 'option "stop" must be of type array'),
        ("stop", [1], 'option "stop" must be of an array of strings'),
        ("top_p", 1.5, 'option "top_p" should be less than or equal to 1 (found 1.5)'),
        ("num_ctx", "big", 'option "num_ctx" must be of type integer, or "auto"'),
        ("num_ctx", True, 'option "num_ctx" must be of type integer, or "auto"'),
        ("num_ctx", 3, 'option "num_ctx" must be at least 4 (found 3)'),
        ("mirostat", 2, 'option "mirostat" is not supported by Shale; leave it out or set it to 0'),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_options({name: value})
    assert str(caught.value) == sentence


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r'unknown option "tempreature"; known: .*temperature.*num_ctx'):
        read_options({"tempreature": 1})


@pytest.mark.parametrize(("name", "value"), [("mirostat", 0), ("mirostat_tau", 5.0), ("tfs_z", 1), ("numa", False)])
def test_an_option_that_asks_for_nothing_is_accepted(name: str, value: Any) -> None:
    assert read_options({name: value}) == read_options({})
