"""The OpenAI API's answers: shapes, the order of events, logprobs in both forms, errors."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import httpx
import pytest
from standin import END

from scheduler.errors import RunnerDiedError, RunnerRequestError

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = [block.removeprefix("data: ") for block in response.text.split("\n\n") if block]
    return [block if block == "[DONE]" else json.loads(block) for block in blocks]


def test_chat_in_one_piece(site: Any) -> None:
    answer = site.post(CHAT, {"model": "chat", "messages": USER}).json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "hello"}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert answer["usage"] == {
        "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1},
    }  # fmt: skip


def test_a_chat_stream_has_the_role_first_the_reason_last_and_usage_when_asked(site: Any) -> None:
    body = {"model": "chat", "messages": USER, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events(site.post(CHAT, body))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "he"}, {"content": "llo"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 5)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in (*chunks, usage)}) == 1


def test_without_being_asked_there_is_no_usage(site: Any) -> None:
    chunks = events(site.post(CHAT, {"model": "chat", "messages": USER, "stream": True}))
    assert all("usage" not in chunk for chunk in chunks[:-1])


def test_chat_logprobs_have_openais_fields_and_ids(site: Any) -> None:
    body = {"model": "chat", "messages": USER, "logprobs": True, "top_logprobs": 1}
    first = site.post(CHAT, body).json()["choices"][0]["logprobs"]["content"][0]
    assert (first["token"], first["logprob"], first["bytes"], first["id"]) == ("he", -0.5, [104, 101], 7)
    assert first["top_logprobs"][0]["token"] == "he"


def test_text_goes_to_the_model_as_it_is(site: Any) -> None:
    answer = site.post(TEXT, {"model": "chat", "prompt": "hi"}).json()
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", "hello")
    assert site.scheduler.requests[0].prompt == "hi"


def test_tokens_go_to_the_model_as_they_are(site: Any) -> None:
    site.post(TEXT, {"model": "chat", "prompt": [5, 6]})
    assert site.scheduler.requests[0].prompt == (5, 6)


def test_text_logprobs_are_lists_and_ids_stand_beside_them(site: Any) -> None:
    body = {"model": "chat", "prompt": "hi", "logprobs": 1, "return_token_ids": True}
    choice = site.post(TEXT, body).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["he", "llo"]
    assert logprobs["token_logprobs"] == [-0.5, -0.5]
    assert logprobs["top_logprobs"] == [{"he": -0.5}, {"llo": -0.5}]
    assert logprobs["text_offset"] == [0, 2]
    assert [token["id"] for token in logprobs["content"]] == [7, 8]
    assert choice["token_ids"] == [7, 8]


def test_offsets_go_on_from_chunk_to_chunk(site: Any) -> None:
    *chunks, _ = events(site.post(TEXT, {"model": "chat", "prompt": "hi", "logprobs": 0, "stream": True}))
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks[:2]] == [[0], [2]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_prompts_times_choices_in_order(site: Any) -> None:
    answer = site.post(TEXT, {"model": "chat", "prompt": ["a", "b"], "n": 2, "seed": 5}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    asked = [(request.prompt, request.options.seed) for request in site.scheduler.requests]
    assert asked == [("a", 5), ("a", 6), ("b", 5), ("b", 6)]
    assert answer["usage"]["prompt_tokens"] == 6  # each prompt once
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


@pytest.mark.parametrize(("path", "asks"), [(CHAT, {"messages": USER}), (TEXT, {"prompt": "hi"})])
@pytest.mark.parametrize("stream", [True, False])
def test_choices_run_side_by_side(site: Any, path: str, asks: Any, stream: bool) -> None:
    num_running = []
    site.scheduler.script.insert(
        2, lambda: num_running.append(sum(not each.is_closed for each in site.scheduler.streams))
    )
    body = {"model": "chat", **asks, "n": 3, "stream": stream, "stream_options": {"include_usage": True}}
    if not stream:
        del body["stream_options"]
    answer = site.post(path, body)
    assert num_running == [3, 3, 3]
    if stream:
        *chunks, end, _ = events(answer)
        texts = {0: "", 1: "", 2: ""}
        for choice in (chunk["choices"][0] for chunk in chunks):
            texts[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content", "")
        assert texts == {0: "hello", 1: "hello", 2: "hello"}
    else:
        end = answer.json()
        assert [choice["index"] for choice in end["choices"]] == [0, 1, 2]
    assert (end["usage"]["prompt_tokens"], end["usage"]["completion_tokens"]) == (3, 6)


def test_a_request_does_not_fill_the_queue_of_a_model(site: Any) -> None:
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, sum(not each.is_closed for each in site.scheduler.streams))

    site.scheduler.num_parallel = 3
    site.scheduler.script.insert(1, look)
    assert len(site.post(TEXT, {"model": "chat", "prompt": "hi", "n": 128}).json()["choices"]) == 128
    assert most == 6


def test_a_prompt_with_several_choices_is_counted_once(site: Any) -> None:
    site.post(TEXT, {"model": "chat", "prompt": ["a", "b"], "n": 3})
    text = site.get("/metrics").text
    assert 'shale_prompt_tokens_total{model="chat"} 6.0' in text
    assert 'shale_generated_tokens_total{model="chat"} 12.0' in text


def test_what_no_choice_computed_came_from_the_cache(site: Any) -> None:
    ends = [{**END, "prompt_eval_cached": cached} for cached in (2, 0, 2)]
    site.scheduler.script = [lambda: ends.pop(0)]
    usage = site.post(TEXT, {"model": "chat", "prompt": "a", "n": 3}).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


def test_one_choice_that_fails_ends_all(site: Any) -> None:
    failures = [RunnerDiedError("oops")]
    site.scheduler.script.insert(1, lambda: failures.pop() if failures else None)
    response = site.post(CHAT, {"model": "chat", "messages": USER, "n": 4})
    assert response.status_code == 500
    assert "oops" in response.json()["error"]["message"]
    assert all(stream.is_closed for stream in site.scheduler.streams)
    assert site.scheduler.num_held == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"n": 0}, "field 'n': input should be greater than or equal to 1 (found 0)"),
        ({"n": 129}, "field 'n': input should be less than or equal to 128 (found 129)"),
        ({"prompt": ["a"] * 17, "n": 128}, "17 prompts with n 128 are 2176 completions; at most 2048 are allowed "),
    ],
)
def test_the_number_of_choices_has_limits(site: Any, body: Any, message: str) -> None:
    response = site.post(TEXT, {"model": "chat", "prompt": "a", **body})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)


def test_the_role_comes_once_for_every_choice(site: Any) -> None:
    *chunks, _ = events(site.post(CHAT, {"model": "chat", "messages": USER, "n": 2, "stream": True}))
    roles = [chunk["choices"][0]["index"] for chunk in chunks if "role" in chunk["choices"][0]["delta"]]
    assert roles == [0, 1]


def test_nothing_is_cut_silently_on_this_route(site: Any) -> None:
    site.post(CHAT, {"model": "chat", "messages": USER})
    assert (site.scheduler.requests[0].truncate, site.scheduler.requests[0].shift) == (False, False)


def test_context_and_keep_alive_can_be_set(site: Any) -> None:
    site.post(CHAT, {"model": "chat", "messages": USER, "num_ctx": 128, "keep_alive": "2m"})
    assert site.scheduler.acquired[0][1].num_ctx == 128
    assert site.scheduler.acquired[0][2] == 120


def test_embeddings_as_floats_and_as_base64(site: Any) -> None:
    floats = site.post("/v1/embeddings", {"model": "embed", "input": ["a", "b"]}).json()
    assert floats["data"][1] == {"object": "embedding", "index": 1, "embedding": [0.6, 0.0, 0.8]}
    assert floats["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    coded = site.post("/v1/embeddings", {"model": "embed", "input": "a", "encoding_format": "base64"}).json()
    values = struct.unpack("<3f", base64.b64decode(coded["data"][0]["embedding"]))
    assert values == pytest.approx((0.6, 0.0, 0.8))


def test_models_are_listed_and_found_by_name(site: Any) -> None:
    names = [model["id"] for model in site.get("/v1/models").json()["data"]]
    assert sorted(names) == ["chat", "embed", "plain"]
    assert site.get("/v1/models/chat").json()["object"] == "model"


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        (CHAT, {"model": "chat", "messages": []}, 400, ("[] is too short - 'messages'", "messages")),
        (CHAT, {"model": "nope", "messages": USER}, 404, ("model 'nope' not found", "model")),
        (TEXT, {"model": "chat", "prompt": "x", "echo": True}, 400, ("field 'echo' is not supported yet", "echo")),
        (
            TEXT,
            {"model": "chat", "prompt": "x", "num_ctx": 1},
            400,
            ('option "num_ctx" must be at least 4 (found 1)', "num_ctx"),
        ),
        (
            "/v1/embeddings",
            {"model": "embed", "input": "x", "num_ctx": "big"},
            400,
            ('option "num_ctx" must be of type integer, or "auto"', "num_ctx"),
        ),
        (CHAT, {}, 400, ("model is required", "model")),
        (TEXT, {"prompt": "x"}, 400, ("model is required", "model")),
        ("/v1/embeddings", {"model": "", "input": "x"}, 400, ("model is required", "model")),
        (
            CHAT,
            {"model": "chat", "messages": USER, "top_logprobs": 2},
            400,
            ("field 'top_logprobs' is only allowed with \"logprobs\": true", "top_logprobs"),
        ),
        (
            CHAT,
            {"model": "chat", "messages": USER, "stream_options": {"include_usage": True}},
            400,
            ("field 'stream_options' is only allowed with \"stream\": true", "stream_options"),
        ),
        (
            TEXT,
            {"model": "chat", "prompt": "x", "stream": False, "stream_options": {}},
            400,
            ("field 'stream_options' is only allowed with \"stream\": true", "stream_options"),
        ),
        (
            CHAT,
            {"model": "chat", "messages": USER, "stream": "no"},
            400,
            ("field 'stream': input should be a valid boolean (found 'no')", "stream"),
        ),
    ],
)
def test_errors_have_openais_shape(site: Any, path: str, body: Any, status: int, error: tuple[str, str | None]) -> None:
    response = site.post(path, body)
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    message, param = error
    assert response.status_code == status
    assert response.json() == {"error": {"message": message, "type": kind, "param": param, "code": None}}


def test_what_a_model_cannot_do_is_no_fault_of_the_server(site: Any) -> None:
    site.scheduler.error = RunnerRequestError(501, "this model does not support embeddings")
    response = site.post("/v1/embeddings", {"model": "chat", "input": "x"})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert response.json()["error"]["message"] == "this model does not support embeddings"
    assert site.post("/api/embed", {"model": "chat", "input": "x"}).status_code == 501  # Ollama's


@pytest.mark.parametrize("more", [{"top_logprobs": 0}, {"top_logprobs": None}, {"stream_options": None}])
def test_a_field_that_asks_for_nothing_needs_no_other(site: Any, more: Any) -> None:
    assert site.post(CHAT, {"model": "chat", "messages": USER, **more}).status_code == 200


def test_a_model_that_is_not_there_is_404(site: Any) -> None:
    response = site.get("/v1/models/some/thing")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "model 'some/thing' not found"


def test_a_failure_in_a_stream_is_an_event_and_there_is_no_done(site: Any) -> None:
    site.scheduler.script = [site.scheduler.script[0], RunnerDiedError("oops")]
    *_, last = events(site.post(CHAT, {"model": "chat", "messages": USER, "stream": True}))
    assert last["error"]["type"] == "api_error"
    assert "oops" in last["error"]["message"]


def test_what_became_of_the_context_is_told_once(site: Any, write_model: Any) -> None:
    write_model("trained.gguf", llama__context_length=4096)
    note = ["num_ctx 99999 was clamped to 4096, the length the model was trained for"]
    body = {"model": "trained", "messages": [{"role": "user", "content": "hi"}], "num_ctx": 99999, "n": 2}
    assert site.post("/v1/chat/completions", body).json()["notes"] == note
    stream = site.post("/v1/completions", {"model": "trained", "prompt": "hi", "num_ctx": "auto", "stream": True}).text
    assert stream.count('"notes":["num_ctx \\"auto\\" is 4096"]') == 1
    assert site.scheduler.acquired[-1][1].num_ctx == "auto"
