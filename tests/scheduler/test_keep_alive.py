from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import SettingsError
from scheduler.keep_alive import FOREVER_S, expiry, parse_keep_alive, parse_keep_alive_setting


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (300, 300.0),
        (1.5, 1.5),
        (-1, FOREVER_S),
        (-0.5, FOREVER_S),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1h30m5.5s", 5405.5),
        ("100ms", 0.1),
        ("2us", 2e-6),
        ("2µs", 2e-6),
        ("+3s", 3.0),
        (".5h", 1800.0),
        ("0", 0.0),
        ("0s", 0.0),
        ("-1m", FOREVER_S),
        ("-0s", 0.0),
        (10**400, FOREVER_S),  # more than a Go duration holds
        ("9999999h", FOREVER_S),
        (math.inf, FOREVER_S),
        (None, None),
    ],
)
def test_values(value, seconds):
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize("value", ["", "10", "5 m", "m", "5m3", "abc", "1d", "--1s", "1m-2s", True, [], {}, math.nan])
def test_what_is_refused(value):
    with pytest.raises(SettingsError, match=r"invalid keep_alive .*; allowed: ") as caught:
        parse_keep_alive(value)
    assert caught.value.status == 400


@pytest.mark.parametrize(("text", "seconds"), [("10", 10.0), (" 5m ", 300.0), ("-1", FOREVER_S), ("0", 0.0)])
def test_a_setting_may_be_a_bare_number(text, seconds):
    assert parse_keep_alive_setting(text) == seconds


def test_a_setting_that_cannot_be_meant():
    with pytest.raises(SettingsError):
        parse_keep_alive_setting("soon")


@given(st.one_of(st.text(max_size=30), st.floats(), st.integers()))
def test_nothing_but_seconds_or_the_error_comes_out(value):
    try:
        seconds = parse_keep_alive(value)
    except SettingsError:
        return
    assert seconds is not None
    assert seconds >= 0


def test_expiry():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert (expiry(now, 90) - now).total_seconds() == 90
    assert expiry(now, FOREVER_S).year == 2318
