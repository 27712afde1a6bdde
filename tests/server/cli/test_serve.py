"""What ``shale serve`` says and refuses before it serves."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from server.catalog import Catalog
from server.cli.client import CommandError
from server.cli.serve import RedactedFormatter, announcement, bind
from server.settings import Address, Settings

WriteModel = Callable[..., Path]


def test_a_port_that_is_in_use_is_told_so() -> None:
    with bind(Address("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(CommandError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: the address is in use"):
            bind(Address("127.0.0.1", port))


def test_a_name_that_is_none_is_told_so() -> None:
    with pytest.raises(CommandError, match="cannot listen on"):
        bind(Address("no-such-host.invalid", 0))


def test_ipv6_can_be_listened_on() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        listener = bind(Address("::1", 0))
    except CommandError as error:
        pytest.skip(str(error))
    with listener:
        assert listener.family is socket.AF_INET6


def test_the_announcement_names_address_models_and_kernels(models: Path, write_model: WriteModel) -> None:
    write_model("a.gguf")
    settings = Settings(models=models, cpu_isa="avx2")
    text = announcement(settings, Catalog(models), 5)
    assert "http://127.0.0.1:5" in text
    assert f"a, from {models}" in text
    assert "fast (avx2)" in text


def test_a_long_list_of_models_is_shortened(models: Path, write_model: WriteModel) -> None:
    for number in range(7):
        write_model(f"m{number}.gguf")
    assert "and 2 more" in announcement(Settings(models=models), Catalog(models), 5)


def test_no_models_are_told_with_the_setting_that_names_the_directory(models: Path) -> None:
    assert "no GGUF file below" in announcement(Settings(models=models), Catalog(models), 5)
    missing = models / "nothing"
    assert "is not a directory (SHALE_MODELS)" in announcement(Settings(models=missing), Catalog(missing), 5)


def test_no_secret_gets_into_the_log() -> None:
    try:
        raise ValueError("HF_TOKEN=hf_abc")
    except ValueError:
        record = logging.LogRecord("x", logging.INFO, "x.py", 1, "%s of %s", ("Bearer abc", "me"), sys.exc_info())
    text = RedactedFormatter("%(message)s").format(record)
    assert text.startswith("Bearer [redacted] of me\n")
    assert "hf_abc" not in text
