"""The Ollama API's answers, field by field, and its errors, letter by letter."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from runner.protocol import RunnerStats
from scheduler.errors import QueueFullError, RunnerDiedError, RunnerUnreachableError
from scheduler.scheduler import ModelFile, ModelState
from tests.server.standin import END

USER = [{"role": "user", "content": "hi"}]


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_the_root_says_what_clients_look_for(site: Any) -> None:
    assert site.get("/").text == "Ollama is running"
    assert site.request("HEAD", "/").status_code == 200
    assert site.get("/health").status_code == 200
    assert set(site.get("/api/version").json()) == {"version"}


def test_generate_streams_unless_told_otherwise(site: Any) -> None:
    *parts, end = lines(site.post("/api/generate", {"model": "chat", "prompt": "hi"}))
    assert [part["response"] for part in parts] == ["he", "llo"]
    assert [part["done"] for part in parts] == [False, False]
    assert end["response"] == ""
    assert (end["done"], end["done_reason"]) == (True, "stop")
    assert end["context"] == [1, 2, 3, 7, 8]
    assert (end["prompt_eval_count"], end["prompt_eval_duration"]) == (3, 5)
    assert (end["eval_count"], end["eval_duration"]) == (2, 6)
    assert end["total_duration"] >= end["load_duration"] > 0


def test_times_are_rfc_3339_in_utc(site: Any) -> None:
    created_at = lines(site.post("/api/generate", {"model": "chat", "prompt": "hi"}))[0]["created_at"]
    assert created_at.endswith("Z")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(created_at)).total_seconds()) < 60


def test_generate_in_one_piece(site: Any) -> None:
    answer = site.post("/api/generate", {"model": "chat", "prompt": "hi", "stream": False}).json()
    assert (answer["model"], answer["response"], answer["done"]) == ("chat", "hello", True)


def test_generate_goes_through_the_template(site: Any) -> None:
    site.post("/api/generate", {"model": "chat", "prompt": "hi", "system": "be"})
    assert site.scheduler.requests[0].prompt == "<system>be<user>hi<assistant>"


def test_raw_and_files_without_template_do_not(site: Any) -> None:
    raw = lines(site.post("/api/generate", {"model": "chat", "prompt": "hi", "raw": True}))
    site.post("/api/generate", {"model": "plain", "prompt": "hi"})
    assert [request.prompt for request in site.scheduler.requests] == ["hi", "hi"]
    assert "context" not in raw[-1]


def test_context_comes_before_the_new_prompt(site: Any) -> None:
    site.post("/api/generate", {"model": "plain", "prompt": "hi", "context": [500, 501]})
    assert site.scheduler.requests[0].prompt == (500, 501, *b"hi")


def test_options_reach_the_sampler_and_the_loader(site: Any) -> None:
    options = {"temperature": 0, "seed": 5, "num_predict": 3, "stop": ["x"], "num_ctx": 64, "top_k": None}
    site.post("/api/generate", {"model": "chat", "prompt": "hi", "options": options, "keep_alive": "1m"})
    sampling = site.scheduler.requests[0].options
    assert (sampling.temperature, sampling.seed, sampling.num_predict, sampling.stop) == (0, 5, 3, ("x",))
    assert sampling.top_k == 40
    name, loading, keep_alive = site.scheduler.acquired[0]
    assert (name, loading.num_ctx, loading.num_batch, keep_alive) == ("chat", 64, None, 60)


def test_an_empty_prompt_loads_and_keep_alive_0_unloads(site: Any) -> None:
    loaded = site.post("/api/generate", {"model": "chat", "keep_alive": -1}).json()
    assert (loaded["response"], loaded["done"], loaded["done_reason"]) == ("", True, "load")
    assert site.scheduler.acquired[0][2] == math.inf
    unloaded = site.post("/api/chat", {"model": "chat", "messages": [], "keep_alive": 0}).json()
    assert unloaded["done_reason"] == "unload"
    assert site.scheduler.unloaded == ["chat"]


def test_chat_answers_with_a_message(site: Any) -> None:
    *parts, end = lines(site.post("/api/chat", {"model": "chat", "messages": USER}))
    assert [part["message"] for part in parts] == [
        {"role": "assistant", "content": "he"},
        {"role": "assistant", "content": "llo"},
    ]
    assert (end["message"]["content"], end["done_reason"]) == ("", "stop")
    assert "context" not in end


def test_logprobs_have_text_and_bytes_but_no_ids(site: Any) -> None:
    body = {"model": "chat", "messages": USER, "stream": False, "logprobs": True, "top_logprobs": 1}
    first = site.post("/api/chat", body).json()["logprobs"][0]
    assert first == {
        "token": "he", "logprob": -0.5, "bytes": [104, 101],
        "top_logprobs": [{"token": "he", "logprob": -0.5, "bytes": [104, 101]}],
    }  # fmt: skip
    assert site.scheduler.requests[0].top_logprobs == 1


def test_old_messages_are_left_out_and_the_answer_says_so(site: Any) -> None:
    site.scheduler.num_ctx = 60
    old = [{"role": role, "content": "x" * 20} for role in ("user", "assistant", "user", "assistant")]
    messages = [{"role": "system", "content": "be"}, *old, *USER]
    answer = site.post("/api/chat", {"model": "chat", "messages": messages, "stream": False}).json()
    assert bytes(site.scheduler.requests[0].prompt) == b"<system>be<assistant>" + b"x" * 20 + b"<user>hi<assistant>"
    assert answer["truncated_messages"] == 3


def test_an_answer_says_how_many_tokens_the_runner_cut_and_dropped(site: Any) -> None:
    site.scheduler.num_ctx = 10
    site.scheduler.script[-1] = END | {"truncated": 5, "shifted": 7}
    answer = site.post("/api/generate", {"model": "plain", "prompt": "x" * 15, "stream": False}).json()
    assert (answer["truncated_tokens"], answer["shifted_tokens"]) == (5, 7)
    assert site.scheduler.requests[0].num_ctx == 10


def test_prompt_tokens_from_the_cache_are_told_and_count_as_well(site: Any) -> None:
    for path, ask in (("/api/chat", {"messages": USER}), ("/api/generate", {"prompt": "hi"})):
        end = site.post(path, {"model": "chat", **ask, "stream": False}).json()
        assert (end["prompt_eval_count"], end["prompt_eval_cached"]) == (3, 1)
    site.scheduler.script[-1] = {**site.scheduler.script[-1], "prompt_eval_cached": 0}
    assert (
        site.post("/api/chat", {"model": "chat", "messages": USER, "stream": False}).json()["prompt_eval_cached"] == 0
    )


def test_num_keep_and_cache_prompt_reach_the_runner(site: Any) -> None:
    site.post("/api/chat", {"model": "chat", "messages": USER, "options": {"num_keep": 9, "cache_prompt": False}})
    site.post("/api/chat", {"model": "chat", "messages": USER})
    first, second = site.scheduler.requests
    assert (first.options.num_keep, first.cache_prompt) == (9, False)
    assert (second.options.num_keep, second.cache_prompt) == (4, True)


def test_truncate_false_reaches_the_runner(site: Any) -> None:
    site.post("/api/chat", {"model": "chat", "messages": USER, "truncate": False, "shift": False})
    site.post("/api/generate", {"model": "chat", "prompt": "hi"})
    asked = [(request.truncate, request.shift) for request in site.scheduler.requests]
    assert asked == [(False, False), (True, True)]


def test_embed_takes_one_text_or_many(site: Any) -> None:
    one = site.post("/api/embed", {"model": "embed", "input": "a"}).json()
    assert one["embeddings"] == [[0.6, 0.0, 0.8]]
    assert one["prompt_eval_count"] == 2
    assert len(site.post("/api/embed", {"model": "embed", "input": ["a", "b"]}).json()["embeddings"]) == 2
    assert site.scheduler.embeddings[1].inputs == ("a", "b")


def test_all_inputs_of_a_request_go_to_the_runner_in_one_call(site: Any) -> None:
    texts = [f"text {number}" for number in range(64)]
    assert len(site.post("/api/embed", {"model": "embed", "input": texts}).json()["embeddings"]) == 64
    assert len(site.post("/v1/embeddings", {"model": "embed", "input": texts}).json()["data"]) == 64
    assert [request.inputs for request in site.scheduler.embeddings] == [tuple(texts)] * 2


def test_embed_without_input_only_loads(site: Any) -> None:
    assert site.post("/api/embed", {"model": "embed", "input": ""}).json()["embeddings"] == []
    assert not site.scheduler.embeddings


def test_dimensions_cut_a_vector_and_keep_its_length(site: Any) -> None:
    body = {"model": "embed", "input": "a", "dimensions": 2}
    assert site.post("/api/embed", body).json()["embeddings"] == [[1.0, 0.0]]
    assert "the model has 3" in site.post("/api/embed", body | {"dimensions": 4}).json()["error"]


def test_the_older_embedding_route_is_not_normalised(site: Any) -> None:
    assert site.post("/api/embeddings", {"model": "embed", "prompt": "a"}).json() == {"embedding": [0.6, 0.0, 0.8]}
    assert site.scheduler.embeddings[0].normalize is False


def test_tokens_there_and_back(site: Any) -> None:
    tokens = site.post("/api/tokenize", {"model": "plain", "text": "hi"}).json()["tokens"]
    assert tokens == [104, 105]
    assert site.post("/api/detokenize", {"model": "plain", "tokens": tokens}).json()["text"] == "hi"


def test_tags_list_the_files(site: Any) -> None:
    models = {model["name"]: model for model in site.get("/api/tags").json()["models"]}
    assert set(models) == {"chat", "plain", "embed"}
    assert set(models["chat"]) >= {"name", "model", "modified_at", "size", "digest", "details"}
    assert models["chat"]["details"]["quantization_level"] == "F32"
    assert models["chat"]["details"]["families"] == ["llama"]


def test_ps_shows_what_is_loaded_even_if_its_file_has_gone(site: Any) -> None:
    (row,) = site.get("/api/ps").json()["models"]
    assert (row["size"], row["size_vram"], row["context_length"]) == (20, 0, 4096)
    assert row["expires_at"] == "2030-01-02T00:00:00Z"


def test_ps_shows_what_engines_do(site: Any) -> None:
    (row,) = site.get("/api/ps").json()["models"]
    assert row["sequences"] == {"active": 3, "waiting": 5, "parallel": 4}
    assert row["cache"] == {
        "cells": 1000, "used": 370, "free": 630, "shared": 40, "cached": 50, "fragmentation": 0.25,
        "defragmentations": 2, "moved_bytes": 4096, "prefixes": 6, "prefix_hits": 7, "prefix_misses": 8,
        "reused_tokens": 90,
    }  # fmt: skip
    site.scheduler.stats_answer = RunnerStats(num_parallel=1)  # a model that needs no cache
    (row,) = site.get("/api/ps").json()["models"]
    assert row["sequences"] == {"active": 0, "waiting": 0, "parallel": 1}
    assert "cache" not in row


def test_ps_does_without_a_runner_that_does_not_answer(site: Any) -> None:
    site.scheduler.stats_answer = RunnerUnreachableError("")
    (row,) = site.get("/api/ps").json()["models"]
    assert (row["size"], row["state"]) == (20, "ready")
    assert not {"cache", "sequences"} & set(row)


def test_ps_leaves_out_what_is_not_known_of_a_model_that_loads(site: Any) -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    digest = next(each["digest"] for each in site.get("/api/tags").json()["models"] if each["name"] == "chat")
    files = (ModelFile("chat", Path("/chat"), each, 1) for each in (digest, "of a file that was replaced"))
    site.scheduler.loading = [ModelState(file, "loading", 0.25, moment, None, None) for file in files]
    ready, loading, replaced = site.get("/api/ps").json()["models"]
    assert replaced["details"] == {}
    assert (ready["state"], ready["progress"]) == ("ready", 1.0)
    assert (loading["state"], loading["progress"], loading["expires_at"]) == ("loading", 0.25, "2030-01-01T00:00:00Z")
    assert loading["details"]["family"] == "llama"
    assert not {"size", "size_vram", "context_length", "devices"} & set(loading)
    assert [model.size for model in ollama.ProcessResponse(models=[ready, loading]).models] == [20, None]


def test_show_has_metadata_and_leaves_arrays_out_unless_verbose(site: Any) -> None:
    answer = site.post("/api/show", {"model": "chat"}).json()
    assert answer["model_info"]["general.architecture"] == "llama"
    assert answer["model_info"]["tokenizer.ggml.tokens"] is None
    assert "m.role" in answer["template"]
    assert answer["tensors"] == [{"name": "token_embd.weight", "type": "F32", "shape": [64, 3]}]
    verbose = site.post("/api/show", {"name": "chat:latest", "verbose": True}).json()
    assert verbose["model_info"]["tokenizer.ggml.tokens"] == ["<s>", "</s>", "a"]


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/generate", {"model": "nope", "prompt": "x"}, 404, "model 'nope' not found"),
        ("/api/generate", {"prompt": "x"}, 400, "model is required"),
        ("/api/generate", {"model": "", "keep_alive": 0}, 400, "model is required"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/show", {"model": "", "name": ""}, 400, "model is required"),
        ("/api/embed", {"input": "x"}, 400, "model is required"),
        ("/api/embeddings", {}, 400, "model is required"),
        ("/api/tokenize", {}, 400, "model is required"),
        ("/api/detokenize", {}, 400, "model is required"),
        ("/api/plan", {}, 400, "model is required"),
        ("/api/generate", {"model": "../x"}, 400, "invalid model name"),
        ("/api/chat", {"model": "nope", "messages": USER}, 404, "model 'nope' not found"),
        ("/api/chat", {"messages": USER}, 400, "model is required"),
        ("/api/show", {"model": "nope"}, 404, "model 'nope' not found"),
        ("/api/embed", {"model": "nope", "input": "x"}, 404, 'model "nope" not found, try pulling it first'),
        ("/api/embed", {"model": "embed", "input": [1]}, 400, "invalid input type"),
        ("/api/chat", {"model": "embed", "messages": USER}, 400, '"embed" does not support chat'),
        ("/api/generate", {"model": "embed", "prompt": "x"}, 400, '"embed" does not support generate'),
        ("/api/chat", {"model": "chat", "messages": USER, "think": True}, 400, '"chat" does not support thinking'),
        (
            "/api/generate",
            {"model": "chat", "prompt": "x", "options": {"top_k": "x"}},
            400,
            'option "top_k" must be of type integer',
        ),
        ("/api/tokenize", {"model": "chat"}, 400, "field 'text' is required"),
        (
            "/api/chat",
            {"model": "chat", "messages": "hi"},
            400,
            "field 'messages': input should be a valid list (found 'hi')",
        ),
        (
            "/api/generate",
            {"model": "chat", "options": []},
            400,
            "field 'options': input should be a valid object (found [])",
        ),
        (
            "/api/chat",
            {"model": "chat", "messages": USER, "top_logprobs": 2},
            400,
            "field 'top_logprobs' is only allowed with \"logprobs\": true",
        ),
        ("/api/generate", [], 400, "the request body must be a JSON object (found array)"),
    ],
)
def test_errors_have_ollamas_texts(site: Any, path: str, body: Any, status: int, text: str) -> None:
    response = site.post(path, body)
    assert (response.status_code, response.json()) == (status, {"error": text})


def test_a_body_must_be_there_and_be_json(site: Any) -> None:
    assert site.request("POST", "/api/chat").json() == {"error": "missing request body"}
    bad = site.request("POST", "/api/chat", content=b'{"model": ')
    assert bad.status_code == 400
    assert bad.json()["error"].startswith("invalid JSON: ")


def test_a_body_may_not_be_endless(site: Any) -> None:
    response = site.request("POST", "/api/generate", content=b" " * ((32 << 20) + 1))
    assert response.status_code == 413


def test_wrong_paths_and_methods_are_told_in_json(site: Any) -> None:
    assert site.get("/nothing").json() == {"error": "path '/nothing' not found"}
    wrong = site.get("/api/chat")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json() == {"error": "method GET not allowed"}


def test_a_failure_before_the_first_token_has_its_status(site: Any) -> None:
    site.scheduler.script = [RunnerDiedError("killed by signal 9")]
    response = site.post("/api/generate", {"model": "chat", "prompt": "x"})
    assert response.status_code == 500
    assert "killed by signal 9" in response.json()["error"]


@pytest.mark.parametrize("failure", [RunnerDiedError("oops"), {"error": "oops"}])
def test_a_failure_after_it_is_a_line(site: Any, failure: Any) -> None:
    site.scheduler.script = [site.scheduler.script[0], failure]
    first, last = lines(site.post("/api/generate", {"model": "chat", "prompt": "x"}))
    assert first["response"] == "he"
    assert set(last) == {"error"}
    assert "oops" in last["error"]
    assert site.scheduler.num_held == 0


def test_a_full_queue_is_503_with_a_time_to_try_again(site: Any) -> None:
    site.scheduler.error = QueueFullError()
    response = site.post("/api/chat", {"model": "chat", "messages": USER})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_a_defect_is_500_in_json(site: Any) -> None:
    site.scheduler.error = KeyError("surprise")
    response = site.post("/api/chat", {"model": "chat", "messages": USER})
    assert (response.status_code, response.json()["error"]) == (500, "internal error: KeyError: 'surprise'")


def test_strange_hosts_are_refused_and_local_pages_allowed(site: Any) -> None:
    assert site.get("/api/tags", headers={"host": "evil.example"}).status_code == 403
    allowed = site.get("/api/tags", headers={"origin": "http://localhost:3000"})
    assert allowed.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "access-control-allow-origin" not in site.get("/", headers={"origin": "http://evil.example"}).headers


def test_everything_is_given_back_at_the_end(site: Any) -> None:
    site.post("/api/generate", {"model": "chat", "prompt": "hi"})
    assert site.scheduler.num_held == 0
    assert all(stream.is_closed for stream in site.scheduler.streams)
