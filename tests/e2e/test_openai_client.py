"""The published ``openai`` package against a running server."""

from __future__ import annotations

from typing import Any

import openai
import pytest

DEMO = "shale-demo"
MESSAGES: Any = [{"role": "user", "content": "What does textwrap.dedent do?"}]


def test_chat(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model=DEMO, messages=MESSAGES, temperature=0)
    (choice,) = answer.choices
    assert "Remove any common leading whitespace" in (choice.message.content or "")
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_streamed(openai_client: openai.OpenAI) -> None:
    whole = openai_client.chat.completions.create(model=DEMO, messages=MESSAGES, temperature=0)
    stream = openai_client.chat.completions.create(
        model=DEMO, messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert [chunk.choices[0].delta.role for chunk in chunks].count("assistant") == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_chat_logprobs(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model=DEMO, messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=2, max_completion_tokens=4
    )
    content = answer.choices[0].logprobs.content
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    assert all(bytes(token.bytes).decode() == token.token for token in content)
    assert all(len(token.top_logprobs) == 2 for token in content)
    assert answer.choices[0].finish_reason == "length"


def test_completion_of_text_and_of_its_tokens_is_the_same(openai_client: openai.OpenAI, server: Any) -> None:
    text = "The function returns"
    tokens = server.post("/api/tokenize", {"model": DEMO, "text": text}).json()["tokens"]
    settings: Any = {"model": DEMO, "temperature": 0, "max_tokens": 8}
    by_text = openai_client.completions.create(prompt=text, **settings)
    by_tokens = openai_client.completions.create(prompt=tokens, **settings)
    assert by_text.choices[0].text == by_tokens.choices[0].text
    assert by_text.usage.prompt_tokens == len(tokens)


def test_completion_logprobs_are_lists(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(model=DEMO, prompt="a", temperature=0, max_tokens=4, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 4
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert all(token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True))


def test_several_prompts_and_choices(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(
        model="tiny/llama", prompt=["a", "b"], n=2, seed=3, temperature=1.5, max_tokens=6
    )
    texts = [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]
    assert len(texts) == 4
    assert texts[0] != texts[1]


def test_choice_i_is_what_the_seed_plus_i_gives_alone(openai_client: openai.OpenAI) -> None:
    settings: Any = {"model": "tiny/llama", "prompt": "abc", "temperature": 1.5, "max_tokens": 12}
    together = openai_client.completions.create(n=4, seed=10, **settings)
    alone = [openai_client.completions.create(seed=10 + i, **settings).choices[0].text for i in range(4)]
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in together.choices] == alone
    assert len(set(alone)) == 4
    assert together.usage.prompt_tokens == 3
    assert together.usage.completion_tokens <= 48


def test_choices_of_a_chat_come_interleaved_in_a_stream(openai_client: openai.OpenAI, server: Any) -> None:
    server.post("/api/generate", {"model": DEMO, "options": {"num_parallel": 4}})
    settings: Any = {"model": DEMO, "messages": MESSAGES, "temperature": 1.2, "seed": 3, "n": 4, "max_tokens": 200}
    settings["extra_body"] = {"ignore_eos": True}  # long enough for all of them to be seen under way
    whole = openai_client.chat.completions.create(**settings)
    stream = openai_client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    texts, order, roles = ["", "", "", ""], [], []
    for (choice,) in (chunk.choices for chunk in chunks):
        texts[choice.index] += choice.delta.content or ""
        order.append(choice.index)
        roles += [choice.index] if choice.delta.role else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert sorted(roles) == [0, 1, 2, 3]
    assert order != sorted(order)
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_more_choices_than_sequences(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(model="tiny/llama", prompt=["a", "b"], n=20, seed=1, max_tokens=3)
    assert [choice.index for choice in answer.choices] == list(range(40))
    with pytest.raises(openai.BadRequestError, match="'n': input should be less than or equal to 128") as caught:
        openai_client.completions.create(model="tiny/llama", prompt="a", n=129)
    assert caught.value.param == "n"


def test_a_prompt_seen_before_comes_from_the_cache(openai_client: openai.OpenAI) -> None:
    settings: Any = {"model": DEMO, "temperature": 0, "max_tokens": 4}
    prompt = "A prompt of its own, for which nothing is cached before this test has asked. " * 4
    first = openai_client.completions.create(prompt=prompt, **settings)
    second = openai_client.completions.create(prompt=prompt, **settings)
    assert first.usage.prompt_tokens_details.cached_tokens < 8
    assert second.usage.prompt_tokens_details.cached_tokens == second.usage.prompt_tokens - 1
    assert second.choices[0].text == first.choices[0].text
    apart = openai_client.completions.create(prompt=prompt, extra_body={"cache_prompt": False}, **settings)
    assert apart.usage.prompt_tokens_details.cached_tokens == 0
    assert apart.choices[0].text == first.choices[0].text
    *_, last = openai_client.chat.completions.create(
        model=DEMO, messages=MESSAGES, max_tokens=1, stream=True, stream_options={"include_usage": True}
    )
    assert last.usage.prompt_tokens_details is not None


def test_choices_share_their_prompt(openai_client: openai.OpenAI) -> None:
    prompt = "Another prompt of its own, whose choices are asked for before it was ever seen. " * 4
    answer = openai_client.completions.create(model=DEMO, prompt=prompt, n=4, max_tokens=4)
    assert answer.usage.prompt_tokens_details.cached_tokens < 8  # one of them computed it
    again = openai_client.completions.create(model=DEMO, prompt=prompt, n=4, max_tokens=4)
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_shale_additions_are_accepted(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(
        model="tiny/llama",
        prompt=[5, 6, 7],
        max_tokens=12,
        seed=1,
        temperature=0,
        extra_body={
            "top_k": 1, "min_p": 0.0, "repeat_penalty": 1.1, "ignore_eos": True, "cache_prompt": False,
            "return_token_ids": True, "num_ctx": 64, "keep_alive": "1m",
        },
    )  # fmt: skip
    assert answer.usage.completion_tokens == 12
    assert len(answer.choices[0].token_ids) == 12


def test_stop_strings(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model=DEMO, messages=MESSAGES, temperature=0, stop=["common"])
    assert (answer.choices[0].message.content or "").endswith("any ")
    assert answer.choices[0].finish_reason == "stop"


def test_embeddings_as_base64_and_as_floats(openai_client: openai.OpenAI) -> None:
    coded = openai_client.embeddings.create(model="tiny/bert", input=["abc", "d"])  # the package asks for base64
    floats = openai_client.embeddings.create(model="tiny/bert", input=["abc", "d"], encoding_format="float")
    assert coded.data[1].index == 1
    assert coded.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)
    short = openai_client.embeddings.create(model="tiny/bert", input="abc", dimensions=8)
    assert len(short.data[0].embedding) == 8


def test_models(openai_client: openai.OpenAI) -> None:
    assert {DEMO, "tiny/llama"} <= {model.id for model in openai_client.models.list()}
    assert openai_client.models.retrieve("tiny/llama").id == "tiny/llama"


def test_errors_have_their_types(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        openai_client.chat.completions.create(model="nope", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="this model does not support embeddings"):
        openai_client.embeddings.create(model=DEMO, input="x")
    with pytest.raises(openai.BadRequestError, match="is too short - 'messages'"):
        openai_client.chat.completions.create(model=DEMO, messages=[])
    tools: Any = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(openai.BadRequestError, match="'tools' is not supported yet") as caught:
        openai_client.chat.completions.create(model=DEMO, messages=MESSAGES, tools=tools)
    assert caught.value.param == "tools"


def test_what_the_package_sends_for_a_chat_is_taken(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model=DEMO, messages=MESSAGES, max_completion_tokens=2, n=1, seed=1, temperature=1, top_p=1, logprobs=True,
        top_logprobs=0, frequency_penalty=0, presence_penalty=0.5, stop="zzz", stream=False, user="me", store=False,
        metadata={"a": "b"}, parallel_tool_calls=True, service_tier="auto", response_format={"type": "text"},
        stream_options=None, logit_bias={}, modalities=["text"], safety_identifier="me", prompt_cache_key="k",
    )  # fmt: skip
    assert answer.usage.completion_tokens == 2


def test_a_prompt_over_the_context_is_refused_and_not_cut(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="exceeds the context length") as caught:
        openai_client.completions.create(model="tiny/llama", prompt=[5] * 600)
    assert caught.value.code == "context_length_exceeded"
