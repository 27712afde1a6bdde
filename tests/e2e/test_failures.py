"""What happens when a runner dies or a client leaves."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from serving import ENDLESS, ENDLESS_S, LONG, TIMEOUT_S, kill

from tests.waiting import until


def loaded(server: Any) -> set[str]:
    return {model["name"] for model in server.models()}


def kill_runners(server: Any) -> None:
    for runner in server.runners():
        kill(runner)


def test_a_killed_runner_gives_an_error_line_and_the_next_request_works(server: Any) -> None:
    with server.stream("/api/generate", ENDLESS) as response:
        lines = response.iter_lines()
        assert "response" in json.loads(next(lines))
        kill_runners(server)
        *_, last = lines
    assert response.status_code == 200
    assert json.loads(last)["error"].startswith("an error was encountered while running the model")
    again = server.post("/api/generate", {"model": LONG, "prompt": "a", "stream": False, "options": {"num_predict": 1}})
    assert again.json()["done"] is True


def test_a_killed_runner_gives_an_event_on_the_other_route(server: Any) -> None:
    # No context is shifted on this route, so it takes several choices to go on for long.
    body = {
        "model": LONG,
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "ignore_eos": True,
        "num_ctx": 8192,
        "n": 32,
        "temperature": 0,
    }
    with server.stream("/v1/chat/completions", body) as response:
        lines = (line for line in response.iter_lines() if line)
        assert next(lines).startswith("data: ")
        assert next(lines).startswith("data: ")
        kill_runners(server)
        *_, last = lines
    assert "error" in json.loads(last.removeprefix("data: "))


def test_a_client_that_leaves_a_stream_frees_the_model(server: Any) -> None:
    body = {**ENDLESS, "keep_alive": 0}
    with server.stream("/api/generate", body) as response:
        lines = response.iter_lines()
        next(lines)
        assert LONG in loaded(server)
    until(lambda: LONG not in loaded(server), ENDLESS_S)


def test_a_client_that_does_not_wait_for_its_answer_frees_the_model(server: Any) -> None:
    server.post("/api/generate", {"model": LONG, "options": {"num_ctx": 8192}})
    body = {**ENDLESS, "keep_alive": 0, "stream": False}
    patience = httpx.Timeout(TIMEOUT_S, read=0.5)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/api/generate", json=body, timeout=patience, trust_env=False)
    until(lambda: LONG not in loaded(server), ENDLESS_S)


def test_a_file_that_is_dropped_in_can_be_used_at_once(server: Any, models: Any) -> None:
    (models / "late.gguf").symlink_to(models / "tiny" / "llama.gguf")
    try:
        body = {"model": "late", "prompt": "a", "stream": False, "options": {"num_predict": 1}}
        assert server.post("/api/generate", body).json()["done"] is True
    finally:
        (models / "late.gguf").unlink()
