"""What the engine answers over a fake model: where an answer ends, and what a request's options make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runner.engine.fakes import NUM_VOCAB, Desk, alphabet


def test_an_end_token_ends_the_answer_and_is_counted_but_not_told() -> None:
    desk = Desk()
    asked = desk.complete("x", request={"top_logprobs": 0})
    desk.run()
    assert asked.text == "yz"
    assert len(asked.logprobs) == len(asked.tokens) == 2
    assert (asked.final["done_reason"], asked.final["eval_count"]) == ("stop", 3)


def test_ignore_eos_goes_on_and_never_draws_an_end_token() -> None:
    desk = Desk()
    asked = desk.complete("y", ignore_eos=True, num_predict=30)
    desk.run()
    assert len(asked.tokens) == 30
    assert ord("{") not in asked.tokens


@pytest.mark.parametrize("num_predict", [-1, -2, 0, 1000])
@pytest.mark.parametrize("may_shift", [True, False])
def test_an_answer_whose_context_is_not_shifted_ends_where_it_does(num_predict: int, may_shift: bool) -> None:
    desk = Desk(num_ctx=10, can_shift=not may_shift)
    desk.transformer.next_logits = lambda _: alphabet(ord("k"))
    asked = desk.complete("abcd", request={"shift": may_shift}, num_predict=num_predict)
    desk.run()
    assert asked.text == "l" * 7  # the last one takes no cell
    assert asked.final["done_reason"] == "length"
    assert "shifted" not in asked.final


def test_an_answer_longer_than_the_context_shifts_it() -> None:
    desk = Desk(num_ctx=10)
    asked = desk.complete("abcd", num_predict=20, num_keep=2)
    desk.run()
    assert asked.text == "efghijklmnopqrstuvwx"
    assert asked.final["done_reason"] == "length"
    assert desk.transformer.shifts == [-4, -4, -4, -4]  # 10 are full; 2 stay, and half of the rest
    assert asked.final["shifted"] == 16


def test_an_answer_without_end_ends_after_ten_contexts() -> None:
    desk = Desk(num_ctx=10)
    desk.transformer.next_logits = lambda _: alphabet(ord("k"))
    asked = desk.complete("abcd", num_predict=-1)
    desk.run()
    assert (len(asked.text), asked.final["done_reason"]) == (100, "length")


def test_a_prompt_that_fills_the_context_gets_one_token_where_nothing_shifts() -> None:
    desk = Desk(num_ctx=10)
    asked = desk.complete("abcdefghij", request={"shift": False})
    desk.run()
    assert (asked.text, asked.final["done_reason"]) == ("k", "length")
    assert "truncated" not in asked.final


def test_the_earliest_stop_ends_the_answer_and_is_named() -> None:
    desk = Desk()
    asked = desk.complete("a", stop=("fgh", "de"), request={"top_logprobs": 1})
    desk.run()
    assert (asked.text, asked.final["done_reason"], asked.final["stopped_by"]) == ("bc", "stop", "de")
    assert [entry["token"] for entry in asked.logprobs] == ["b", "c"]
    assert asked.tokens == [ord("b"), ord("c")]
    assert asked.final["eval_count"] == 4


def test_a_stop_that_the_last_allowed_token_completes_is_a_stop() -> None:
    desk = Desk()
    asked = desk.complete("a", stop=("cd",), num_predict=3)
    desk.run()
    assert (asked.text, asked.final["done_reason"]) == ("b", "stop")


def test_the_beginning_of_a_stop_is_told_when_the_answer_ends_without_it() -> None:
    desk = Desk()
    asked = desk.complete("a", stop=("cdX",), num_predict=3)
    desk.run()
    assert (asked.text, asked.final["done_reason"]) == ("bcd", "length")
    assert [line["content"] for line in asked.lines[:-1]] == ["b", "cd"]


def test_a_character_of_several_tokens_is_told_whole() -> None:
    follows = dict(zip(b"a\xe2\x82\xacb", b"\xe2\x82\xacb{", strict=True))
    desk = Desk()
    desk.transformer.next_logits = lambda token: alphabet(follows[token] - 1)
    asked = desk.complete("a")
    desk.run()
    assert [line.get("content") for line in asked.lines] == ["€", "b", None]


# ---- options -----------------------------------------------------------------------------------


def test_logprobs_are_of_the_raw_logits_with_the_best_first() -> None:
    desk = Desk()
    asked = desk.complete("a", num_predict=1, presence_penalty=50, request={"top_logprobs": 2})
    desk.run()
    (entry,) = asked.logprobs
    assert (entry["id"], entry["token"], entry["bytes"]) == (ord("b"), "b", [ord("b")])
    assert entry["logprob"] == pytest.approx(20 - np.log(np.exp(20) + 255), abs=1e-4)
    assert [top["id"] for top in entry["top_logprobs"]] == [ord("b"), 0]


def test_penalties_act_on_the_prompt_and_on_the_answer() -> None:
    def two_favourites(_: int) -> Any:
        logits = np.zeros(NUM_VOCAB, np.float32)
        logits[[ord("p"), ord("q")]] = (5, 4)
        return logits

    desk = Desk()
    desk.transformer.next_logits = two_favourites
    plain = desk.complete("a", num_predict=2)
    desk.run()
    penalized = desk.complete("a", num_predict=2, presence_penalty=2)
    prompted = desk.complete("p", num_predict=1, frequency_penalty=2)
    desk.run()
    forgotten = desk.complete("p", num_predict=1, frequency_penalty=2, repeat_last_n=0)
    desk.run()
    assert [a.text for a in (plain, penalized, prompted, forgotten)] == ["pp", "pq", "q", "p"]


def test_a_seed_gives_the_same_answer_whatever_else_is_in_the_batch() -> None:
    def flat(token: int) -> Any:
        return np.cos(np.arange(NUM_VOCAB) * (token + 1)).astype(np.float32)

    options = {"temperature": 1.0, "num_predict": 12, "ignore_eos": True}
    alone = Desk(num_batch=64)
    alone.transformer.next_logits = flat
    expected = alone.complete("hello", seed=5, **options)
    other = alone.complete("hello", seed=6, **options)
    alone.run()
    crowd = Desk(num_parallel=4, num_batch=3)
    crowd.transformer.next_logits = flat
    crowded = [crowd.complete("hello", seed=seed, **options) for seed in (1, 5, 2, 5)]
    crowd.run()
    assert crowded[1].tokens == crowded[3].tokens == expected.tokens != other.tokens


def test_without_a_seed_answers_differ() -> None:
    desk = Desk()
    desk.transformer.next_logits = lambda _: np.zeros(NUM_VOCAB, np.float32)
    asked = [desk.complete("a", temperature=1.0, top_k=0, num_predict=12, ignore_eos=True) for _ in range(2)]
    desk.run()
    assert asked[0].tokens != asked[1].tokens


def test_rows_beyond_the_vocabulary_are_never_drawn() -> None:
    desk = Desk()
    desk.transformer.next_logits = lambda _: np.arange(NUM_VOCAB, dtype=np.float32)
    asked = desk.complete("a", num_predict=1, request={"top_logprobs": 20})
    desk.run()
    assert asked.tokens == [255]
