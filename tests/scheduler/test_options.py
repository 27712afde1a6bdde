from __future__ import annotations

import pytest

from scheduler.errors import SettingsError
from scheduler.options import (
    MAX_NUM_THREAD,
    LoadOptions,
    ModelHeader,
    OnGPUs,
    context_of,
    is_parallel_auto,
    load_notes,
    merge,
    must_be_on_gpu,
    needs_reload,
    resolve,
)
from scheduler.settings import SchedulerSettings

HEADER = ModelHeader("llama", 8192)


@pytest.mark.parametrize(
    ("asked", "default", "trained", "num_ctx"),
    [
        (None, 0, 8192, 4096),
        (None, 0, 2048, 2048),
        (None, 6000, 8192, 6000),
        (None, 60_000, 8192, 8192),
        (100, 0, 8192, 100),
        (1, 0, 8192, 4),
        (0, 0, 8192, 4),
        (-7, 0, 8192, 4),
        (10**12, 0, 8192, 8192),
        (100, 0, 2, 4),
    ],
)
def test_num_ctx(asked, default, trained, num_ctx):
    settings = SchedulerSettings(context_length=default)
    assert resolve(LoadOptions(num_ctx=asked), ModelHeader("llama", trained), settings).num_ctx == num_ctx


def test_the_rest_of_a_request():
    request = resolve(LoadOptions(num_thread=3, use_mmap=False), HEADER, SchedulerSettings(num_parallel=2))
    assert (request.num_parallel, request.num_batch, request.num_thread, request.use_mmap) == (2, 512, 3, False)
    assert resolve(LoadOptions(), HEADER, SchedulerSettings()).use_mmap is True


@pytest.mark.parametrize(("asked", "num_ctx", "num_batch"), [(None, 100, 100), (32, 100, 32), (5000, 4096, 4096)])
def test_num_batch_is_at_most_the_context(asked, num_ctx, num_batch):
    options = LoadOptions(num_ctx=num_ctx, num_batch=asked)
    assert resolve(options, HEADER, SchedulerSettings()).num_batch == num_batch


@pytest.mark.parametrize(
    "options", [LoadOptions(num_batch=0), LoadOptions(num_thread=-1), LoadOptions(num_gpu=-2), LoadOptions(main_gpu=-1)]
)
def test_values_that_cannot_be_meant(options):
    with pytest.raises(SettingsError, match=r"^\w+ must be at least -?\d, found -?\d$"):
        resolve(options, HEADER, SchedulerSettings())


def reloads(old, new, num_gpus=0, num_layers=9, num_placed=9):
    settings = SchedulerSettings()
    there = OnGPUs(num_gpus, num_layers, num_placed)
    return needs_reload(resolve(old, HEADER, settings), resolve(new, HEADER, settings), old, new, there)


@pytest.mark.parametrize(
    ("old", "new", "num_gpus", "expected"),
    [
        (LoadOptions(num_ctx=100), LoadOptions(), 0, True),  # the default is larger than what is loaded
        (LoadOptions(num_ctx=100), LoadOptions(num_ctx=50, num_batch=512), 0, False),  # 512 is what 100 allows
        (LoadOptions(num_gpu=3), LoadOptions(num_gpu=5), 1, True),
        (LoadOptions(num_gpu=3), LoadOptions(num_gpu=3), 1, False),
        (LoadOptions(num_gpu=3), LoadOptions(num_gpu=-1), 1, False),
        (LoadOptions(num_gpu=3), LoadOptions(), 1, False),
        (LoadOptions(num_gpu=3), LoadOptions(num_gpu=5), 0, False),
        (LoadOptions(), LoadOptions(main_gpu=1), 2, True),
        (LoadOptions(num_thread=3), LoadOptions(num_thread=0), 0, False),  # 0: as the server likes
    ],
)
def test_needs_reload(old, new, num_gpus, expected):
    assert reloads(old, new, num_gpus) is expected


