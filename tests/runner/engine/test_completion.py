"""What becomes of a prompt before the engine sees it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.engine.completion import RequestError, fit_prompt
from runner.protocol import SamplingOptions
from tests.runner.engine.fakes import Desk


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(4, 64), st.integers(-1, 100), st.integers(-1, 100))
def test_a_fitted_prompt_is_its_beginning_and_its_end_with_room_for_an_answer(
    length: int, num_ctx: int, num_keep: int, num_predict: int
) -> None:
    tokens = list(range(length))
    fitted = fit_prompt(tokens, num_ctx, SamplingOptions(num_keep=num_keep, num_predict=num_predict), truncate=True)
    if length <= num_ctx:
        assert fitted == tokens
        return
    keep = num_ctx - 1 if num_keep < 0 else min(num_keep, num_ctx - 1)
    tail = len(fitted) - keep
    assert fitted == tokens[:keep] + (tokens[-tail:] if tail else [])
    room = num_ctx - len(fitted)
    assert 1 <= room <= max((num_ctx - keep) // 2, 1)
    assert room == max((num_ctx - keep) // 2, 1) or room == num_predict


def test_a_cut_prompt_says_how_much_it_lost() -> None:
    desk = Desk(num_ctx=16)
    asked = desk.complete("abcdefghijklmnopqrst", num_keep=2, num_predict=4, request={"return_prompt_tokens": True})
    desk.run()
    assert bytes(asked.final["prompt_tokens"]) == b"abklmnopqrst"
    assert (asked.final["truncated"], asked.final["prompt_eval_count"]) == (8, 12)
    assert asked.text == "uvwx"


def test_a_prompt_that_must_not_be_cut_is_refused_with_both_numbers() -> None:
    with pytest.raises(RequestError, match=r"the input length exceeds the context length.* 20 tokens.* 16") as caught:
        Desk(num_ctx=16).complete("a" * 20, request={"truncate": False})
    assert caught.value.status == 400


def test_token_ids_are_taken_as_they_are() -> None:
    desk = Desk()
    asked = desk.complete((97, 98), num_predict=1, request={"return_prompt_tokens": True})
    desk.run()
    assert (asked.text, asked.final["prompt_tokens"]) == ("c", [97, 98])


@pytest.mark.parametrize(
    ("prompt", "options", "request_fields", "sentence"),
    [
        ("", {}, {}, "empty"),
        ((), {}, {}, "empty"),
        ((1, 300), {}, {}, "token 1 is 300; .* 0 to 299"),
        ((-1,), {}, {}, "token 0 is -1"),
        ("a", {}, {"echo": True}, "echo"),
        ("a", {"presence_penalty": float("nan")}, {}, "presence_penalty is nan"),
        ("a", {"temperature": float("inf")}, {}, "temperature is inf"),
        ("a", {"stop": ("x" * 40000,) * 2}, {}, "80000 characters; at most 65536"),
    ],
)
def test_what_cannot_be_served_is_refused(
    prompt: Any, options: dict[str, Any], request_fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence) as caught:
        Desk().complete(prompt, request=request_fields, **options)
    assert caught.value.status == 400


def test_a_model_that_only_embeds_does_not_complete() -> None:
    with pytest.raises(RequestError, match="does not support completion"):
        Desk(is_causal=False, pooling="mean").complete("a")
