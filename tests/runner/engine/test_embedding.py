"""Embedding jobs in the engine: batches of inputs, chunks, pooling, truncation, faults, and what is told of them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.engine.completion import RequestError
from runner.engine.embedding import BLOCK_ROWS, EmbeddingInput
from runner.protocol import RunnerStats
from runner.sequence import Batch
from tests.runner.engine.fakes import Asked, Desk


def vectors(asked: Any) -> list[list[float]]:
    result: list[list[float]] = asked.lines[-1]["embeddings"].tolist()
    return result


def test_short_inputs_of_several_jobs_share_forward_passes() -> None:
    desk = Desk(is_causal=False, pooling="mean", num_ctx=8)
    first = desk.embed("aa", "bbb", "cccc", normalize=False)
    second = desk.embed("d", normalize=False)
    desk.run()
    assert desk.transformer.batches == [[2, 3, 1], [4]]
    assert vectors(first) == [[97, 1], [98, 1], [99, 1]]
    assert vectors(second) == [[100, 1]]
    assert first.lines[-1]["prompt_eval_counts"] == [2, 3, 4]


def test_a_bidirectional_model_takes_more_inputs_at_a_time_than_num_parallel() -> None:
    desk = Desk(is_causal=False, pooling="mean", num_ctx=8, num_parallel=1)
    desk.embed(*"abcdefgh")
    desk.run()
    assert desk.transformer.batches == [[1] * 8]


@pytest.mark.parametrize(("pooling", "expected"), [("mean", sum(b"abcdefghijklmnopqrst") / 20), ("last", ord("t"))])
def test_a_causal_model_takes_long_inputs_in_chunks_and_joins_their_pooling(pooling: str, expected: float) -> None:
    desk = Desk(pooling=pooling, num_batch=8)
    asked = desk.embed("abcdefghijklmnopqrst", normalize=False)
    desk.run()
    assert desk.transformer.batches == [[8], [8], [4]]
    assert vectors(asked)[0] == pytest.approx([expected, 1])


def test_pooling_by_the_first_token_takes_the_first_chunk() -> None:
    desk = Desk(pooling="cls", num_batch=2)
    asked = desk.embed("aabbcc", normalize=False)
    desk.run()
    assert vectors(asked) == [[97, 1]]


def test_a_causal_model_shares_its_sequences_with_completions() -> None:
    desk = Desk(pooling="last", num_parallel=1)
    answer, job = desk.complete("a", num_predict=3), desk.embed("b", "c", normalize=False)
    desk.run()
    assert answer.text == "bcd"
    assert vectors(job) == [[98, 1], [99, 1]]


# ---- who takes part ----------------------------------------------------------------------------


LARGE = ["a" * 200] * 800


@pytest.mark.parametrize(
    "model",
    [
        {"is_causal": False, "num_ctx": 512},
        {"is_causal": True, "num_ctx": 256, "num_parallel": 1, "num_batch": 512},
        {"is_causal": True, "num_ctx": 256, "num_parallel": 4, "num_batch": 512},
        {"is_causal": True, "num_ctx": 256, "num_parallel": 4, "num_batch": 64},
    ],
    ids=str,
)
def test_a_small_request_beside_a_large_one_is_answered_within_a_few_steps(model: dict[str, Any]) -> None:
    desk = Desk(pooling="mean", **model)
    large = desk.embed(*LARGE)
    for _ in range(3):
        desk.engine.step()
    small = desk.embed("b" * 20, "c" * 20, normalize=False)
    for _ in range(7):
        desk.engine.step()
    assert vectors(small) == [[98, 1], [99, 1]]
    assert not large.lines
    desk.engine.cancel(large.work)
    desk.run()


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_large_request_alone_takes_as_few_steps_as_before(is_causal: bool) -> None:
    desk = Desk(pooling="mean", is_causal=is_causal, num_ctx=512, num_parallel=4, num_batch=512)
    desk.embed(*["a" * 100] * 50)
    desk.run()
    full = [100, 100, 100, 100, 100] if not is_causal else [100, 100, 100, 100]  # four sequences are all there are
    assert desk.transformer.batches == [full] * (50 // len(full)) + ([[100] * 2] if is_causal else [])


def test_requests_with_short_inputs_get_as_much_as_those_with_long_ones_within_a_factor_of_two() -> None:
    desk = Desk(is_causal=False, pooling="mean", num_ctx=512)
    counts = {"a": 0, "b": 0, "c": 0}

    def count(batch: Batch) -> None:
        for letter in counts:
            counts[letter] += int((batch.tokens == ord(letter)).sum())

    desk.transformer.before = count
    asked = [desk.embed(*["a" * 500] * 40), desk.embed(*["b" * 5] * 4000), desk.embed(*["c" * 130] * 150)]
    for _ in range(60):
        desk.engine.step()
    assert min(counts.values()) > 0.5 * max(counts.values())
    assert sum(counts.values()) > 0.95 * 60 * 512
    for each in asked:
        desk.engine.cancel(each.work)
    desk.run()


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 6)), min_size=1, max_size=6
    ),
    st.booleans(),
    st.integers(1, 3),
    st.integers(8, 50),
)
def test_every_job_has_its_turn_and_every_pass_is_as_full_as_it_can_be(
    requests: list[tuple[list[int], int]], is_causal: bool, num_parallel: int, num_batch: int
) -> None:
    desk = Desk(pooling="mean", is_causal=is_causal, num_ctx=40, num_parallel=num_parallel, num_batch=num_batch)
    longest_wait = len(requests) * (2 + 40 * num_parallel // num_batch)
    asked: dict[str, Asked] = {}
    waits: Counter[str] = Counter()

    def watch(batch: Batch) -> None:
        room = desk.transformer.max_tokens - batch.num_tokens
        pending = [each for asker in asked.values() for each in asker.work.pending]
        if is_causal:
            is_full = not room or desk.model.cache.all_are_open or batch.num_tokens == sum(i.num_left for i in pending)
        else:
            left = [[each for each in asker.work.pending if each.sequence is None] for asker in asked.values()]
            is_full = all(inputs[0].num_left > room for inputs in left if inputs)
        assert is_full
        for letter, asker in asked.items():
            is_served = ord(letter) in batch.tokens or not asker.work.pending
            waits[letter] = 0 if is_served else waits[letter] + 1
            assert waits[letter] <= longest_wait

    desk.transformer.before = watch
    for step in range(7):
        for letter, (lengths, arrives) in zip("abcdef", requests, strict=False):
            if arrives == step:
                asked[letter] = desk.embed(*[letter * length for length in lengths], normalize=False)
        desk.engine.step()
        desk.model.cache.check_integrity()
        assert all(bool(asker.lines) != bool(asker.work.pending) for asker in asked.values())
    desk.run()
    for letter, (lengths, _) in zip("abcdef", requests, strict=False):
        assert vectors(asked[letter]) == [[ord(letter), 1]] * len(lengths)
        assert asked[letter].lines[-1]["prompt_eval_counts"] == lengths


# ---- pooling -----------------------------------------------------------------------------------


def pooled(rows: np.ndarray, cuts: list[int], pooling: str) -> np.ndarray:
    """The vector of an input whose hidden states come in the pieces between ``cuts``, and are overwritten."""
    each = EmbeddingInput([0] * len(rows))
    for start, stop in pairwise([0, *cuts, len(rows)]):
        piece = rows[start:stop].copy()
        each.advance(piece, pooling)
        piece[:] = np.nan
    assert not each.num_left
    return each.vector(pooling)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3 * BLOCK_ROWS), st.sets(st.integers(1, 3 * BLOCK_ROWS - 1), max_size=8), st.integers(0, 99))
def test_pooling_gives_the_same_bits_however_an_input_is_cut(length: int, places: set[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((length, 64)) * 10.0 ** rng.uniform(-9, 9, (length, 64))).astype(np.float32)
    total = np.zeros(64)
    for row in rows:
        total += row
    cuts = sorted(place for place in places if place < length)
    for pooling, expected in (("mean", total / length), ("cls", rows[0]), ("last", rows[-1])):
        assert np.array_equal(pooled(rows, cuts, pooling), expected.astype(np.float64)), pooling


def test_vectors_have_length_one_when_asked() -> None:
    desk = Desk(is_causal=False, pooling="mean")
    asked = desk.embed("a", "b", normalize=True)
    desk.run()
    assert np.linalg.norm(vectors(asked), axis=1) == pytest.approx([1, 1])


def test_no_inputs_give_no_embeddings() -> None:
    desk = Desk(is_causal=False, pooling="mean")
    asked = desk.embed()
    desk.run()
    assert vectors(asked) == []


def test_a_long_input_is_cut_and_an_added_end_token_stays() -> None:
    desk = Desk(is_causal=False, pooling="mean", num_ctx=4)
    asked = desk.embed("abcdefg", normalize=False)
    desk.model.tokenizer.add_eos = True
    ended = desk.embed("abcdefg", normalize=False)
    desk.run()
    assert vectors(asked)[0][0] == pytest.approx(sum(b"abcd") / 4)
    assert vectors(ended)[0][0] == pytest.approx(sum(b"abcg") / 4)
    assert ended.lines[-1]["prompt_eval_counts"] == [4]


def test_an_input_is_also_cut_to_the_context_that_the_model_was_trained_with() -> None:
    desk = Desk(is_causal=False, pooling="mean", context_length=3)
    asked = desk.embed("abcdefg")
    desk.run()
    assert asked.lines[-1]["prompt_eval_counts"] == [3]


@pytest.mark.parametrize(("num_ctx", "count"), [(None, 8), (5, 5), (100, 8)])
def test_an_input_is_cut_to_the_context_that_the_request_asks_for(num_ctx: int | None, count: int) -> None:
    desk = Desk(is_causal=False, pooling="mean", num_ctx=8)
    asked = desk.embed("abcdefghijk", num_ctx=num_ctx)
    desk.run()
    assert asked.lines[-1]["prompt_eval_counts"] == [count]


def test_a_long_input_that_must_not_be_cut_is_refused_with_both_numbers() -> None:
    desk = Desk(is_causal=False, pooling="mean", num_ctx=4)
    with pytest.raises(RequestError, match=r"the input length exceeds the context length.*1 has 5 tokens.* 4"):
        desk.embed("a", "abcde", truncate=False)


@pytest.mark.parametrize("given", ["", (), (300,), (-1,)])
def test_inputs_that_are_no_tokens_are_refused(given: Any) -> None:
    with pytest.raises(RequestError) as caught:
        Desk(is_causal=False, pooling="mean").embed(given)
    assert caught.value.status == 400


def test_a_model_without_pooling_does_not_embed() -> None:
    with pytest.raises(RequestError, match="does not support embeddings") as caught:
        Desk().embed("a")
    assert caught.value.status == 501


def test_a_cancelled_job_takes_part_in_no_further_step() -> None:
    desk = Desk(pooling="last", num_batch=8)
    leaver = desk.embed("a" * 50, "b")
    desk.engine.step()
    desk.engine.cancel(leaver.work)
    stayer = desk.embed("c")
    desk.run()
    assert desk.transformer.batches == [[8], [1]]
    assert leaver.lines == []
    assert len(stayer.lines) == 1


def test_a_failing_forward_pass_ends_its_jobs_and_nothing_else() -> None:
    desk = Desk(is_causal=False, pooling="mean", num_ctx=8)

    def fail(batch: Batch) -> None:
        if ord("!") in batch.tokens:
            raise RuntimeError("kernel trouble")

    desk.transformer.before = fail
    bad, good = desk.embed("!" * 8, "a"), desk.embed("b", normalize=False)
    desk.run()
    assert bad.lines == [{"error": "RuntimeError: kernel trouble"}]
    assert vectors(good) == [[98, 1]]


def test_an_embedding_that_is_no_number_is_an_error() -> None:
    desk = Desk(is_causal=False, pooling="mean")
    desk.transformer.embed = lambda batch: [np.full((1, 2), np.nan, np.float32)]  # type: ignore[method-assign]
    asked = desk.embed("a")
    desk.run()
    assert asked.lines == [{"error": "embedding contains NaN or Inf values"}]


# ---- what it tells -----------------------------------------------------------------------------


def test_stats_count_forward_passes_over_inputs() -> None:
    desk = Desk(is_causal=False, pooling="mean", num_ctx=8)
    desk.embed("aa", "bbb", "cccc")
    desk.embed("d")
    desk.run()
    stats = desk.engine.stats()
    assert (stats.num_steps, stats.num_batch_sequences, stats.num_batch_tokens) == (2, 4, 10)
    assert sum(stats.step.counts) == 2
    assert sum(stats.queue.counts) == 0


@pytest.mark.parametrize("is_causal", [True, False])
def test_as_many_inputs_are_active_as_can_be_and_the_others_wait(is_causal: bool) -> None:
    desk = Desk(pooling="mean", is_causal=is_causal, num_ctx=16, num_parallel=1, num_batch=16)
    seen: list[RunnerStats] = []
    desk.transformer.before = lambda _: seen.append(desk.engine.stats())
    asked = [desk.embed("a" * 8, "a" * 8) for _ in range(6)]
    before = desk.engine.stats()
    assert (before.num_waiting, before.num_active) == (12, 0)
    desk.engine.step()
    desk.engine.cancel(asked[5].work)
    desk.run()
    assert {stats.num_active for stats in seen} == {1}
    inputs_a_step = 1 if is_causal else 2
    assert seen[0].num_waiting == 12 - inputs_a_step
    assert [stats.num_waiting for stats in seen[1:]] == list(range(10 - 2 * inputs_a_step, -1, -inputs_a_step))
    after = desk.engine.stats()
    assert (after.num_waiting, after.num_active) == (0, 0)


def test_nothing_waits_any_more_when_passes_fail_or_the_engine_ends() -> None:
    desk = Desk(pooling="mean", num_parallel=2)

    def fail(_: Batch) -> None:
        raise RuntimeError("kernel trouble")

    desk.transformer.before = fail
    for _ in range(3):
        desk.embed("a" * 20, "b" * 20)
    desk.run()
    after = desk.engine.stats()
    assert (after.num_waiting, after.num_active) == (0, 0)
