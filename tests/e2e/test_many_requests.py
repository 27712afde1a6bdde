"""Many requests to one model: shared prefixes, clients that leave, contexts that shift."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ollama
import pytest
from serving import ENDLESS, LONG, runner_of

from tests.waiting import rests, until

WORDS = " ".join(f"word{i}" for i in range(600))


def cache_of(server: Any, model: str) -> dict[str, Any]:
    return dict(until(lambda: cache_or_none(server, model)))


def cache_or_none(server: Any, model: str) -> dict[str, Any] | None:
    """None: its runner did not answer at once."""
    (found,) = [each.get("cache") for each in server.models() if each["name"].startswith(model)]
    return found


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


def num_prompts(server: Any) -> str:
    """How many prompts the runner has evaluated wholly."""
    count = re.compile(r'^shale_first_token_seconds_count{model="tiny/long"} (.*)$', re.MULTILINE)
    return str(until(lambda: count.search(server.get("/metrics").text))[1])


def test_a_client_that_leaves_during_a_long_prompt_leaves_nothing_behind(server: Any, tokens: list[int]) -> None:
    body = {**ENDLESS, "prompt": WORDS[::-1] + WORDS, "options": {**ENDLESS["options"], "num_batch": 1}}
    for _ in range(5):
        server.unload(LONG)
        ask(server, "warm", num_batch=1)  # token by token a prompt takes seconds
        runner = until(lambda: runner_of(server, LONG))
        before, cells = num_prompts(server), cache_of(server, LONG)["used"]
        server.leave(body, lambda cells=cells: until(lambda: cache_of(server, LONG)["used"] > cells))
        assert rests(runner)
        if num_prompts(server) == before:
            break  # else the client has left too late
    assert num_prompts(server) == before
    assert cache_of(server, LONG)["used"] == cells


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
