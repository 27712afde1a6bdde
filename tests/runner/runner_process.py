"""A real runner: its own process, an inherited socket, HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-this-test"
Lines = list[dict[str, Any]]


def environment(**changes: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SHALE_")}
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "SHALE_RUNNER_TOKEN": TOKEN, **changes}


def command(model: Path, fd: int) -> list[str]:
    return [sys.executable, "-P", "-m", "runner", "--model", str(model), "--fd", str(fd)]


def listening_socket() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


class RunnerProcess:
    """The process and a client that has the token."""

    def __init__(self, model: Path, log: Path, **changes: str) -> None:
        self.log = log
        with listening_socket() as listener, log.open("wb") as out:
            fd = listener.fileno()
            self.port: int = listener.getsockname()[1]
            self.process = subprocess.Popen(
                command(model, fd),
                pass_fds=(fd,),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(**changes),
            )
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=120)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.client.post(path, json=body)

    def load(self, **request: Any) -> None:
        """fit, alloc, commit, and until it is ready."""
        for operation in range(3):
            answer = self.post("/load", {"operation": operation, **request})
            assert answer.json()["success"], answer.text
        deadline = time.monotonic() + 120
        while (health := self.client.get("/health").json())["status"] != 0:
            assert health["status"] == 3, health
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def complete(self, prompt: str | list[int], *, request: dict[str, Any] | None = None, **options: Any) -> Lines:
        """All lines of an answer; greedy unless said otherwise."""
        body = {"prompt": prompt, "options": {"temperature": 0, **options}, **(request or {})}
        answer = self.post("/completion", body)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    def stats(self) -> dict[str, Any]:
        return dict(self.client.get("/stats").json())

    def abandon(self, prompt: str | list[int], when: Callable[[], object], **options: Any) -> None:
        """Ask for a completion and leave once ``when`` returns, whatever has arrived by then."""
        body = json.dumps({"prompt": prompt, "options": {"temperature": 0, **options}}).encode()
        head = (
            f"POST /completion HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(head.encode() + body)
            when()

    def output(self) -> str:
        return self.log.read_text()

    def end(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


@contextmanager
def running(model: Path, log: Path, load: dict[str, Any] | None = None, **changes: str) -> Iterator[RunnerProcess]:
    """A runner for the time of a with block; ``load`` (may be empty) loads the model too."""
    runner = RunnerProcess(model, log, **changes)
    try:
        if load is not None:
            runner.load(**load)
        yield runner
    finally:
        runner.end()


def text_of(lines: Lines) -> str:
    return "".join(line.get("content", "") for line in lines)


def tokens_of(lines: Lines) -> list[int]:
    return [token for line in lines for token in line.get("tokens", ())]
