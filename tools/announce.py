"""Waits until the server that is being started answers, then prints one command to try. Used by ``make run``.

It is started beside the server and shares its parent's fate: when the process that started it is gone, it
leaves without a word.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request

import psutil

from server.settings import Settings

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


def try_line(url: str) -> str:
    body = json.dumps({"model": "shale-demo", "messages": [{"role": "user", "content": QUESTION}], "stream": False})
    return f"curl {url}/api/chat -d '{body}'"


def main() -> None:
    address = Settings.from_environment(os.environ).address
    parent, deadline = os.getppid(), time.monotonic() + TIMEOUT_S
    while os.getppid() == parent and time.monotonic() < deadline:
        if is_listening(parent, address.port) and is_answering(address.url):
            print(f"\nShale is ready. Try:\n\n  {try_line(address.url)}\n", flush=True)
            return
        time.sleep(POLL_INTERVAL_S)


if __name__ == "__main__":
    main()
