"""Measures how long a user waits: from ``shale serve`` to the first answer of the demo model.

    python -m tools.bench.start [ROUNDS]

Prints a line a round and the medians: until the server listens, until the first answer (the model is loaded for it),
and the time of ``import server.app`` in a Python of its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
POLL_INTERVAL_S = 0.01
TIMEOUT_S = 60.0
BODY = {
    "model": "shale-demo",
    "messages": [{"role": "user", "content": "What does textwrap.dedent do?"}],
    "stream": False,
    "options": {"temperature": 0},
}


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds."""

    listening: float
    answer: float
    importing: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    """Raises TimeoutError when nobody listens in time."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody listens on port {port}") from None
            time.sleep(POLL_INTERVAL_S)


def ask(port: int) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/chat", json.dumps(BODY).encode())
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return str(json.load(response)["message"]["content"])


def measure() -> Waits:
    """One start of the server, ended afterwards."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import server.app"], check=True, cwd=ROOT)
    importing = time.perf_counter() - started
    port = free_port()
    environment = os.environ | {"SHALE_HOST": f"127.0.0.1:{port}", "SHALE_MODELS": str(ROOT / "demo" / "models")}
    started = time.perf_counter()
    command = [sys.executable, "-m", "server", "serve"]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        listening = time.perf_counter() - started
        answer = ask(port)
        waited = time.perf_counter() - started
    finally:
        server.terminate()
        server.wait()
    if "Remove any common leading whitespace" not in answer:
        raise RuntimeError(f"the demo model answered {answer!r}")
    return Waits(listening, waited, importing)


def main() -> None:
    rounds = [measure() for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5)]
    for waits in rounds:
        print(f"listening {waits.listening:.2f} s, first answer {waits.answer:.2f} s, import {waits.importing:.2f} s")
    middle = [median(getattr(waits, name) for waits in rounds) for name in ("listening", "answer", "importing")]
    print("median: listening {:.2f} s, first answer {:.2f} s, import server.app {:.2f} s".format(*middle))


if __name__ == "__main__":
    main()
