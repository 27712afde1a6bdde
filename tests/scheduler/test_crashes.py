"""Pauses that grow with every crash in a row, and last words that mean too little memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.crashes import FORGIVEN_S, Crashes, is_out_of_memory
from scheduler.errors import CrashLoopError

MODEL = Path("/models/a.gguf")


def pause(crashes, now_s):
    try:
        crashes.check(MODEL, now_s)
    except CrashLoopError as error:
        return error.retry_after_s
    return 0


def test_the_first_crash_costs_nothing_and_then_the_pauses_double_up_to_30_s():
    crashes = Crashes()
    pauses = []
    for now_s in range(0, 900, 100):
        crashes.add(MODEL, now_s, "x")
        pauses.append(pause(crashes, now_s))
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30, 30]
    crashes.check(MODEL, 830)
    crashes.check(Path("/models/b.gguf"), 800)


def test_what_a_client_is_told():
    crashes = Crashes()
    for _ in range(3):
        crashes.add(MODEL, 10.0, "signal: SIGSEGV")
    with pytest.raises(CrashLoopError) as caught:
        crashes.check(MODEL, 10.5)
    error = caught.value
    assert (error.status, error.retry_after_s) == (503, 2)
    assert str(error) == "model runner has crashed 3 times in a row, next try in 2 s: signal: SIGSEGV"


def test_a_request_that_was_served_ends_the_row():
    crashes = Crashes()
    for _ in range(5):
        crashes.add(MODEL, 0.0, "x")
    crashes.forgive(MODEL)
    crashes.forgive(MODEL)
    assert pause(crashes, 0.0) == 0
    crashes.add(MODEL, 0.0, "x")
    assert pause(crashes, 0.0) == 0


def test_a_good_while_without_a_crash_ends_the_row():
    crashes = Crashes()
    for _ in range(5):
        crashes.add(MODEL, 0.0, "x")
    crashes.add(MODEL, FORGIVEN_S, "x")
    assert pause(crashes, FORGIVEN_S) == 0
    crashes.add(MODEL, FORGIVEN_S + 1, "x")
    assert pause(crashes, FORGIVEN_S + 1) == 1
    assert pause(crashes, 3 * FORGIVEN_S) == 0


def test_many_crashes_do_not_overflow():
    crashes = Crashes()
    for _ in range(5000):
        crashes.add(MODEL, 0.0, "x")
    assert pause(crashes, 0.0) == 30


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("CUDA error: out of memory", True),
        ("torch.OutOfMemoryError: CUDA out of memory", True),
        ("MemoryError", True),
        ("what(): std::bad_alloc", True),
        ("ggml: failed to allocate 12 bytes", True),
        ("OSError: [Errno 12] Cannot allocate memory", True),
        ("signal: SIGKILL (Killed)", False),
        ("signal: SIGSEGV (Segmentation fault)", False),
        ("error: no such tensor", False),
        ("", False),
    ],
)
def test_words_that_mean_too_little_memory(words, expected):
    assert is_out_of_memory(words) is expected
