"""What happens when a runner dies or a client leaves."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx

ENDLESS = {"temperature": 0, "ignore_eos": True, "num_predict": 100_000}
DEMO = "shale-demo"
PROMPT = {"model": DEMO, "prompt": "What does os.getcwd do?"}


def wait_for(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def loaded(server: Any) -> set[str]:
    models = httpx.get(f"{server.url}/api/ps", trust_env=False).json()["models"]
    return {model["name"] for model in models}


def kill_runners(server: Any) -> None:
    for runner in server.runners():
        runner.kill()


def test_a_killed_runner_gives_an_error_line_and_the_next_request_works(server: Any) -> None:
    body = {**PROMPT, "options": ENDLESS}
    with httpx.stream("POST", f"{server.url}/api/generate", json=body, timeout=30, trust_env=False) as response:
        lines = response.iter_lines()
        assert "response" in json.loads(next(lines))
        kill_runners(server)
        *_, last = lines
    assert response.status_code == 200
    assert json.loads(last)["error"].startswith("an error was encountered while running the model")
    again = server.post("/api/generate", {**PROMPT, "stream": False, "options": {"temperature": 0}})
    assert again.json()["done_reason"] == "stop"


def test_a_killed_runner_gives_an_event_on_the_other_route(server: Any) -> None:
    messages = [{"role": "user", "content": "x"}]
    body = {
        "model": DEMO,
        "messages": messages,
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 100_000,
        "temperature": 0,
    }
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=30, trust_env=False) as response:
        lines = (line for line in response.iter_lines() if line)
        assert next(lines).startswith("data: ")
        assert next(lines).startswith("data: ")
        kill_runners(server)
        *_, last = lines
    assert "error" in json.loads(last.removeprefix("data: "))


def test_a_client_that_leaves_a_stream_frees_the_model(server: Any) -> None:
    body = {**PROMPT, "options": ENDLESS, "keep_alive": 0}
    with httpx.stream("POST", f"{server.url}/api/generate", json=body, timeout=30, trust_env=False) as response:
        lines = response.iter_lines()
        next(lines)
        assert DEMO in loaded(server)
    wait_for(lambda: DEMO not in loaded(server))


def test_a_client_that_does_not_wait_for_its_answer_frees_the_model(server: Any) -> None:
    server.post("/api/generate", {"model": DEMO, "stream": False})
    body = {**PROMPT, "options": ENDLESS, "keep_alive": 0, "stream": False}
    try:
        httpx.post(f"{server.url}/api/generate", json=body, timeout=0.5, trust_env=False)
    except httpx.ReadTimeout:
        pass
    else:
        raise AssertionError("the answer should have taken longer")
    wait_for(lambda: DEMO not in loaded(server))


def test_a_file_that_is_dropped_in_can_be_used_at_once(server: Any, models: Any) -> None:
    (models / "late.gguf").symlink_to(models / "tiny" / "llama.gguf")
    try:
        body = {"model": "late", "prompt": "a", "stream": False, "options": {"num_predict": 1}}
        assert server.post("/api/generate", body).json()["done"] is True
    finally:
        (models / "late.gguf").unlink()
