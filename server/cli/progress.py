"""A bar on the terminal while the server loads a model, gone before anything else is printed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from server.cli.client import CommandError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

POLL_S = 0.1
"""Also how long a model may take to answer before anybody asks what it is doing: loaded ones never show a bar."""


class Asks(Protocol):
    def get(self, path: str) -> dict[str, Any]: ...


@contextmanager
def load_bar(client: Asks, model: str, console: Console | None = None) -> Iterator[None]:
    """Shows how far the load of ``model`` is for as long as the block runs; nothing where no terminal shows it.

    Without ``console`` it is drawn on standard error.
    """
    if console is None and not sys.stderr.isatty():
        yield
        return
    is_over = threading.Event()
    thread = threading.Thread(target=_watch, args=(client, model, console, is_over), name="load bar", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def progress_of(answer: dict[str, Any], model: str) -> float | None:
    """How far (0 … 1) the load of ``model`` is, from an answer of ``/api/ps``; None: it is not loading."""
    for each in answer["models"]:
        if _fold(each["name"]) == _fold(model) and each.get("state") == "loading":
            return float(each.get("progress", 0.0))
    return None


def _fold(name: str) -> str:
    return name.casefold().removesuffix(":latest")


def _watch(client: Asks, model: str, console: Console | None, is_over: threading.Event) -> None:
    bar: Progress | None = None
    try:
        while not is_over.wait(POLL_S):
            progress = progress_of(client.get("/api/ps"), model)
            if progress is not None:
                bar = bar or _open(model, console)
                bar.update(bar.task_ids[0], completed=progress)
            elif bar is not None:
                return
    except CommandError:
        return  # the request that waits for the model meets the same server and says what is wrong with it
    finally:
        if bar is not None:
            bar.stop()


def _open(model: str, console: Console | None) -> Progress:
    from rich import console as rich_console  # 60 ms, for those who have to wait anyway
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("loading {task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console or rich_console.Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.add_task(model, total=1.0)
    bar.start()
    return bar
