"""The command line: what it makes of its options, and its help."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.cli.commands import main, settings_table
from server.settings import rows

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``shale`` in this process: exit status, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shale", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return run


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--ctx", "-5", 'option "num_ctx" must be at least 4 (found -5)'),
        ("--ctx", "many", 'option "num_ctx" must be of type integer, or "auto"'),
        ("--memory", "6x", "--memory: size '6x' is not understood; allowed: a number and B, KiB, MiB, GiB or TiB"),
        ("--devices", "0", "devices: '0' has 0 bytes; allowed: cpu; or devices of one kind, each of at least 1 byte"),
        ("--devices", "cpu,1GiB", "devices: 'cpu,1GiB' mixes kinds of devices; allowed: cpu; or devices of one kind"),
    ],
)
def test_an_option_of_a_plan_that_cannot_be_meant(
    command: Command, demo_model: Path, option: str, value: str, message: str
) -> None:
    status, said, error = command("plan", str(demo_model), option, value)
    assert (status, said) == (1, "")
    assert error.startswith(f"shale: {message}")
    assert len(error.splitlines()) == 1


def test_the_options_of_a_plan_reach_it(command: Command, demo_model: Path) -> None:
    machine = ("--devices", "1GiB", "--memory", "2GiB", "--ctx", "64", "--parallel", "3")
    status, said, _ = command("plan", str(demo_model), *machine, "--json")
    answer: dict[str, Any] = json.loads(said)
    assert status == 0
    assert (answer["num_ctx"], answer["num_parallel"]) == (64, 3)
    assert [device["total_bytes"] for device in answer["machine"]] == [2 << 30, 1 << 30]


def test_the_help_of_serve_has_a_line_for_each_setting(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, said, _ = command("serve", "--help")
    first_words = [line.split()[0] for line in said.splitlines() if line.strip().startswith("SHALE_")]
    assert first_words == [row.names[0] for row in rows().values()]


def test_a_long_description_goes_on_below_itself() -> None:
    lines = settings_table(60).splitlines()
    assert max(map(len, lines)) <= 60
    start = lines[1].index("host:port")
    assert {len(line) - len(line.lstrip()) for line in lines[1:]} == {0, start}
    assert " ".join(" ".join(lines).split()).count("num_ctx where a request does not say; 0: the default (4096)") == 1
