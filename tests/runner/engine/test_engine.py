"""The engine over a fake model: who is in which batch, when requests end, and what one request's fault costs."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.sequence import Batch
from tests.runner.engine.fakes import NUM_VOCAB, Asked, Desk, alphabet


def test_tokens_come_one_a_step_and_the_final_line_counts_them() -> None:
    desk = Desk()
    asked = desk.complete("xab", num_predict=3)
    desk.run()
    assert [line.get("content") for line in asked.lines] == ["c", "d", "e", None]
    assert asked.tokens == [ord(c) for c in "cde"]
    assert asked.final["done_reason"] == "length"
    assert (asked.final["prompt_eval_count"], asked.final["prompt_eval_cached"], asked.final["eval_count"]) == (3, 0, 3)
    assert asked.final["prompt_eval_duration"] > 0
    assert asked.final["eval_duration"] > 0
    assert "stopped_by" not in asked.final
    assert "truncated" not in asked.final


def test_all_lines_of_a_step_are_delivered_in_one_call() -> None:
    desk = Desk()
    for _ in range(2):
        desk.complete("a", num_predict=3)
    desk.run()
    assert desk.num_deliveries == 3


# ---- batches -----------------------------------------------------------------------------------


def test_prompts_share_chunks_of_num_batch_fairly() -> None:
    desk = Desk(num_batch=8)
    desk.complete("a" * 20, num_predict=1)
    desk.complete("b" * 5, num_predict=1)
    desk.run()
    assert desk.transformer.batches == [[4, 4], [7, 1], [8], [1]]


def test_generating_sequences_come_first_and_prompts_fill_the_batch() -> None:
    desk = Desk(num_batch=8)
    desk.complete("a", num_predict=5)
    desk.engine.step()
    desk.complete("b" * 10, num_predict=1)
    desk.run()
    assert desk.transformer.batches == [[1], [1], [1, 7], [1, 3], [1]]  # the second one measures


def test_a_batch_never_leaves_a_generating_sequence_out() -> None:
    desk = Desk(num_parallel=4, num_batch=1)
    asked = [desk.complete("ab", num_predict=9) for _ in range(4)]
    desk.run()
    assert {a.text for a in asked} == {"cdefghijk"}
    assert max(map(sum, desk.transformer.batches)) == 4


def test_requests_beyond_num_parallel_wait_in_order() -> None:
    desk = Desk(num_parallel=2)
    asked = [desk.complete("a", num_predict=n) for n in (4, 2, 2, 1)]
    done: list[int] = []
    while desk.engine.num_busy:
        assert desk.model.cache.num_open <= 2
        desk.engine.step()
        done += [i for i, a in enumerate(asked) if i not in done and a.lines and "done" in a.lines[-1]]
    assert done == [1, 0, 2, 3]
    assert [a.text for a in asked] == ["bcde", "bc", "bc", "b"]


# ---- prefixes ----------------------------------------------------------------------------------


def test_the_second_request_computes_only_what_the_first_did_not() -> None:
    desk = Desk(num_batch=64)
    first = desk.complete("abcdefgh", num_predict=4)
    desk.run()
    second = desk.complete("abcdefghijXYZ", num_predict=1)
    desk.run()
    assert first.final["prompt_eval_cached"] == 0
    # Of its own answer ijkl the first one has stored all but the last token, and there the second goes another way.
    assert (second.final["prompt_eval_cached"], second.final["prompt_eval_count"]) == (10, 13)
    assert desk.transformer.batches[-1] == [3]


def test_a_request_that_wants_no_cache_takes_none_and_leaves_none() -> None:
    desk = Desk(num_batch=64)
    for cache_prompt in (False, True, False):
        asked = desk.complete("abcdefgh", request={"cache_prompt": cache_prompt}, num_predict=1)
        desk.run()
        assert asked.final["prompt_eval_cached"] == 0


def test_requests_with_one_prompt_compute_it_once() -> None:
    desk = Desk(num_ctx=256, num_parallel=4, num_batch=64)
    asked = [desk.complete("a" * 200 + "bcd"[i], num_predict=3) for i in range(3)]
    other = desk.complete("x" * 10, num_predict=1)
    desk.run()
    assert [each.text for each in asked] == ["cde", "def", "efg"]
    assert [each.final["prompt_eval_cached"] for each in asked] == [0, 200, 200]
    assert other.final["prompt_eval_cached"] == 0
    assert sum(map(sum, desk.transformer.batches)) == 201 + 2 + 10 + 3 * 2
    assert desk.transformer.batches[0] == [54, 10], "those who wait let others pass"


def test_who_waits_for_a_prompt_that_is_cancelled_goes_on_alone() -> None:
    desk = Desk(num_ctx=256, num_parallel=2, num_batch=16)
    first = desk.complete("a" * 200, num_predict=1)
    second = desk.complete("a" * 200, num_predict=1)
    desk.engine.step()
    desk.engine.cancel(first.work)
    desk.run()
    assert (second.text, second.final["prompt_eval_cached"]) == ("b", 0)


def test_a_cancelled_request_frees_its_cells_within_one_step() -> None:
    desk = Desk(num_ctx=256, num_batch=64)
    asked = desk.complete("a" * 200, num_predict=1)
    desk.engine.step()
    desk.engine.cancel(asked.work)
    desk.engine.step()
    assert desk.model.cache.num_open == 0
    assert desk.engine.stats().cache.num_used == 0


# ---- what it tells -----------------------------------------------------------------------------


def test_stats_count_what_happened() -> None:
    desk = Desk(num_batch=8)
    asked = [desk.complete("a" * 10, num_predict=3), desk.complete("b" * 4, num_predict=1)]
    desk.complete("c")
    before = desk.engine.stats()
    assert (before.num_waiting, before.num_active) == (3, 0)
    desk.engine.step()
    assert (desk.engine.stats().num_waiting, desk.engine.stats().num_active) == (1, 1)
    desk.engine.cancel(asked[0].work)
    desk.run()
    after = desk.engine.stats()
    assert after.num_steps == len(desk.transformer.batches) == sum(after.step.counts)
    assert after.num_batch_tokens == sum(map(sum, desk.transformer.batches))
    assert after.num_batch_sequences == sum(map(len, desk.transformer.batches))
    assert sum(after.queue.counts) == 3
    assert sum(after.first_token.counts) == 2
    assert after.cache.num_misses == 3
    assert after.cache.num_used == after.cache.num_cached > 0


# ---- ends --------------------------------------------------------------------------------------


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


def test_an_answer_longer_than_the_context_shifts_it() -> None:
    desk = Desk(num_ctx=10)
    asked = desk.complete("abcd", num_predict=20, num_keep=2)
    desk.run()
    assert asked.text == "efghijklmnopqrstuvwx"
    assert asked.final["done_reason"] == "length"
    assert desk.transformer.shifts == [-4, -4, -4, -4]  # 10 are full; 2 stay, and half of the rest


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


# ---- cancellation ------------------------------------------------------------------------------


def test_a_request_that_waits_can_be_cancelled() -> None:
    desk = Desk(num_parallel=1)
    first, second, third = (desk.complete("a", num_predict=3) for _ in range(3))
    desk.engine.step()
    desk.engine.cancel(second.work)
    desk.run()
    assert (first.text, second.lines, third.text) == ("bcd", [], "bcd")


def test_a_cancelled_prompt_takes_part_in_no_further_step() -> None:
    desk = Desk(num_batch=8)
    asked = desk.complete("a" * 60)
    desk.engine.step()
    desk.engine.cancel(asked.work)
    desk.engine.step()
    assert desk.transformer.batches == [[8]]
    assert desk.engine.num_busy == desk.model.cache.num_open == 0
    assert asked.lines == []


def test_a_cancelled_answer_takes_part_in_no_further_step_and_others_go_on() -> None:
    desk = Desk()
    leaver, stayer = desk.complete("a", num_predict=9), desk.complete("a", num_predict=4)
    desk.engine.step()
    desk.engine.cancel(leaver.work)
    desk.run()
    assert desk.transformer.batches == [[1, 1], [1], [1], [1]]
    assert (leaver.text, stayer.text) == ("b", "bcde")
    desk.engine.cancel(leaver.work)
    desk.engine.cancel(stayer.work)
    desk.run()


def test_cancelling_during_a_step_delivers_nothing_of_it() -> None:
    desk = Desk()
    asked = desk.complete("a")
    desk.transformer.before = lambda _: desk.engine.cancel(asked.work)
    desk.run()
    assert asked.lines == []


# ---- faults ------------------------------------------------------------------------------------


def test_a_failing_forward_pass_ends_its_batch_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(num_parallel=2)

    def fail(batch: Batch) -> None:
        if ord("!") in batch.tokens:
            raise RuntimeError("kernel trouble")

    desk.transformer.before = fail
    bad, beside, after = (desk.complete(prompt, num_predict=2) for prompt in ("!", "a", "c"))
    desk.run()
    assert bad.lines == beside.lines == [{"error": "RuntimeError: kernel trouble"}]
    assert after.text == "de"
    assert "kernel trouble" in caplog.text
    assert "Traceback" in caplog.text


def test_broken_logits_end_one_request_only() -> None:
    desk = Desk()
    desk.transformer.next_logits = lambda token: alphabet(token) * (np.nan if token == ord("!") else 1)
    bad, good = desk.complete("!"), desk.complete("a", num_predict=2)
    desk.run()
    assert "not" in bad.final["error"] or "finite" in bad.final["error"]
    assert good.text == "bc"


def test_a_fault_while_choosing_ends_one_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    bad, good = desk.complete("x"), desk.complete("a", num_predict=2)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(bad.work, "draw", fail)
    desk.run()
    assert bad.lines == [{"error": "ZeroDivisionError: oops"}]
    assert good.text == "bc"


# ---- the thread --------------------------------------------------------------------------------


def wait_for(condition: Any, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_thread_works_when_asked_and_sleeps_otherwise() -> None:
    desk = Desk()
    steps: list[int] = []
    step = desk.engine.step
    desk.engine.step = lambda: (steps.append(1), step())[1]  # type: ignore[method-assign]
    desk.engine.start()
    for _ in range(3):
        asked = desk.complete("a", num_predict=4)
        wait_for(lambda asked=asked: asked.lines and "done" in asked.lines[-1])
    time.sleep(0.05)
    assert len(steps) == 12
    desk.engine.close("enough")
    desk.engine.join()


def test_a_fault_that_nobody_can_be_told_of_ends_the_engine_loudly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk()
    failed = threading.Event()
    monkeypatch.setattr(desk.engine, "_on_failure", failed.set)

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("the books are broken")

    monkeypatch.setattr(desk.model.cache, "advance", broken)
    monkeypatch.setattr(desk.model.cache, "close", broken)
    desk.engine.start()
    desk.complete("a")
    assert failed.wait(5)
    desk.engine.join()
    assert "the engine has failed" in caplog.text


def test_a_failing_shift_ends_one_request_only(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(num_ctx=10)

    def broken(_layer: Any, _cells: Any) -> None:
        raise RuntimeError("no such kernel")

    desk.transformer.shifted_by = lambda _: broken  # type: ignore[method-assign]
    long, short = desk.complete("abcd", num_predict=20), desk.complete("abcd", num_predict=3)
    desk.run()
    assert long.lines[-1] == {"error": "RuntimeError: no such kernel"}
    assert short.text == "efg"
    assert "shifting a context failed" in caplog.text


def test_close_ends_everything_with_its_reason_and_later_work_is_told_so() -> None:
    desk = Desk(num_parallel=1, pooling="mean")
    has_begun, may_go_on = threading.Event(), threading.Event()

    def hold(_: Batch) -> None:
        has_begun.set()
        may_go_on.wait(5)

    desk.transformer.before = hold
    desk.engine.start()
    running, waiting, job = desk.complete("a"), desk.complete("a"), desk.embed("a")
    assert has_begun.wait(5)
    desk.engine.close("unloaded")
    may_go_on.set()
    desk.engine.join()
    late = desk.complete("a")
    for asked in (running, waiting, job, late):
        assert asked.lines[-1] == {"error": "unloaded"}
    assert desk.model.cache.num_open == 0


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.integers(0, 12)), max_size=8),
    st.integers(1, 3),
    st.integers(1, 16),
)
def test_every_request_ends_once_and_every_cell_comes_back(
    requests: list[tuple[int, int, bool, int]], num_parallel: int, num_batch: int
) -> None:
    desk = Desk(num_parallel=num_parallel, num_batch=num_batch)
    asked: list[tuple[Asked, int | None]] = []
    for length, num_predict, is_cancelled, cancel_at in requests:
        asked.append((desk.complete("a" * length, num_predict=num_predict), cancel_at if is_cancelled else None))
    for step in range(13):
        for each, cancel_at in asked:
            if cancel_at == step:
                desk.engine.cancel(each.work)
        desk.engine.step()
        desk.model.cache.check_integrity()
    desk.run()
    for (each, cancel_at), (_, num_predict, _, _) in zip(asked, requests, strict=True):
        if cancel_at is None or (each.lines and "done" in each.lines[-1]):
            assert each.text == "bcdefghijklm"[:num_predict]
            assert each.final["done_reason"] == "length"
        else:
            assert all("content" in line for line in each.lines)
    assert all(sum(batch) <= max(num_batch, num_parallel) for batch in desk.transformer.batches)
