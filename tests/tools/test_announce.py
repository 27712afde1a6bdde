"""What ``make run`` prints when the server is ready."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tools.announce import first_model, is_answering, is_listening, try_line


class Answering(HTTPServer):
    """Has one status for every GET, and models."""

    status = 200
    models: tuple[dict[str, Any], ...] = ()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Answering)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps({"models": self.server.models}).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url_of(server: Answering) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_a_server_that_answers_is_seen(server: Answering) -> None:
    assert any(is_answering(url_of(server)) for _ in range(20))  # it has a second each time


def test_a_server_that_does_not_answer_well_is_not_ready(server: Answering) -> None:
    server.status = 503
    assert not is_answering(url_of(server))


def test_the_port_has_to_be_the_process_s_own(server: Answering) -> None:
    assert is_listening(os.getpid(), server.server_port)
    assert not is_listening(os.getppid(), server.server_port)


def test_nobody_answers_on_a_closed_port() -> None:
    with HTTPServer(("127.0.0.1", 0), Handler) as closed:
        url, port = f"http://127.0.0.1:{closed.server_port}", closed.server_port
    assert not is_answering(url)
    assert not is_listening(os.getpid(), port)


def test_the_line_is_one_curl_command_with_a_json_body() -> None:
    program, url, flag, body = shlex.split(try_line("http://127.0.0.1:1", "it's mine"))
    assert (program, url, flag) == ("curl", "http://127.0.0.1:1/api/chat", "-d")
    assert json.loads(body)["model"] == "it's mine"


EMBEDDER = {"name": "bert", "capabilities": ["embedding"]}
CHATTER = {"name": "mine", "capabilities": ["completion"]}


def test_the_model_is_the_first_that_completes_text(server: Answering) -> None:
    server.models = (EMBEDDER, CHATTER, {**CHATTER, "name": "older"})
    assert first_model(url_of(server)) == "mine"
    server.models = (EMBEDDER,)
    assert first_model(url_of(server)) is None


def announced(root: Path, host: str) -> subprocess.CompletedProcess[str]:
    """What is printed beside this very process, as if it were the server."""
    environment = {**os.environ, "SHALE_HOST": host, "SHALE_MODELS": "/my/models"}
    return subprocess.run(
        [sys.executable, "-m", "tools.announce"], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("models", "line"),
    [
        ((CHATTER,), 'curl {}/api/chat -d \'{{"model": "mine", '),
        ((), "Shale is ready; put a .gguf file into /my/models"),
    ],
)
def test_the_line_is_for_what_the_server_has(
    server: Answering, repository_root: Path, models: tuple[dict[str, Any], ...], line: str
) -> None:
    server.models = models
    said = announced(repository_root, f"127.0.0.1:{server.server_port}")
    assert line.format(url_of(server)) in said.stdout
    assert (said.returncode, said.stderr) == (0, "")


def test_a_bad_setting_is_left_to_the_server_to_tell(repository_root: Path) -> None:
    said = announced(repository_root, "nonsense:xx")
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
