"""Many requests to one model: shared prefixes, clients that leave, contexts that shift."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import ollama
import psutil
import pytest

LONG = "tiny/long"
WORDS = " ".join(f"word{i}" for i in range(600))


def cache_of(server: Any, model: str) -> dict[str, Any]:
    models = httpx.get(f"{server.url}/api/ps", trust_env=False).json()["models"]
    (found,) = [each["cache"] for each in models if each["name"].startswith(model)]
    return dict(found)


def wait_for(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(server: Any, prompt: str, **options: Any) -> dict[str, Any]:
    chosen = {"temperature": 0, "num_predict": 8, "ignore_eos": True, "num_ctx": 8192, **options}
    body = {"model": LONG, "prompt": prompt, "raw": True, "stream": False, "options": chosen}
    return dict(server.post("/api/generate", body).json())


@pytest.fixture(scope="module")
def tokens(server: Any) -> list[int]:
    """More than 4 000 tokens of a text, as text is what clients send."""
    answer = server.post("/api/tokenize", {"model": LONG, "text": WORDS})
    found = list(answer.json()["tokens"])
    assert 2000 < len(found) < 8000
    return found


def test_a_client_that_leaves_during_a_long_prompt_leaves_nothing_behind(server: Any, tokens: list[int]) -> None:
    ask(server, "warm", num_batch=16)
    cells_before = cache_of(server, LONG)["used"]
    (runner,) = [each for each in server.runners() if any("long" in part for part in each.cmdline())]
    body = {"model": LONG, "prompt": WORDS[::-1], "raw": True, "options": {"num_ctx": 8192, "num_batch": 16}}
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.Client(trust_env=False, timeout=httpx.Timeout(10, read=0.3)) as http,
    ):
        http.post(f"{server.url}/api/generate", json=body)
        raise AssertionError("the prompt is too short for this test")
    wait_for(lambda: cache_of(server, LONG)["used"] == cells_before, seconds=1)
    used = busy_s(runner)
    time.sleep(0.3)
    assert busy_s(runner) - used < 0.1


def busy_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def test_requests_with_one_long_prompt_share_it(server: Any, tokens: list[int]) -> None:
    first = ask(server, WORDS)
    before = cache_of(server, LONG)["prefix_hits"]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(server, WORDS), range(4)))
    assert {each["response"] for each in answers} == {first["response"]}
    assert {each["prompt_eval_cached"] for each in answers} == {len(tokens) - 1}
    assert cache_of(server, LONG)["prefix_hits"] == before + 4


def test_an_answer_goes_on_past_its_context(server: Any, client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 150, "ignore_eos": True, "num_ctx": 64}
    long = client.generate("tiny/llama", "abc", raw=True, options=options)
    assert (long.eval_count, long.done_reason) == (150, "length")
    body = {"model": "tiny/llama", "prompt": "abc", "raw": True, "stream": False, "shift": False, "options": options}
    short = server.post("/api/generate", body).json()
    assert short["done_reason"] == "length"
    assert short["eval_count"] < 150
    assert long.response.startswith(short["response"])
