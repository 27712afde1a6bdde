"""Embedding jobs in the engine: batches of inputs, chunks, truncation, faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runner.engine.completion import RequestError
from runner.sequence import Batch
from tests.runner.engine.fakes import Desk


def vectors(asked: Any) -> list[list[float]]:
    result: list[list[float]] = asked.lines[-1]["embeddings"].tolist()
    return result


def test_short_inputs_of_several_jobs_share_forward_passes() -> None:
    desk = Desk(is_causal=False, pooling="mean", num_ctx=8)
    first = desk.embed("aa", "bbb", "cccc", normalize=False)
    second = desk.embed("d", normalize=False)
    desk.run()
    assert desk.transformer.batches == [[2, 3], [4, 1]]
    assert vectors(first) == [[97, 1], [98, 1], [99, 1]]
    assert vectors(second) == [[100, 1]]
    assert first.lines[-1]["prompt_eval_counts"] == [2, 3, 4]


def test_a_bidirectional_model_takes_more_inputs_at_a_time_than_num_parallel() -> None:
    desk = Desk(is_causal=False, pooling="mean", num_ctx=8, num_parallel=1)
    desk.embed(*"abcdefgh")
    desk.run()
    assert desk.transformer.batches == [[1] * 8]


@pytest.mark.parametrize(("pooling", "expected"), [("mean", sum(b"abcdefghijklmnopqrst") / 20), ("last", 114.5)])
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
    desk.transformer.embed = lambda batch: np.full((len(batch.segments), 2), np.nan, np.float32)  # type: ignore[method-assign]
    asked = desk.embed("a")
    desk.run()
    assert asked.lines == [{"error": "embedding contains NaN or Inf values"}]
