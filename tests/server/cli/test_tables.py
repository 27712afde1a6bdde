"""Columns and units that a person reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from server.cli.tables import cache_use, columns, human_bytes, human_period, sequences, since, until


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert columns(("A", "LONG"), [("wide cell", "x")]) == "A            LONG\nwide cell    x"


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999 B"), (5_960_480, "6.0 MB"), (19_279_872, "19 MB"), (4_500_000_000, "4.5 GB")]
)
def test_bytes_have_two_or_three_digits(number: int, text: str) -> None:
    assert human_bytes(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "less than a minute"), (60, "1 minute"), (7200, "2 hours"), (90_000, "1 day")]
)
def test_periods_have_one_unit(seconds: float, text: str) -> None:
    assert human_period(seconds) == text


def test_moments_are_told_from_now() -> None:
    now = datetime.now(UTC)
    assert since((now - timedelta(hours=3)).isoformat()) == "3 hours ago"
    assert until((now + timedelta(minutes=4, seconds=30)).isoformat()) == "4 minutes from now"
    assert until((now + timedelta(days=90_000)).isoformat()) == "forever"


def test_what_an_engine_does_fits_in_a_column() -> None:
    assert cache_use({"used": 37, "cells": 1000}) == "4%"
    assert cache_use(None) == sequences(None) == "-"
    assert sequences({"active": 2, "parallel": 4, "waiting": 0}) == "2 of 4"
    assert sequences({"active": 4, "parallel": 4, "waiting": 3}) == "4 of 4 +3"
