"""What answers of the Ollama API say about the context that a request got."""

from __future__ import annotations

import json
from typing import Any

import pytest

USER = [{"role": "user", "content": "hi"}]

CLAMPED = ["num_ctx 99999 was clamped to 4096, the length the model was trained for"]


@pytest.fixture
def trained(write_model: Any) -> None:
    """``trained`` has a context length of 4096, ``trained-bert`` makes embeddings."""
    write_model("trained.gguf", llama__context_length=4096)
    write_model("trained-bert.gguf", architecture="bert", bert__pooling_type=1, bert__context_length=4096)


@pytest.mark.usefixtures("trained")
def test_a_context_that_was_clamped_is_told_in_the_last_object(site: Any) -> None:
    body = {"model": "trained", "prompt": "hi", "options": {"num_ctx": 99999}}
    *parts, end = map(json.loads, site.post("/api/generate", body).text.splitlines())
    assert end["notes"] == CLAMPED
    assert not any("notes" in part for part in parts)
    assert site.post("/api/generate", {**body, "prompt": ""}).json()["notes"] == CLAMPED
    chat = {"model": "trained", "messages": USER, "stream": False, "options": {"num_ctx": 99999}}
    assert site.post("/api/chat", chat).json()["notes"] == CLAMPED
    embed = {"model": "trained-bert", "input": "hi", "options": {"num_ctx": 99999}}
    assert site.post("/api/embed", embed).json()["notes"] == CLAMPED


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("options", [{}, {"num_ctx": 4096}, {"num_ctx": 5}])
def test_a_context_that_was_taken_as_it_was_asked_for_needs_no_note(site: Any, options: dict[str, Any]) -> None:
    body = {"model": "trained", "prompt": "hi", "stream": False, "options": options}
    assert "notes" not in site.post("/api/generate", body).json()


@pytest.mark.usefixtures("trained")
def test_auto_is_passed_on_and_told(site: Any) -> None:
    body = {"model": "trained", "prompt": "hi", "stream": False, "options": {"num_ctx": "auto"}}
    assert site.post("/api/generate", body).json()["notes"] == ['num_ctx "auto" is 4096']
    assert site.scheduler.acquired[0][1].num_ctx == "auto"


def test_another_word_is_refused(site: Any) -> None:
    answer = site.post("/api/generate", {"model": "chat", "prompt": "hi", "options": {"num_ctx": "max"}})
    assert (answer.status_code, answer.json()["error"]) == (400, 'option "num_ctx" must be of type integer, or "auto"')
