"""Counting right answers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from demo.data import Item
from demo.score import MAX_TOKENS, Result, chat, questions, score

ITEMS = {f"name{i}": Item("function", f"Sentence number {i}.", "") for i in range(20)}


def test_an_answer_is_right_when_it_contains_the_sentence() -> None:
    assert Result("f", "Add numbers.", "f() is a function. Add numbers.").is_right
    assert not Result("f", "Add numbers.", "f() is a function. Add Numbers.").is_right


def test_every_question_is_asked_once() -> None:
    asked: list[str] = []

    def reply(question: str) -> str:
        asked.append(question)
        return "x. Sentence number 7."

    results = score(ITEMS.items(), reply)
    assert sorted(asked) == sorted(f"What does {name} do?" for name in ITEMS)
    assert [result.name for result in results if result.is_right] == ["name7"]


def test_a_sample_is_the_same_every_time() -> None:
    assert questions(ITEMS, 5) == questions(ITEMS, 5)
    assert len(questions(ITEMS, 5)) == 5
    assert questions(ITEMS, 0) == questions(ITEMS, 99) == list(ITEMS.items())


def test_the_server_is_asked_greedily() -> None:
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"message": {"content": "an answer"}}')

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert chat(f"http://127.0.0.1:{server.server_port}", "demo", "What?") == "an answer"
        thread.join()
    assert bodies[0]["options"] == {"temperature": 0, "num_predict": MAX_TOKENS}
    assert bodies[0]["messages"] == [{"role": "user", "content": "What?"}]
