"""What a cache type may look like; which ones exist is the wire's business."""

from __future__ import annotations

from typing import get_args

import pytest

from runner.protocol import CacheType, LoadRequest, Operation
from scheduler.kv_cache_type import KV_CACHE_TYPES, parse_kv_cache_type, parse_kv_cache_type_setting, written
from scheduler.options import LoadOptions, ModelHeader, resolve
from scheduler.settings import SchedulerSettings


@pytest.mark.parametrize("text", ["f16", "q8_0,f16"])
def test_what_is_written_is_read(text):
    assert written(parse_kv_cache_type(text)) == text


def test_two_that_are_the_same_are_one():
    assert parse_kv_cache_type(" Q8_0 , q8_0") == "q8_0"


@pytest.mark.parametrize("text", ["", ",", "f16,", "f16,f16,f16"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="of keys and of values"):
        parse_kv_cache_type(text)


def test_the_known_types_are_those_of_the_wire():
    assert get_args(CacheType) == KV_CACHE_TYPES
    for pair in ((a, b) for a in KV_CACHE_TYPES for b in KV_CACHE_TYPES):
        types = parse_kv_cache_type_setting(",".join(pair))
        request = LoadRequest(operation=Operation.FIT, kv_cache_type=types)
        assert (request.key_cache_type, request.value_cache_type) == pair


@pytest.mark.parametrize("text", ["q9", "f16,q9", "q9,f16"])
def test_a_setting_names_known_types(text):
    with pytest.raises(ValueError, match="f16"):
        parse_kv_cache_type_setting(text)


def test_a_request_comes_before_the_setting():
    header, settings = ModelHeader("llama", 4096), SchedulerSettings(kv_cache_type="f32")
    assert resolve(LoadOptions(), header, settings).kv_cache_type == "f32"
    assert resolve(LoadOptions(kv_cache_type="f16"), header, settings).kv_cache_type == "f16"
    assert resolve(LoadOptions(), header, SchedulerSettings()).kv_cache_type == "f16"
