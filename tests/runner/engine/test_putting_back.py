"""Running requests that do not fit into the cache together: who came last is put back and goes on later, unnoticed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.cache.kv_cache import CacheFullError
from tests.runner.engine.fakes import NUM_VOCAB, Asked, Desk, Floats

FIRST, SECOND = "a" * 10, "B" * 10
DURATIONS = ("prompt_eval_duration", "eval_duration")


def short(num_cells: int, **model: Any) -> Desk:
    """One whose cache has shrunk."""
    desk = Desk(**model)
    desk.model.cache.resize(num_cells)
    return desk


def told(asked: Asked) -> list[dict[str, Any]]:
    """Every line, the final one without what depends on the clock."""
    return [{name: value for name, value in line.items() if name not in DURATIONS} for line in asked.lines]


def steps_until_put_back(desk: Desk) -> int:
    """Steps until somebody waits again who had a sequence."""
    for step in range(100):
        if desk.engine.stats().num_waiting:
            return step
        desk.engine.step()
    raise AssertionError("nobody was put back")


def test_one_of_two_waits_for_the_other_and_both_answers_are_whole() -> None:
    desk = short(40)
    first, second = desk.complete(FIRST, num_predict=25), desk.complete(SECOND, num_predict=25)
    desk.engine.step()
    steps_until_put_back(desk)
    assert second.work.sequence is None
    num_told = len(second.tokens)
    assert 0 < num_told < 25
    while "done" not in first.lines[-1]:
        desk.engine.step()
    assert len(second.tokens) == num_told, "it waits until there are cells for it"
    desk.run()
    assert (first.text, second.text) == ("bcdefghijklmnopqrstuvwxyz", "CDEFGHIJKLMNOPQRSTUVWXYZ[")
    for final in (first.final, second.final):
        counts = [final[name] for name in ("prompt_eval_count", "prompt_eval_cached", "eval_count")]
        assert counts == [10, 0, 25]
    assert sum(map(sum, desk.transformer.batches)) <= 2 * 34 + 10 + num_told, "what was lost is computed once"
    stats = desk.engine.stats()
    assert [sum(each.counts) for each in (stats.queue, stats.first_token, stats.inter_token)] == [2, 2, 48]


def by_token(token: int) -> Floats:
    return (2 * np.cos(np.arange(NUM_VOCAB) * (token + 1))).astype(np.float32)


SAMPLED = {"temperature": 1.0, "ignore_eos": True, "num_predict": 25}


@pytest.mark.parametrize(
    "options",
    [
        {"num_predict": 25},
        {**SAMPLED, "seed": 3},
        {**SAMPLED, "seed": 4, "repeat_penalty": 1.5, "presence_penalty": 0.5, "repeat_last_n": 12},
        {"num_predict": 25, "stop": ("STUVX", "WXY", "wxy")},
        {**SAMPLED, "seed": 5, "num_ctx": 24, "num_keep": 3},
    ],
    ids=["greedy", "seeded", "penalties", "stop", "shifted"],
)
def test_every_line_is_the_one_of_an_undisturbed_answer(options: dict[str, Any]) -> None:
    def run(desk: Desk) -> tuple[list[Any], int]:
        if "seed" in options:
            desk.transformer.next_logits = by_token
        chosen = {name: value for name, value in options.items() if name != "num_ctx"}
        request = {"top_logprobs": 2, "return_prompt_tokens": True, "num_ctx": options.get("num_ctx")}
        asked = [desk.complete(prompt, request=request, **chosen) for prompt in (FIRST, SECOND)]
        desk.run()
        return [told(each) for each in asked], sum(map(sum, desk.transformer.batches))

    expected, num_evaluated = run(Desk())
    found, num_evaluated_again = run(short(36))
    assert found == expected
    assert num_evaluated_again > num_evaluated, "nobody was put back"


def test_choices_that_share_a_prompt_share_it_again() -> None:
    desk = short(32, num_parallel=3)
    desk.transformer.next_logits = by_token
    asked = [desk.complete(FIRST, seed=seed, **{**SAMPLED, "num_predict": 15}) for seed in (1, 2, 3)]
    desk.run()
    free = Desk(num_parallel=3)
    free.transformer.next_logits = by_token
    expected = [free.complete(FIRST, seed=seed, **{**SAMPLED, "num_predict": 15}) for seed in (1, 2, 3)]
    free.run()
    assert [told(each) for each in asked] == [told(each) for each in expected]


@pytest.mark.parametrize("is_early", [True, False])
def test_one_who_was_put_back_is_next(is_early: bool) -> None:
    desk = short(40)
    first, second = desk.complete(FIRST, num_predict=25), desk.complete(SECOND, num_predict=25)
    third = desk.complete("x", num_predict=2) if is_early else None
    while second.work.sequence is None or not second.work.is_put_back:
        third = third or (desk.complete("x", num_predict=2) if second.work.is_put_back else None)
        desk.engine.step()
        assert second.work.sequence or third is None or not third.lines, "a small one has passed it"
    assert "done" in first.lines[-1]
    desk.run()
    assert third is not None
    assert (third.text, len(second.tokens)) == ("yz", 25)


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_one_who_was_put_back_can_leave(how: str) -> None:
    desk = short(40)
    first, second = desk.complete(FIRST, num_predict=25), desk.complete(SECOND, num_predict=25)
    desk.engine.step()
    steps_until_put_back(desk)
    num_lines = len(second.lines)
    if how == "cancelled":
        desk.engine.cancel(second.work)
        desk.run()
        assert (first.text[-1], len(second.lines)) == ("z", num_lines)
    else:
        desk.engine.close("the model is unloaded")
        desk.engine.start()
        desk.engine.join()
        assert first.final == second.final == {"error": "the model is unloaded"}
        assert desk.model.cache.num_open == 0


def test_what_does_not_fit_alone_is_an_error_and_nobody_else_s() -> None:
    desk = short(20)
    asked = [desk.complete(prompt, num_predict=9) for prompt in (FIRST, "c" * 21, SECOND)]
    desk.run()
    assert "the KV cache is full: " in asked[1].final["error"]
    assert [asked[0].text, asked[2].text] == ["bcdefghij", "CDEFGHIJK"]


def test_one_who_was_put_back_goes_on_when_the_cache_has_grown() -> None:
    desk = short(40)
    first, second = desk.complete(FIRST, num_predict=25), desk.complete(SECOND, num_predict=25)
    desk.engine.step()
    steps_until_put_back(desk)
    desk.model.cache.resize(128)
    num_told = len(second.tokens)
    desk.engine.step()
    desk.engine.step()
    desk.engine.step()
    assert len(second.tokens) > num_told
    assert "done" not in first.lines[-1]
    desk.run()


def test_a_shift_that_lacks_cells_for_its_copies_puts_back_as_well() -> None:
    def run(desk: Desk) -> list[Any]:
        first = desk.complete("abcdefgh", num_predict=14, num_keep=1)
        desk.engine.step()
        second = desk.complete("abcdefgh", num_predict=14, num_keep=1)
        desk.run()
        return [told(first), told(second)]

    assert run(short(14, num_ctx=12)) == run(Desk(num_ctx=12))


def test_no_more_is_taken_from_another_than_the_own_context_holds() -> None:
    def run(desk: Desk) -> list[Any]:
        long = desk.complete(FIRST, num_predict=25)
        brief = desk.complete(FIRST, num_predict=25, request={"num_ctx": 16})
        desk.run()
        return [told(long), told(brief)]

    assert run(short(36)) == run(Desk())


# ---- embeddings of a model that completes as well ------------------------------------------------


def embedding(desk: Desk) -> np.ndarray[Any, Any]:
    asked = desk.embed("c" * 7, "d" * 30, "e" * 9, normalize=False)
    desk.run()
    return np.asarray(asked.final["embeddings"])


def test_an_embedding_waits_for_the_cells_of_a_completion() -> None:
    expected = embedding(Desk(pooling="mean"))
    desk = short(40, pooling="mean")
    asked = desk.complete(FIRST, num_predict=25)
    late = desk.complete(SECOND, num_predict=25)
    desk.engine.step()
    assert (embedding(desk) == expected).all()
    assert (asked.text[-1], late.text[-1]) == ("z", "[")


def test_inputs_that_do_not_fit_together_begin_anew() -> None:
    model = {"num_parallel": 3, "pooling": "mean"}
    desk, free = short(40, **model), Desk(**model)
    answers = []
    for each in (desk, free):
        asked = [each.embed("c" * 30, "f" * 35, normalize=False), each.embed("d" * 40, normalize=False)]
        each.run()
        assert each.engine.stats().num_active == each.engine.stats().num_waiting == 0
        answers.append([np.asarray(job.final["embeddings"]).tolist() for job in asked])
        assert [job.work.num_left for job in asked] == [0, 0]
    assert answers[0] == answers[1]
    assert sum(map(sum, desk.transformer.batches)) > sum(map(sum, free.transformer.batches))


def test_an_embedding_that_waits_is_not_passed_by_completions() -> None:
    desk = short(32, num_parallel=4, pooling="mean")
    asked = desk.embed("0" * 30)
    completions = []
    for letter in "abcdefghijklmnop":
        completions.append(desk.complete(letter * 3, num_predict=3))
        desk.engine.step()
        desk.engine.step()
    assert asked.lines, "as long as somebody new comes it waits"
    desk.run()
    assert [len(each.tokens) for each in completions] == [3] * 16


def test_an_embedding_that_left_while_it_waited_keeps_nobody_out() -> None:
    desk = short(40, num_parallel=3, pooling="mean")
    asked = desk.embed("0" * 30)
    completions = [desk.complete(letter * 8, num_predict=8) for letter in "abcdefgh"]
    while not desk.engine._embeddings.is_short:
        desk.engine.step()
    desk.engine.cancel(asked.work)
    desk.run()
    assert [len(each.tokens) for each in completions] == [8] * 8


def test_an_input_that_does_not_fit_alone_ends_its_job() -> None:
    desk = short(20, pooling="mean")
    large, small = desk.embed("c" * 21), desk.embed("d" * 9)
    desk.run()
    assert "the KV cache is full: " in large.final["error"]
    assert "embeddings" in small.final


# ---- everything at random ----------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(
    requests=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60), st.booleans()), min_size=2, max_size=8),
    sizes=st.lists(st.integers(32, 96), min_size=1, max_size=20),
    num_parallel=st.integers(2, 4),
)
def test_everybody_gets_the_answer_of_a_cache_that_is_large_enough(
    requests: list[tuple[int, int, bool]], sizes: list[int], num_parallel: int
) -> None:
    desk, free = (Desk(num_ctx=32, num_parallel=num_parallel, pooling="mean") for _ in range(2))
    answers = []
    for each in (desk, free):
        each.transformer.next_logits = by_token
        asked = [
            each.embed("e" * length)
            if is_embedding
            else each.complete("a" * length, num_predict=count, ignore_eos=True, request={"cache_prompt": count % 2})
            for length, count, is_embedding in requests
        ]
        for size in sizes if each is desk else ():
            with suppress(CacheFullError):
                each.model.cache.resize(min(size, 32 * num_parallel))
            for _ in range(5):
                each.engine.step()
                each.model.cache.check_integrity()
        each.run()
        answers.append([answer_of(each) for each in asked])
    assert answers[0] == answers[1]


def answer_of(asked: Asked) -> Any:
    if "embeddings" in asked.final:
        return np.asarray(asked.final["embeddings"]).tolist()
    return [{name: value for name, value in line.items() if name != "prompt_eval_cached"} for line in told(asked)]
