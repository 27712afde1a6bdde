from __future__ import annotations

import pytest

from scheduler.last_words import LIMIT_BYTES, LastWords, describe_end


def heard(*lines: str) -> LastWords:
    words = LastWords()
    for line in lines:
        words.hear(line)
    return words


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("12:00 runner: error: no such file", "error: no such file"),
        ("runner.gguf.GGUFError: magic is 'ABCD'", "runner.gguf.GGUFError: magic is 'ABCD'"),
        ("KeyboardInterrupt", "KeyboardInterrupt"),
        ("MemoryError", "MemoryError"),
        ("Fatal Python error: Segmentation fault", "Fatal Python error: Segmentation fault"),
        ("x CUDA error: device lost", "CUDA error: device lost"),
        ("terminate called after throwing an instance", "terminate called after throwing an instance"),
        ("ERROR runner.load: damaged", "ERROR runner.load: damaged"),
        ("gpu 0: out of memory", "out of memory"),
        ("INFO no errors so far", ""),
    ],
)
def test_fatal_lines(line, kept):
    assert heard("INFO begin", line, "INFO end").fatal == kept


def test_the_tail_is_kept_and_begins_with_a_whole_line():
    words = heard(*(f"error: number {i} of many" for i in range(2000)))
    assert len(words.fatal.encode()) <= LIMIT_BYTES
    assert words.fatal.startswith("error: number ")
    assert words.fatal.endswith("error: number 1999 of many")


def test_a_line_that_never_ends_is_cut():
    assert len(heard("error: " + "x" * 100_000).plain) <= LIMIT_BYTES


@pytest.mark.parametrize(
    ("returncode", "lines", "text"),
    [
        (None, [], ""),
        (None, ["INFO fine"], ""),
        (None, ["error: odd"], "error: odd"),
        (0, [], "exit status 0"),
        (3, [], "exit status 3"),
        (3, ["usage: runner", "runner: need --model"], "exit status 3: usage: runner\nrunner: need --model"),
        (1, ["INFO begin", "ValueError: bad", "INFO end"], "ValueError: bad"),
        (-9, ["INFO serving"], "signal: SIGKILL (Killed)"),
        (-11, ["Fatal Python error: Segmentation fault"], "signal: SIGSEGV (Segmentation fault)\nFatal Python error: "
         "Segmentation fault"),
        (-99, [], "signal: 99"),
    ],
)  # fmt: skip
def test_describe_end(returncode, lines, text):
    assert describe_end(returncode, heard(*lines)) == text
