"""The bar that shows while a model loads."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console

from server.cli.client import CommandError
from server.cli.progress import load_bar, progress_of
from server.cli.tables import loading
from tests.waiting import until


def answer(**progress: float) -> dict[str, Any]:
    return {"models": [{"name": name, "state": "loading", "progress": part} for name, part in progress.items()]}


class Asked:
    """Answers ``/api/ps`` from a script, its last line for ever; ``is_done`` once all of it was asked for."""

    def __init__(self, answers: Iterable[Any]) -> None:
        self.answers = list(answers)
        self.is_done = threading.Event()

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/api/ps"
        found = self.answers[0]
        if len(self.answers) > 1:
            self.answers.pop(0)
        else:
            self.is_done.set()
        if isinstance(found, Exception):
            raise found
        return dict(found)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_bar_shows_and_goes() -> None:
    console, asked = terminal(), Asked([answer(demo=0.0), answer(demo=0.25), answer(demo=0.5)])
    with load_bar(asked, "demo", console):
        assert asked.is_done.wait(60)
        until(lambda: "loading demo" in shown(console))  # it is drawn ten times a second
        until(lambda: "50%" in shown(console))
    end = shown(console)
    assert end.endswith("\x1b[2K")  # the line is erased, and the cursor is back at its beginning
    time.sleep(0.2)
    assert shown(console) == end


def test_a_loaded_model_shows_nothing() -> None:
    console, asked = terminal(), Asked([{"models": [{"name": "demo", "state": "ready", "progress": 1.0}]}])
    with load_bar(asked, "demo", console):
        assert asked.is_done.wait(60)
    assert shown(console) == ""


def test_a_server_that_does_not_answer_is_left_to_the_request() -> None:
    console, asked = terminal(), Asked([CommandError("gone")])
    with load_bar(asked, "demo", console):
        assert asked.is_done.wait(60)
    assert shown(console) == ""


def test_nobody_asks_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with load_bar(Asked([AssertionError("asked")]), "demo"):
        time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_an_error_passes_through_and_the_bar_goes() -> None:
    console, asked = terminal(), Asked([answer(demo=0.5)])

    def load() -> None:
        with load_bar(asked, "demo", console):
            assert asked.is_done.wait(60)
            raise CommandError("no memory")

    with pytest.raises(CommandError, match="no memory"):
        load()
    assert "load bar" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("name", ["tiny/llama", "Tiny/LLAMA", "tiny/llama:latest"])
def test_a_model_is_found_by_any_of_its_names(name: str) -> None:
    assert progress_of({"models": [{"name": "tiny/llama", "state": "loading", "progress": 0.5}]}, name) == 0.5


def test_another_models_load_is_not_this_ones() -> None:
    assert progress_of(answer(other=0.5), "demo") is None


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (0.0, "loading [                ] 0%"),
        (0.5, "loading [########        ] 50%"),
        (1.0, "loading [################] 100%"),
    ],
)
def test_a_bar_for_pipes(progress: float, text: str) -> None:
    assert loading(progress) == text
