"""Origins and hosts: local ones pass, strangers do not."""

from __future__ import annotations

import re

import pytest

from server.routes.access import is_local_host, origin_pattern


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1:11434",
        "[::1]:5",
        "192.168.1.5",
        "10.0.0.1:80",
        "x.local",
        "db.internal",
        "",
    ],
)
def test_names_of_this_machine_and_its_network_pass(host: str) -> None:
    assert is_local_host(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:11434", "localhost.evil.example", "8.8.8.8", "notlocal"]
)
def test_other_names_do_not(host: str) -> None:
    assert not is_local_host(host)


@pytest.mark.parametrize(
    "origin",
    ["http://localhost", "https://127.0.0.1:3000", "http://[::1]:1", "tauri://localhost", "vscode-webview://abc"],
)
def test_local_pages_and_apps_may_call(origin: str) -> None:
    assert re.fullmatch(origin_pattern(()), origin)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost.evil.example", "http://localhost:1.evil.example"]
)
def test_other_pages_may_not(origin: str) -> None:
    assert not re.fullmatch(origin_pattern(()), origin)


def test_more_origins_can_be_allowed() -> None:
    pattern = origin_pattern(("https://*.example.org", "https://a.b"))
    assert re.fullmatch(pattern, "https://x.example.org")
    assert re.fullmatch(pattern, "https://a.b")
    assert not re.fullmatch(pattern, "https://aXb")
