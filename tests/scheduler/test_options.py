from __future__ import annotations

import pytest

from scheduler.errors import SettingsError
from scheduler.options import LoadOptions, ModelHeader, merge, needs_reload, resolve
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


def reloads(old, new, num_gpus=0):
    settings = SchedulerSettings()
    return needs_reload(resolve(old, HEADER, settings), resolve(new, HEADER, settings), old, new, num_gpus)


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


def test_merge_keeps_what_is_left_open_and_the_larger_context():
    old = LoadOptions(num_ctx=8000, num_thread=2)
    assert merge(old, LoadOptions(num_ctx=100, num_batch=64)) == LoadOptions(num_ctx=8000, num_thread=2, num_batch=64)
    assert merge(LoadOptions(), LoadOptions(num_ctx=100)) == LoadOptions(num_ctx=100)
    assert merge(old, LoadOptions(num_thread=4)) == LoadOptions(num_ctx=8000, num_thread=4)
