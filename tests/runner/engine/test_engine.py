"""The engine over a fake model: who takes part in which step, what is computed again, and what is told of it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runner.engine.fakes import Asked, Desk


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


# ---- everything at random ----------------------------------------------------------------------


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