@pytest.mark.parametrize(
    ("old", "new", "num_gpus", "num_placed", "expected"),
    [
        (LoadOptions(), LoadOptions(num_gpu=999), 1, 9, False),  # more layers than it has: all of them, which are there
        (LoadOptions(), LoadOptions(num_gpu=9), 1, 9, False),
        (LoadOptions(num_gpu=99), LoadOptions(num_gpu=999), 1, 9, False),
        (LoadOptions(num_gpu=99), LoadOptions(num_gpu=999), 1, 0, False),  # what could not be had is not tried again
        (LoadOptions(), LoadOptions(num_gpu=999), 1, 3, True),
        (LoadOptions(), LoadOptions(num_gpu=3), 1, 3, False),  # so many are there, by chance
        (LoadOptions(), LoadOptions(num_gpu=3), 1, 9, True),
        (LoadOptions(num_gpu=-1), LoadOptions(num_gpu=0), 1, 9, True),
        (LoadOptions(), LoadOptions(main_gpu=0), 1, 9, False),  # there is no choice
        (LoadOptions(), LoadOptions(main_gpu=0), 2, 9, True),
        (LoadOptions(main_gpu=1), LoadOptions(main_gpu=1), 2, 9, False),
    ],
)
def test_options_about_gpus_reload_only_where_they_make_a_difference(old, new, num_gpus, num_placed, expected):
    assert reloads(old, new, num_gpus, num_placed=num_placed) is expected


def test_more_threads_than_can_be_of_use():
    assert 64 <= MAX_NUM_THREAD <= 1024
    assert resolve(LoadOptions(num_thread=MAX_NUM_THREAD), HEADER, SchedulerSettings()).num_thread == MAX_NUM_THREAD
    for number in (MAX_NUM_THREAD + 1, 2**31):
        with pytest.raises(
            SettingsError, match=f"num_thread must be at most {MAX_NUM_THREAD}, found {number}"
        ) as caught:
            resolve(LoadOptions(num_thread=number), HEADER, SchedulerSettings())
        assert caught.value.status == 400


def test_merge_keeps_what_is_left_open():
    old = LoadOptions(num_ctx=8000, num_thread=2)
    merged = merge(old, LoadOptions(num_ctx=8000, num_batch=64), 4096)
    assert merged == LoadOptions(num_ctx=8000, num_thread=2, num_batch=64)
    assert merge(old, LoadOptions(num_thread=4), 4096) == LoadOptions(num_ctx=8000, num_thread=4)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (8000, 100, 8000),
        (8000, None, 8000),  # left open, it is one of 4096
        (100, None, None),
        (None, None, None),
        (4096, 4097, 4097),
    ],
)
def test_merge_takes_the_larger_context(one, other, expected):
    for old, new in ((one, other), (other, one)):
        assert merge(LoadOptions(num_ctx=old), LoadOptions(num_ctx=new), 4096).num_ctx == expected


# ---- "auto" ------------------------------------------------------------------------------------


def test_auto_stands_for_the_trained_length_until_it_is_known_what_fits():
    assert resolve(LoadOptions(num_ctx="auto"), HEADER, SchedulerSettings()).num_ctx == 8192


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (LoadOptions(num_ctx=100), LoadOptions(num_ctx="auto"), False),  # it takes what is there
        (LoadOptions(num_ctx="auto"), LoadOptions(num_ctx="auto"), False),
        (LoadOptions(num_ctx="auto"), LoadOptions(), False),  # or the default and "auto" would take turns
        (LoadOptions(num_ctx="auto"), LoadOptions(num_ctx=5000), True),
        (LoadOptions(num_ctx="auto"), LoadOptions(num_ctx=2999), False),
    ],
)
def test_auto_and_reloads(old, new, expected):
    settings = SchedulerSettings()
    num_ctx = 3000 if old.num_ctx == "auto" else old.num_ctx
    loaded = resolve(old, HEADER, settings).model_copy(update={"num_ctx": num_ctx})
    assert needs_reload(loaded, resolve(new, HEADER, settings), old, new, OnGPUs()) is expected


def test_auto_gives_way_to_a_number_in_a_merge():
    auto, number = LoadOptions(num_ctx="auto"), LoadOptions(num_ctx=5000)
    assert merge(auto, number, 4096) == merge(number, auto, 4096) == number
    assert merge(auto, LoadOptions(), 4096) == merge(LoadOptions(), auto, 4096) == auto


def test_another_word_than_auto():
    with pytest.raises(SettingsError, match="num_ctx must be a number or \"auto\", found 'max'"):
        resolve(LoadOptions(num_ctx="max"), HEADER, SchedulerSettings())


# ---- cache type and sequences ------------------------------------------------------------------


