"""A real server: ``python -m server serve`` in a process of its own, on a port that is free."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
KEPT = ("SHALE_KERNELS", "SHALE_CPU_ISA")  # the suite can be run on other kernels


class Server:
    """Starts at once; ``stop`` ends it and, by its own doing, its runners."""

    def __init__(self, root: Path, models: Path, log: Path, **settings: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = log
        self.environment = {name: value for name, value in os.environ.items() if name in KEPT or not is_setting(name)}
        self.environment |= {"SHALE_HOST": self.url, "SHALE_MODELS": str(models), **settings}
        self.root = root
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server", "serve"], cwd=root, env=self.environment, stdout=output, stderr=output
            )

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                httpx.get(self.url, trust_env=False)
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError(f"the server did not come up: {self.log.read_text()}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(STOP_TIMEOUT_S)

    def post(self, path: str, body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=30, trust_env=False)

    def command(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs ``shale`` with these arguments against this server, ``text`` on its standard input."""
        command = [sys.executable, "-m", "server", *arguments]
        return subprocess.run(
            command, cwd=self.root, env=self.environment, input=text or "", capture_output=True, text=True, timeout=30
        )

    def runners(self) -> list[psutil.Process]:
        """The runner processes of this server."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "runner" in child.cmdline()]


def is_setting(name: str) -> bool:
    return name.startswith(("SHALE_", "OLLAMA_"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
