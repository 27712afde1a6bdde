"""The published ``ollama`` package against a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests.waiting import until

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
    until(lambda: not any(model.model == "tiny/llama" for model in client.ps().models))


def test_an_empty_prompt_loads_and_unloads(client: ollama.Client) -> None:
    assert client.generate("tiny/llama").done_reason == "load"
    assert any(model.model == "tiny/llama" for model in client.ps().models)
    assert client.generate("tiny/llama", keep_alive=0).done_reason == "unload"
    assert not any(model.model == "tiny/llama" for model in client.ps().models)


@pytest.fixture
def narrow(server: Any) -> Any:
    """Asks the tiny model with a context of 32 tokens, which it has from the start; raw text, greedy, endless."""

    def ask(prompt: str, *, num_predict: int = -1, num_keep: int = 4, **more: Any) -> httpx.Response:
        options = {**GREEDY, "num_ctx": 32, "num_predict": num_predict, "num_keep": num_keep, "ignore_eos": True}
        body = {"model": "tiny/llama", "prompt": prompt, "raw": True, "stream": False, "options": options, **more}
        return server.post("/api/generate", body)

    server.unload("tiny/llama")
    yield ask
    server.unload("tiny/llama")


def test_the_context_is_shifted_unless_told_otherwise(narrow: Any) -> None:
    shifted = narrow("abc", num_predict=100).json()
    assert (shifted["eval_count"], shifted["done_reason"]) == (100, "length")
    assert shifted["shifted_tokens"] > 100 - 32
    fixed = narrow("abc", num_predict=100, shift=False).json()
    assert fixed["done_reason"] == "length"
    assert "shifted_tokens" not in fixed
    assert fixed["prompt_eval_count"] + fixed["eval_count"] == 33  # the last token needs no room
    assert shifted["response"].startswith(fixed["response"])


def test_an_answer_without_end_ends_at_ten_contexts(narrow: Any) -> None:
    endless = narrow("abc").json()
    assert (endless["eval_count"], endless["done_reason"]) == (320, "length")


@pytest.mark.parametrize("more", [{}, {"shift": False}, {"truncate": False}])
def test_a_context_is_the_same_on_a_model_that_is_loaded_with_more(
    client: ollama.Client, narrow: Any, server: Any, more: Any
) -> None:
    def answers() -> list[tuple[int, Any]]:
        found = [narrow(prompt, num_predict=60, **more) for prompt in ("abc", "abc " * 12, "abc " * 50)]
        counts = ("error", "response", "eval_count", "prompt_eval_count", "truncated_tokens", "shifted_tokens")
        return [(each.status_code, [each.json().get(name) for name in counts]) for each in found]

    before = answers()
    server.post("/api/generate", {"model": "tiny/llama", "options": {"num_ctx": 200}})
    assert {each.model: each.context_length for each in client.ps().models}["tiny/llama"] == 200
    assert answers() == before


def test_num_keep_is_part_of_the_answer(narrow: Any) -> None:
    answers = [narrow("abcdefgh", num_predict=80, num_keep=keep).json()["response"] for keep in (0, 8, 0)]
    assert answers[0] == answers[2]
    assert answers[0] != answers[1]


def test_a_long_prompt_is_cut_unless_told_otherwise(narrow: Any) -> None:
    cut = narrow("abc " * 50, num_predict=2).json()
    assert cut["truncated_tokens"] > 0
    assert cut["prompt_eval_count"] <= 32
    refused = narrow("abc " * 50, num_predict=2, truncate=False)
    assert refused.status_code == 400
    numbers = [int(word) for word in refused.json()["error"].replace(",", " ").split() if word.isdigit()]
    assert numbers == [cut["truncated_tokens"] + cut["prompt_eval_count"], 32]


def test_a_prompt_seen_before_comes_from_the_cache(server: Any) -> None:
    prompt = "This prompt is one that no other test has asked before. " * 4
    body = {"model": DEMO, "prompt": prompt, "raw": True, "stream": False, "options": GREEDY | {"num_predict": 4}}
    first, second = (server.post("/api/generate", body).json() for _ in range(2))
    assert first["prompt_eval_count"] == second["prompt_eval_count"]  # the full count, wherever the tokens came from
    assert first["prompt_eval_cached"] < 8
    assert second["prompt_eval_cached"] == second["prompt_eval_count"] - 1
    assert first["response"] == second["response"]
    body["options"]["cache_prompt"] = False
    assert server.post("/api/generate", body).json()["prompt_eval_cached"] == 0


@pytest.mark.parametrize("types", ["f16", "bf16", "f32", "q8_0", "q4_0", "q8_0,f16", ["f16", "q4_0"]])
def test_every_type_of_cache_answers(client: ollama.Client, types: Any) -> None:
    answer = ask(client, options={"kv_cache_type": types})
    assert "Remove any common leading whitespace" in (answer.message.content or "")


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
        (
            lambda c: c.generate("tiny/llama", "x", options={"kv_cache_type": "q8_0"}),
            400,
            "kv_cache_type: a cache of type q8_0 needs heads of a multiple of 32 values, found 16",
        ),
        (lambda c: c.generate(DEMO, "x", options={"kv_cache_type": "q9"}), 400, "kv_cache_type must be one of f16,"),
        (lambda c: c.generate(DEMO, "x", options={"top_p": 2.0}), 400, 'option "top_p" should be less than or equal'),
    ],
)
def test_errors_reach_the_client(client: ollama.Client, call: Any, status: int, text: str) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        call(client)
    assert caught.value.status_code == status
    assert caught.value.error.startswith(text)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("verb", "instead"),
    [
        ("pull", "copy a GGUF file into the folder"),
        ("push", "they are the GGUF files in the folder"),
        ("create", "copy a GGUF file into the folder"),
    ],
)
def test_what_to_do_instead_reaches_the_client(
    client: ollama.Client, models: Path, verb: str, instead: str, stream: bool
) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        list(getattr(client, verb)("llama3.2", stream=stream))
    assert caught.value.error == f"Shale does not {verb} models; {instead} {models} (SHALE_MODELS)"
    assert caught.value.status_code == 501


def test_copying_and_deleting_are_refused_as_well(client: ollama.Client, models: Path) -> None:
    with pytest.raises(ollama.ResponseError, match="Shale does not copy models; copy the GGUF file in the folder"):
        client.copy(DEMO, "mine")
    with pytest.raises(ollama.ResponseError, match=f"remove the GGUF file from the folder {models}"):
        client.delete(DEMO)
    assert any(model.model == DEMO for model in client.list().models)


def test_all_that_the_package_can_send_is_taken(client: ollama.Client) -> None:
    options = ollama.Options(
        numa=False, num_ctx=512, num_batch=64, num_gpu=1, main_gpu=0, low_vram=False, f16_kv=True, logits_all=False,
        vocab_only=False, use_mmap=True, use_mlock=False, num_thread=1, num_keep=4, seed=3, num_predict=2, top_k=5,
        top_p=1, tfs_z=1, typical_p=1, repeat_last_n=8, temperature=1, repeat_penalty=1, presence_penalty=0,
        frequency_penalty=0, mirostat=0, mirostat_tau=5, mirostat_eta=0.1, penalize_newline=True, stop=["zzz"],
    )  # fmt: skip
    more: Any = {"options": options, "keep_alive": 5, "think": False, "logprobs": True, "top_logprobs": 2}
    message = ollama.Message(role="user", content=QUESTION)
    assert client.chat(DEMO, messages=[message], tools=[], format=None, **more).eval_count == 2
    made = client.generate(
        DEMO, QUESTION, suffix="", system="be", template="", context=[], raw=False, images=[], **more
    )
    assert made.eval_count == 2
    answer = client.embed("tiny/bert", "abc", truncate=True, options=options, keep_alive="1m", dimensions=8)
    assert len(answer.embeddings[0]) == 8


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
