"""Requests: what clients really send is accepted, what Shale does not do is refused in a sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from server.schemas.base import Request, field_name, parameter_of, sentence_of
from server.schemas.ollama import ChatRequest, EmbedRequest, GenerateRequest, TokenizeRequest
from server.schemas.openai import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from server.schemas.plan import PlanRequest


def read(kind: Any, given: dict[str, Any]) -> Any:
    """The request, of a model where ``given`` names none."""
    return kind.model_validate({"model": "m", **given})


def refusal(kind: type[Request], given: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        read(kind, given)
    return sentence_of(caught.value)


def test_what_the_ollama_client_always_sends_is_accepted() -> None:
    given = {"model": "m", "messages": [], "tools": [], "format": "", "think": None, "keep_alive": -1, "options": {}}
    assert read(ChatRequest, given).keep_alive == math.inf


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        (GenerateRequest, {"suffix": "x"}, "field 'suffix' (fill in the middle) is not supported yet"),
        (GenerateRequest, {"images": ["x"]}, "field 'images' is not supported yet"),
        (GenerateRequest, {"format": "json"}, "field 'format' (structured output) is not supported yet"),
        (GenerateRequest, {"raw": True, "system": "x"}, "raw mode does not support template, system, or context"),
        (GenerateRequest, {"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        (GenerateRequest, {"prompt": 5}, "field 'prompt': input should be a valid string (found 5)"),
        (ChatRequest, {"tools": [{"type": "function"}]}, "field 'tools' is not supported yet"),
        (ChatRequest, {"messages": "x"}, "field 'messages': input should be a valid list (found 'x')"),
        (ChatRequest, {"messages": ["x"]}, "field 'messages[0]': input should be a valid object (found 'x')"),
        (GenerateRequest, {"options": []}, "field 'options': input should be a valid object (found [])"),
        (GenerateRequest, {"top_logprobs": 2}, "field 'top_logprobs' is only allowed with \"logprobs\": true"),
        (GenerateRequest, {"model": ""}, "model is required"),
        (
            ChatCompletionRequest,
            {"stream": True, "stream_options": []},
            "field 'stream_options': input should be a valid object (found [])",
        ),
        (CompletionRequest, {}, "field 'prompt' is required"),
        (CompletionRequest, {"prompt": "x", "echo": True}, "field 'echo' is not supported yet"),
        (CompletionRequest, {"prompt": "x", "best_of": 3}, "field 'best_of' is not supported yet"),
        (CompletionRequest, {"prompt": "x", "stop": [1]}, "field 'stop': must be a string or a list of strings"),
        (CompletionRequest, {"prompt": "x", "logit_bias": {"1": 5}}, "field 'logit_bias' is not supported yet"),
        (ChatCompletionRequest, {"tool_choice": "required"}, "field 'tool_choice' is not supported yet"),
        (ChatCompletionRequest, {"reasoning_effort": "high"}, "field 'reasoning_effort' is not supported yet"),
    ],
)
def test_what_is_not_done_is_refused_in_a_sentence(kind: type[Request], given: dict[str, Any], sentence: str) -> None:
    assert refusal(kind, given) == sentence


@pytest.mark.parametrize(
    ("kind", "given", "wanted"),
    [
        (ChatRequest, {"stream": "no"}, "boolean"),
        (ChatRequest, {"stream": 1}, "boolean"),
        (ChatRequest, {"logprobs": "yes"}, "boolean"),
        (ChatRequest, {"think": 1}, "must be true, false or a string"),
        (ChatRequest, {"logprobs": True, "top_logprobs": "1"}, "integer"),
        (GenerateRequest, {"context": [1, "2"]}, "integer"),
        (GenerateRequest, {"context": [1, 2.5]}, "integer"),
        (GenerateRequest, {"context": {"1": 2}}, "list"),
        (EmbedRequest, {"dimensions": "3"}, "integer"),
        (TokenizeRequest, {"text": "x", "add_special": "false"}, "boolean"),
        (ChatCompletionRequest, {"max_tokens": "1"}, "integer"),
        (ChatCompletionRequest, {"max_completion_tokens": True}, "integer"),
        (ChatCompletionRequest, {"n": "1"}, "integer"),
        (ChatCompletionRequest, {"n": 1.5}, "integer"),
        (ChatCompletionRequest, {"seed": 1e300}, "integer"),
        (ChatCompletionRequest, {"temperature": True}, "number"),
        (ChatCompletionRequest, {"temperature": "0"}, "number"),
        (ChatCompletionRequest, {"logprobs": 1}, "boolean"),
        (ChatCompletionRequest, {"user": 5}, "string"),
        (CompletionRequest, {"prompt": "x", "logprobs": True}, "integer"),
        (EmbeddingRequest, {"input": "x", "dimensions": False}, "integer"),
        (PlanRequest, {"options": "x"}, "object"),
    ],
)
def test_a_value_has_its_type(kind: type[Request], given: dict[str, Any], wanted: str) -> None:
    sentence = refusal(kind, given)
    *_, name = given
    assert sentence.startswith(f"field '{name}")
    assert wanted in sentence


def test_a_whole_number_may_be_written_with_a_point_and_a_number_without() -> None:
    body = read(ChatCompletionRequest, {"n": 2.0, "max_tokens": 5.0, "temperature": 1, "seed": -1.0, "top_k": 3.0})
    given = (body.n, body.max_tokens, body.temperature, body.seed, body.top_k)
    assert given == (2, 5, 1.0, -1, 3)
    assert list(map(type, given)) == [int, int, float, int, int]
    assert read(GenerateRequest, {"context": [1.0, 2]}).context == (1, 2)
    assert list(map(type, read(GenerateRequest, {"context": [1.0, 2]}).context)) == [int, int]


@pytest.mark.parametrize(("given", "seconds"), [(5, 5), (5.5, 5.5), ("5m", 300), (-1, math.inf), (None, None)])
@pytest.mark.parametrize("kind", [ChatRequest, ChatCompletionRequest])
def test_keep_alive_is_a_number_or_a_duration(kind: Any, given: Any, seconds: float | None) -> None:
    assert read(kind, {"keep_alive": given}).keep_alive == seconds


def test_the_list_of_known_names_is_whole_or_says_that_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(ChatCompletionRequest, {"tempreature": 1}).endswith(", prompt_cache_key")
    monkeypatch.setattr("server.schemas.base.MAX_NAMES_SHOWN", 2)
    sentence = refusal(ChatCompletionRequest, {"tempreature": 1})
    assert sentence == "unknown field 'tempreature'; known here: model, stream, …"


def test_the_go_template_is_refused_with_the_reason() -> None:
    assert "Go template" in refusal(GenerateRequest, {"template": "{{ .Prompt }}"})


def test_structured_output_is_refused_and_plain_text_accepted() -> None:
    assert "structured output" in refusal(ChatCompletionRequest, {"response_format": {"type": "json_object"}})
    assert read(ChatCompletionRequest, {"response_format": {"type": "text"}}).response_format is None


@pytest.mark.parametrize("kind", [ChatRequest, GenerateRequest, ChatCompletionRequest])
@pytest.mark.parametrize("given", [{"top_logprobs": 0}, {"top_logprobs": None}, {"logprobs": True, "top_logprobs": 2}])
def test_top_logprobs_need_logprobs_where_there_are_any(kind: Any, given: dict[str, Any]) -> None:
    assert read(kind, given).num_logprobs == (2 if "logprobs" in given else None)


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    sentence = refusal(GenerateRequest, {"num_ctx": 5})
    assert sentence.startswith("unknown field 'num_ctx'; known here: model, ")
    assert "options" in sentence


def test_the_parameter_of_an_error_is_its_field() -> None:
    with pytest.raises(ValidationError) as caught:
        read(ChatCompletionRequest, {"n": 0})
    assert parameter_of(caught.value) == "n"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["a", [1]], ("a", (1,))),
    ],
)
def test_the_forms_of_a_prompt(prompt: Any, prompts: tuple[Any, ...]) -> None:
    assert read(CompletionRequest, {"prompt": prompt}).prompt == prompts


@pytest.mark.parametrize("prompt", [[], [[]], [True], [-1], [1.5], {}, None, [1, "a"], [[1 << 40]]])
def test_other_forms_of_a_prompt_are_refused(prompt: Any) -> None:
    assert "'prompt'" in refusal(CompletionRequest, {"prompt": prompt})


def test_openai_defaults_differ_from_ollamas() -> None:
    sampling = read(ChatCompletionRequest, {}).sampling()
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 40)


def test_every_choice_has_a_seed_of_its_own() -> None:
    body = read(ChatCompletionRequest, {"seed": 7, "n": 3})
    assert [body.sampling(choice).seed for choice in range(3)] == [7, 8, 9]


def test_the_newer_token_limit_wins() -> None:
    body = read(ChatCompletionRequest, {"max_tokens": 5, "max_completion_tokens": 6})
    assert body.sampling().num_predict == 6


def test_shale_additions_reach_the_sampler() -> None:
    given = {"prompt": "x", "top_k": 3, "min_p": 0.5, "repeat_penalty": 1.5, "ignore_eos": True, "max_tokens": 9}
    sampling = read(CompletionRequest, given).sampling()
    assert (sampling.top_k, sampling.min_p, sampling.repeat_penalty) == (3, 0.5, 1.5)
    assert (sampling.ignore_eos, sampling.num_predict) == (True, 9)


def test_embedding_inputs_may_be_tokens() -> None:
    assert read(EmbeddingRequest, {"input": [1, 2]}).input == ((1, 2),)
    assert read(EmbedRequest, {"input": [1, 2]}).input == [1, 2]  # refused by the route, in Ollama's words


def test_places_in_a_request_are_written_as_in_javascript() -> None:
    assert field_name(("messages", 0, "role")) == "messages[0].role"