def test_cache_type_and_sequences():
    request = resolve(LoadOptions(kv_cache_type="f32", num_parallel=3), HEADER, SchedulerSettings(num_parallel=2))
    assert (request.kv_cache_type, request.num_parallel) == ("f32", 3)
    assert resolve(LoadOptions(), HEADER, SchedulerSettings()).kv_cache_type == "f16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoadOptions(kv_cache_type="q5_1"), "kv_cache_type must be one of f16, bf16, f32, q8_0, q4_0, found 'q5_1'"),
        (LoadOptions(kv_cache_type=("f16", "q9")), "found 'q9'"),
        (LoadOptions(num_parallel=1025), "num_parallel must be at most 1024, found 1025"),
        (LoadOptions(num_parallel=0), "num_parallel must be at least 1, found 0"),
    ],
)
def test_what_cannot_be_loaded(options, message):
    with pytest.raises(SettingsError, match=message):
        resolve(options, HEADER, SchedulerSettings())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (LoadOptions(num_parallel=4), LoadOptions(num_parallel=2), False),  # more serves fewer
        (LoadOptions(num_parallel=2), LoadOptions(num_parallel=4), True),
        (LoadOptions(num_parallel=4), LoadOptions(), False),
        (LoadOptions(), LoadOptions(kv_cache_type="f16"), False),
        (LoadOptions(), LoadOptions(kv_cache_type="f32"), True),
        (LoadOptions(kv_cache_type="f32"), LoadOptions(), False),
    ],
)
def test_cache_type_sequences_and_reloads(old, new, expected):
    assert reloads(old, new) is expected


@pytest.mark.parametrize(
    ("option", "setting", "is_auto", "number"),
    [(None, 0, True, 1), (3, 0, False, 3), (None, 2, False, 2), (3, 2, False, 3)],
)
def test_the_number_of_sequences_is_left_open_or_not(option, setting, is_auto, number):
    options, settings = LoadOptions(num_parallel=option), SchedulerSettings(num_parallel=setting)
    assert is_parallel_auto(options, settings) is is_auto
    assert resolve(options, HEADER, settings).num_parallel == number


def test_keys_and_values_may_have_types_of_their_own():
    assert resolve(LoadOptions(kv_cache_type=("f32", "f32")), HEADER, SchedulerSettings()).kv_cache_type == "f32"
    assert not reloads(LoadOptions(kv_cache_type="f32"), LoadOptions(kv_cache_type=("f32", "f32")))
    request = resolve(LoadOptions(kv_cache_type=("q8_0", "q4_0")), HEADER, SchedulerSettings())
    assert (request.key_cache_type, request.value_cache_type) == ("q8_0", "q4_0")
    assert reloads(LoadOptions(kv_cache_type=("q8_0", "q4_0")), LoadOptions(kv_cache_type=("q4_0", "q8_0")))


@pytest.mark.parametrize("asked", [True, False, "auto"])
def test_flash_attention_never_reloads_and_false_is_told_to_be_without_effect(asked):
    options = LoadOptions(flash_attention=asked)
    assert not reloads(LoadOptions(), options, num_gpus=1)
    notes = load_notes(options, 2048, 1000, 1)
    assert (len(notes) == 1 and "tile by tile" in notes[0]) if asked is False else notes == ()


@pytest.mark.parametrize(
    ("option", "setting", "expected"),
    [(None, False, False), (None, True, True), (False, True, False), (True, False, True)],
)
def test_must_be_on_gpu(option, setting, expected):
    assert must_be_on_gpu(LoadOptions(fail_if_not_gpu=option), SchedulerSettings(fail_if_not_gpu=setting)) is expected


def test_sequences_only_grow_in_a_merge():
    assert merge(LoadOptions(num_parallel=4), LoadOptions(num_parallel=2), 4096).num_parallel == 4
    assert merge(LoadOptions(), LoadOptions(num_parallel=2), 4096).num_parallel == 2


# ---- notes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "notes"),
    [
        (None, ()),
        (2048, ()),
        (99999, ("num_ctx 99999 was clamped to 2048, the length the model was trained for",)),
        ("auto", ('num_ctx "auto" is 1000',)),
        (999, ()),
    ],
)
def test_load_notes(asked, notes):
    assert load_notes(LoadOptions(num_ctx=asked), 2048, 1000, 4) == notes
    if asked == 99999:
        notes = ()  # nobody knows for which length it was trained
    assert load_notes(LoadOptions(num_ctx=asked), 0, 1000, 4) == notes


@pytest.mark.parametrize(("asked", "own"), [(None, 1000), ("auto", 1000), (64, 64), (1, 4), (1000, 1000), (9999, 1000)])
def test_a_request_has_the_context_that_it_asks_for(asked, own):
    assert context_of(LoadOptions(num_ctx=asked), 1000) == own


def test_fewer_sequences_than_there_are_is_noted():
    assert load_notes(LoadOptions(num_parallel=4), 2048, 1000, 4) == ()
    found = load_notes(LoadOptions(num_parallel=1), 2048, 1000, 4)
    assert found == ("num_parallel 1: the model is loaded with 4",)
