"""The walk over string arrays: the fast scan against stepping over one string after the other."""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.gguf_cursor import Cursor, GGUFError
from runner.gguf_strings import find_run, read_strings


def _stored(values: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(value)) + value for value in values)


def _mapped(data: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, max(len(data), 1))
    memory[: len(data)] = data
    return memory


# Texts that look like lengths (zeros), empty ones, and ones whose length takes two bytes all break a run.
_STRINGS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=12),
        st.sampled_from([b"", b"\0" * 7, b"\0" * 8, b"a" + b"\0" * 20, b"\x01" + b"\0" * 8, b"x" * 255, b"x" * 256]),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(pattern=_STRINGS.filter(bool), repeats=st.integers(1, 60), tail=st.binary(max_size=30))
def test_any_strings_are_found_exactly(pattern: list[bytes], repeats: int, tail: bytes) -> None:
    values = pattern * repeats
    cursor = Cursor(_mapped(_stored(values) + tail), Path("m.gguf"))
    strings = read_strings(cursor, len(values))
    assert strings.raws() == values
    assert cursor.position == len(_stored(values))


@settings(max_examples=200, deadline=None)
@given(pattern=_STRINGS.filter(bool), repeats=st.integers(1, 60), cut=st.integers(1, 40))
def test_a_cut_anywhere_is_an_error(pattern: list[bytes], repeats: int, cut: int) -> None:
    values = pattern * repeats
    data = _stored(values)
    cursor = Cursor(_mapped(data[:-cut]), Path("m.gguf"))
    with pytest.raises(GGUFError, match=r"string \d+ has|an array of \d+ strings needs"):
        read_strings(cursor, len(values))


@pytest.mark.parametrize("num_missing", [1, 7, 64, 65, 300])
def test_strings_that_end_with_the_file_before_their_count_is_reached_are_an_error(num_missing: int) -> None:
    values = [b"a string of some length"] * 400
    cursor = Cursor(_mapped(_stored(values)), Path("m.gguf"))
    with pytest.raises(GGUFError, match=r"string 400 has no room .*byte 12400\)$"):
        read_strings(cursor, 400 + num_missing)


def test_a_scan_proves_every_end_but_the_last() -> None:
    values = [b"token%d" % i for i in range(50_000)]
    data = _stored(values)
    run = find_run(_mapped(data), 0, len(data))
    ends = []
    position = 0
    for value in values:
        position += 8 + len(value)
        ends.append(position)
    assert run.tolist() == ends[:-1]


def test_a_scan_that_starts_at_no_short_string_finds_nothing() -> None:
    assert not len(find_run(_mapped(_stored([b"x" * 256, b"a", b"b"])), 0, 282))


@pytest.mark.parametrize("value", [b"", b"\0" * 7, b"x" * 256, b"a\0\0\0\0\0\0\0"], ids=repr)
def test_strings_that_break_every_run_cost_little_more_than_the_plain_walk(value: bytes) -> None:
    values = [b"ab", value] * 100_000
    times = []
    for _ in range(3):
        cursor = Cursor(_mapped(_stored(values)), Path("m.gguf"))
        start = time.process_time()
        assert len(read_strings(cursor, len(values))) == len(values)
        times.append(time.process_time() - start)
    assert min(times) < 0.5  # about 30 ms; a scan per string would take 20 s
