"""What each measurement asks of an engine, and what it makes of the times."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import pytest

from tools.bench.measures import BEFORE, SHALLOW, measure, measure_embeddings, tokens
from tools.bench.worker import Job, Request, Trace, serve


@dataclass
class RecordingEngine:
    """Remembers what it is asked, and answers loads with the traces that it was given."""

    traces: list[Trace] = field(default_factory=list)
    num_vocab: int = 1000
    calls: list[tuple[int, int]] = field(default_factory=list)  # (sequence, tokens), (sequence, -tokens) for a rewind
    requests: list[Sequence[Request]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    past: dict[int, int] = field(default_factory=dict)

    def reset(self) -> None:
        self.past.clear()

    def forward(self, tokens: Sequence[int], sequence: int = 0) -> None:
        self.calls.append((sequence, len(tokens)))
        self.past[sequence] = self.num_past(sequence) + len(tokens)

    def num_past(self, sequence: int = 0) -> int:
        return self.past.get(sequence, 0)

    def rewind(self, num_past: int, sequence: int = 0) -> None:
        self.past[sequence] = min(num_past, self.num_past(sequence))

    def complete(self, requests: Sequence[Request]) -> list[Trace]:
        self.requests.append(requests)
        return self.traces

    def embed(self, inputs: Sequence[Sequence[int]]) -> None:
        self.inputs.append(len(inputs))


def test_prefill_is_one_batch_from_an_empty_sequence() -> None:
    engine = RecordingEngine()
    assert measure(engine, Job("prefill", prompt=512))["tokens/s"] > 0
    assert engine.calls == [(0, 512)]


def test_decode_is_one_token_at_a_time_behind_the_prompt() -> None:
    engine = RecordingEngine()
    assert measure(engine, Job("decode", prompt=16, generated=3))["tokens/s"] > 0
    assert engine.calls == [(0, 16), (0, 1), (0, 1), (0, 1)]


def test_a_deep_sequence_is_filled_once() -> None:
    engine = RecordingEngine()
    job = Job("deep", prompt=8, generated=2, depth=600)
    assert set(measure(engine, job)) == {
        "attention of a token, ms", "attention of 8 tokens, ms", "chunk of 8, tokens/s",
    }  # fmt: skip
    both = [(sequence, count) for sequence in (1, 0) for count in (1, 1, 1, 8)]
    assert engine.calls == [(0, 512), (0, 88), (1, SHALLOW), *both]
    engine.calls.clear()
    measure(engine, job)
    assert engine.calls == [(1, SHALLOW), *both]


def test_side_by_side_counts_from_the_last_start_to_the_first_end() -> None:
    engine = RecordingEngine([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]])
    assert measure(engine, Job("together", prompt=8, generated=4, sequences=2)) == {"tokens/s": 4 / 2.0}
    (requests,) = engine.requests
    assert [(len(each.prompt), each.num_generated, each.after) for each in requests] == [(8, 4, 0)] * 2


def test_mixed_counts_prompts_and_ends_with_the_last() -> None:
    engine = RecordingEngine([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [2.5], [3.5], [5.0]])
    assert measure(engine, Job("mixed", prompt=100, generated=12, sequences=2)) == {"tokens/s": (4 + 3 + 300) / 4.0}
    assert [each.after for each in engine.requests[0]] == [0, 0, 1, 3, 5]


def test_gaps_while_another_is_evaluated_begin_with_its_arrival() -> None:
    quiet = [float(i) for i in range(BEFORE)]
    engine = RecordingEngine([[*quiet, quiet[-1] + 3, quiet[-1] + 6], [quiet[-1] + 6]])
    assert measure(engine, Job("gaps", prompt=50, generated=500)) == {"p50 ms": 3000.0, "p99 ms": 3000.0}
    assert [(each.after, each.is_background) for each in engine.requests[0]] == [(0, True), (BEFORE, False)]


def test_a_sequence_that_ends_too_early_is_no_measurement() -> None:
    engine = RecordingEngine([[1.0, 2.0], [9.0]])
    with pytest.raises(RuntimeError, match="2 tokens were generated before a prompt of 50"):
        measure(engine, Job("gaps", prompt=50, generated=2))


def test_a_cached_prefix_is_the_beginning_of_a_prompt_that_was_there() -> None:
    engine = RecordingEngine([[1e12]])
    measure(engine, Job("first_token", prompt=20, depth=16))
    before, after = (requests[0].prompt for requests in engine.requests)
    assert (len(before), len(after)) == (20, 20)
    assert before[:16] == after[:16]
    assert before[16:] != after[16:]


def test_prompts_begin_differently_and_stay_within_the_vocabulary() -> None:
    engine = RecordingEngine()
    prompts = [tokens(engine, 8) for _ in range(100)]
    assert len({prompt[0] for prompt in prompts}) == 100
    assert all(0 <= token < engine.num_vocab for prompt in prompts for token in prompt)


def test_embeddings_in_one_call_and_one_by_one() -> None:
    engine = RecordingEngine()
    measure(engine, Job("embed", prompt=10, sequences=3))
    measure_embeddings(engine, Job("embed_singly", prompt=10, sequences=3))
    assert engine.inputs == [3, 1, 1, 1]


def test_a_worker_answers_a_line_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asdict(Job("prefill", 8))) + "\n"))
    serve("recording", partial(measure, RecordingEngine()))
    ready, answer = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert ready == {"ready": "recording"}
    assert answer["tokens/s"] > 0
