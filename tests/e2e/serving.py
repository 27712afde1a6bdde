"""A real server: ``python -m server serve`` in a process of its own, on a port that it finds itself."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.waiting import until

# Limits for what takes a moment, where only a defect takes longer. A machine may well do nothing for seconds.
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
TIMEOUT_S = 120.0

LONG = "tiny/long"
ENDLESS: dict[str, Any] = {
    "model": LONG,
    "prompt": "abc",
    "raw": True,
    "options": {"num_ctx": 8192, "temperature": 0, "ignore_eos": True, "num_predict": 10**6},
}
"""An answer that goes on for ten contexts of this model: a minute or more, and 15 s on a very fast machine."""
ENDLESS_S = 15.0

KEPT = ("SHALE_KERNELS", "SHALE_CPU_ISA")  # the suite can be run on other kernels


class Server:
    """Starts at once; once it is up it has its ``url``. ``stop`` ends it and, by its own doing, its runners."""

    def __init__(self, root: Path, models: Path, log: Path, **settings: str) -> None:
        self.url = ""
        self.log = log
        self.environment = {name: value for name, value in os.environ.items() if name in KEPT or not is_setting(name)}
        self.environment |= {"SHALE_HOST": "127.0.0.1:0", "SHALE_MODELS": str(models), **settings}
        self.root = root
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server", "serve"], cwd=root, env=self.environment, stdout=output, stderr=output
            )

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if said := re.search(r"listens on (http://\S+)\n", self.log.read_text()):
                self.url = self.environment["SHALE_HOST"] = said[1]
                with suppress(httpx.TransportError):
                    self.get("/")
                    return
            time.sleep(0.05)
        raise AssertionError(f"the server did not come up: {self.log.read_text()}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(STOP_TIMEOUT_S)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=TIMEOUT_S, trust_env=False)

    def post(self, path: str, body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=TIMEOUT_S, trust_env=False)

    def asked(self, body: dict[str, Any]) -> Future[httpx.Response]:
        """A request under way, on a thread of its own. The answer, or the error of a connection that broke."""
        executor = ThreadPoolExecutor(1)
        future = executor.submit(self.post, "/api/generate", body)
        executor.shutdown(wait=False)
        return future

    @contextmanager
    def stream(self, path: str, body: object) -> Iterator[httpx.Response]:
        with httpx.stream("POST", self.url + path, json=body, timeout=TIMEOUT_S, trust_env=False) as response:
            yield response

    def leave(self, body: dict[str, Any], when: Callable[[], object]) -> None:
        """Asks, and closes the connection without an answer once ``when`` returns."""
        content = json.dumps(body).encode()
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /api/generate HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            when()

    def command(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs ``shale`` with these arguments against this server, ``text`` on its standard input."""
        return run_shale(self, self.environment, *arguments, text=text)

    def models(self) -> list[dict[str, Any]]:
        """What ``/api/ps`` lists."""
        return list(self.get("/api/ps").json()["models"])

    def runners(self) -> list[psutil.Process]:
        """The runner processes of this server."""
        return [child for child in psutil.Process(self.process.pid).children() if "runner" in command_line(child)]

    def unload(self, model: str) -> None:
        """Returns when it is gone, also where a request still uses it."""
        self.post("/api/generate", {"model": model, "keep_alive": 0})
        until(lambda: model not in {each["name"] for each in self.models()})

    def held_load(self, body: dict[str, Any], after_s: float = 0.0) -> tuple[Future[httpx.Response], psutil.Process]:
        """A request for a model that is not loaded, and its runner, which stands still before anything is loaded.

        ``after_s``: how long the runner may run before. One that was too quick is unloaded, and asked for again.
        """
        for _ in range(20):
            answer = self.asked(body)
            runner = until(lambda: runner_of(self, body["model"]))
            time.sleep(after_s)
            runner.suspend()
            # It stays so: what the runner had said before has been heard.
            if all(self._progress_of(body["model"]) == [("loading", 0.0)] for _ in range(3)):
                return answer, runner
            runner.resume()
            answer.result(TIMEOUT_S)
            self.unload(body["model"])
        raise AssertionError(f"{body['model']} is always loaded before its runner can be held")

    def _progress_of(self, model: str) -> list[tuple[str, float]]:
        return [(each["state"], each["progress"]) for each in self.models() if each["name"] == model]


def run_shale(
    server: Server, environment: dict[str, str], *arguments: str, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=server.root,
        env=environment,
        input=text or "",
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def command_line(process: psutil.Process) -> list[str]:
    """Empty for a process that has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill(process: psutil.Process) -> None:
    """Also one that has just ended."""
    with suppress(psutil.NoSuchProcess):
        process.kill()


def runner_of(server: Server, model: str) -> psutil.Process | None:
    found = [each for each in server.runners() if any(part.endswith(f"{model}.gguf") for part in command_line(each))]
    return found[0] if found else None


def is_setting(name: str) -> bool:
    return name.startswith(("SHALE_", "OLLAMA_"))
