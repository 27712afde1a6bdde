from __future__ import annotations

import pytest

from scheduler.sizes import human_bytes, parse_bytes


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (5583457485, "5.2 GiB"),
        (2**43, "8192.0 GiB"),
    ],
)
def test_human_bytes(num_bytes, text):
    assert human_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("8GiB", 8 * 2**30),
        ("900KiB", 900 * 2**10),
        (" 1.5 gib ", 3 * 2**29),
        ("1024", 1024),
        ("7B", 7),
        ("2TiB", 2**41),
    ],
)
def test_parse_bytes(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "8GB", "-1GiB", "1e3", "8 GiB x", "9" * 40])
def test_what_is_not_a_size(text):
    with pytest.raises(ValueError, match="is not understood; allowed"):
        parse_bytes(text)
