"""Waits until the server that is being started answers, then prints one command to try. Used by ``make run``.

It is started beside the server and shares its parent's fate: when the process that started it is gone, it
leaves without a word. It does as well where the settings are wrong, for the server says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from server.settings import SettingError, Settings

POLL_INTERVAL_S = 0.05
TIMEOUT_S = 60.0
QUESTION = "What does textwrap.dedent do?"


def is_listening(pid: int, port: int) -> bool:
    """True when the process itself has the port: another server there, left from before, does not count."""
    try:
        sockets = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets)


def is_answering(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:  # urllib's errors are OSErrors
        return False


def first_model(url: str) -> str | None:
    """The name of a model that completes text, the newest; None without one. Raises OSError."""
    with urllib.request.urlopen(f"{url}/api/tags", timeout=TIMEOUT_S) as response:
        models: list[dict[str, Any]] = json.load(response)["models"]
    return next((model["name"] for model in models if "completion" in model["capabilities"]), None)


def try_line(url: str, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "stream": False}
    return f"curl {url}/api/chat -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"


def announcement(url: str, model: str | None, folder: Path) -> str:
    if model is None:
        return f"\nShale is ready; put a .gguf file into {folder}\n"
    return f"\nShale is ready. Try:\n\n  {try_line(url, model)}\n"


def main() -> None:
    try:
        settings = Settings.from_environment(os.environ)
    except SettingError:
        return
    url, port = settings.address.url, settings.address.port
    parent, deadline = os.getppid(), time.monotonic() + TIMEOUT_S
    while os.getppid() == parent and time.monotonic() < deadline:
        if is_listening(parent, port) and is_answering(url):
            with contextlib.suppress(OSError):  # the server is gone again
                print(announcement(url, first_model(url), settings.models), flush=True)
            return
        time.sleep(POLL_INTERVAL_S)


if __name__ == "__main__":
    main()
