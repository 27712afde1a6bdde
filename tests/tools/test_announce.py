"""The line that ``make run`` prints when the server is ready."""

from __future__ import annotations

import json
import os
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tools.announce import is_answering, is_listening, try_line


class Answering(HTTPServer):
    """Has one status for every GET."""

    status = 200


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Answering)
        self.send_response(self.server.status)
        self.end_headers()

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
    assert is_answering(url_of(server))


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
    program, url, flag, body = shlex.split(try_line("http://127.0.0.1:1"))
    assert (program, url, flag) == ("curl", "http://127.0.0.1:1/api/chat", "-d")
    assert json.loads(body)["model"] == "shale-demo"
