"""The published ``ollama`` package against a running server."""

from __future__ import annotations

import time
from typing import Any

import httpx
import ollama
import pytest

DEMO = "shale-demo"
QUESTION = "What does textwrap.dedent do?"
GREEDY = {"temperature": 0}


def ask(client: ollama.Client, question: str = QUESTION, **more: Any) -> ollama.ChatResponse:
    options = {**GREEDY, **more.pop("options", {})}
    return client.chat(DEMO, messages=[{"role": "user", "content": question}], options=options, **more)


def test_the_demo_model_knows_the_standard_library(client: ollama.Client) -> None:
    answer = ask(client)
    assert "Remove any common leading whitespace" in (answer.message.content or "")
    assert (answer.done, answer.done_reason) == (True, "stop")
    assert answer.eval_count
    assert answer.prompt_eval_count
    assert answer.total_duration > answer.eval_duration > 0


def test_a_stream_is_the_same_answer_in_pieces(client: ollama.Client) -> None:
    parts = list(ask(client, stream=True))  # type: ignore[call-overload]
    assert len(parts) > 5
    assert [part.done for part in parts].count(True) == 1
    assert "".join(part.message.content for part in parts) == ask(client).message.content


def test_generate_goes_on_from_its_context(client: ollama.Client) -> None:
    first = client.generate(DEMO, QUESTION, options=GREEDY)
    assert first.response
    assert first.context
    second = client.generate(DEMO, "What does os.getcwd do?", context=first.context, options=GREEDY)
    assert second.context[: len(first.context)] == first.context
    assert second.prompt_eval_count > first.prompt_eval_count


def test_raw_text_is_continued(client: ollama.Client) -> None:
    answer = client.generate("tiny/llama", "abc", raw=True, options={**GREEDY, "num_predict": 4})
    assert answer.done_reason in ("length", "stop")
    assert answer.context is None


def test_a_seed_repeats_and_another_does_not(client: ollama.Client) -> None:
    def sample(seed: int) -> str:
        options = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "seed": seed, "num_predict": 24}
        return client.generate("tiny/llama", "abc", options=options).response

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(3)}) == 3


def test_a_stop_string_ends_the_answer_before_it(client: ollama.Client) -> None:
    whole = ask(client).message.content or ""
    stop = whole[10:22]  # runs across tokens
    cut = ask(client, options={"stop": [stop]})
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.done_reason == "stop"


def test_num_predict_is_a_number_of_tokens(client: ollama.Client) -> None:
    answer = ask(client, options={"num_predict": 3})
    assert (answer.eval_count, answer.done_reason) == (3, "length")


def test_logprobs_are_sorted_and_belong_to_the_answer(client: ollama.Client) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3, options={"num_predict": 6})
    assert len(answer.logprobs) == 6
    assert "".join(each.token for each in answer.logprobs) == answer.message.content
    for each in answer.logprobs:
        values = [top.logprob for top in each.top_logprobs]
        assert each.logprob <= 0
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert each.logprob == pytest.approx(values[0])  # greedy


def test_embeddings_have_length_one(client: ollama.Client) -> None:
    answer = client.embed("tiny/bert", ["abc", "abc", "something else"])
    first, same, other = answer.embeddings
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-4)
    assert first == same
    assert first != other
    assert answer.prompt_eval_count
    assert len(client.embeddings("tiny/bert", "abc").embedding) == len(first)


def test_models_are_listed_shown_and_loaded(client: ollama.Client) -> None:
    names = {model.model for model in client.list().models}
    assert {DEMO, "tiny/llama", "tiny/bert"} <= names
    assert "broken" not in names
    shown = client.show(f"{DEMO}:latest")
    assert (shown.details.family, shown.details.quantization_level) == ("llama", "Q8_0")
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.template
    ask(client, options={"num_predict": 1})
    (row,) = (model for model in client.ps().models if model.model == DEMO)
    assert row.size > 5_000_000
    assert row.expires_at.tzinfo is not None


def test_keep_alive_0_unloads(client: ollama.Client) -> None:
    client.generate("tiny/llama", "abc", keep_alive=0, options={"num_predict": 1})
    deadline = time.monotonic() + 5
    while any(model.model == "tiny/llama" for model in client.ps().models):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_empty_prompt_loads_and_unloads(client: ollama.Client) -> None:
    assert client.generate("tiny/llama").done_reason == "load"
    assert any(model.model == "tiny/llama" for model in client.ps().models)
    assert client.generate("tiny/llama", keep_alive=0).done_reason == "unload"
    assert not any(model.model == "tiny/llama" for model in client.ps().models)


@pytest.mark.parametrize(
    ("call", "status", "text"),
    [
        (lambda c: c.generate("nope", "x"), 404, "model 'nope' not found"),
        (lambda c: c.chat("nope", messages=[{"role": "user", "content": "x"}]), 404, "model 'nope' not found"),
        (lambda c: c.embed("nope", "x"), 404, 'model "nope" not found, try pulling it first'),
        (lambda c: c.show("nope"), 404, "model 'nope' not found"),
        (lambda c: c.embed(DEMO, "x"), 501, "this model does not support embeddings"),
        (lambda c: c.generate("tiny/bert", "x"), 400, '"tiny/bert" does not support generate'),
        (lambda c: c.chat(DEMO, messages=[], tools=[ollama.Tool()]), 400, "field 'tools' is not supported yet"),
        (
            lambda c: c.generate(DEMO, "x", format="json"),
            400,
            "field 'format' (structured output) is not supported yet",
        ),
        (lambda c: c.chat(DEMO, messages=[], think=True), 400, '"shale-demo" does not support thinking'),
        (lambda c: c.generate(DEMO, "x", options={"top_p": 2.0}), 400, 'option "top_p" should be less than or equal'),
    ],
)
def test_errors_reach_the_client(client: ollama.Client, call: Any, status: int, text: str) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        call(client)
    assert caught.value.status_code == status
    assert caught.value.error.startswith(text)


def test_tokens_go_there_and_back(server: Any) -> None:
    text = "héllo, 世界 🙂"
    answer = server.post("/api/tokenize", {"model": DEMO, "text": text, "add_special": False})
    tokens = answer.json()["tokens"]
    assert len(tokens) > 3
    assert server.post("/api/detokenize", {"model": DEMO, "tokens": tokens}).json()["text"] == text


def test_bad_json_is_400(server: Any) -> None:
    response = httpx.post(f"{server.url}/api/generate", content=b"{model:", trust_env=False)
    assert response.status_code == 400
    assert response.json()["error"].startswith("invalid JSON")


def test_a_long_conversation_is_shortened_and_says_so(server: Any) -> None:
    old = [{"role": role, "content": "words " * 40} for role in ("user", "assistant") * 40]
    messages = [*old, {"role": "user", "content": QUESTION}]
    body = {"model": DEMO, "messages": messages, "stream": False, "options": GREEDY | {"num_predict": 8}}
    answer = server.post("/api/chat", body).json()
    assert answer["truncated_messages"] > 10
    assert answer["eval_count"] > 0
