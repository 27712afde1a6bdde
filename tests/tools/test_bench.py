"""The measuring harness: what is timed, in which order, and what is made of the figures."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from tools.bench import __main__ as bench
from tools.bench.machine import read_cpuinfo
from tools.bench.worker import Job, measure, serve


@dataclass
class RecordingEngine:
    """Takes tokens and remembers how they came."""

    description: str = "recording"
    calls: list[int] = field(default_factory=list)

    def reset(self) -> None:
        self.calls.append(0)

    def forward(self, tokens: Sequence[int]) -> None:
        self.calls.append(len(tokens))


def test_prefill_is_one_batch_from_an_empty_sequence() -> None:
    engine = RecordingEngine()
    assert measure(engine, Job("prefill", prompt=512)) > 0
    assert engine.calls == [0, 512]


def test_decode_is_one_token_at_a_time_behind_the_prompt() -> None:
    engine = RecordingEngine()
    assert measure(engine, Job("decode", prompt=16, generated=3)) > 0
    assert engine.calls == [0, 16, 1, 1, 1]


def test_a_worker_answers_a_line_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asdict(Job("prefill", 8))) + "\n"))
    serve(RecordingEngine())
    ready, answer = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert ready == {"ready": "recording"}
    assert answer["tokens_per_s"] > 0


class FakeWorker:
    """Stands for an engine's process; its speed grows with every call."""

    def __init__(self, name: str, speed: float, order: list[str]) -> None:
        self.name, self._speed, self._order = name, speed, order

    def measure(self, _: Job) -> float:
        self._order.append(self.name)
        self._speed += 1
        return self._speed


def test_this_engine_is_measured_in_its_own_process(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "LOG_FOLDER", tmp_path)
    monkeypatch.setenv("SHALE_KERNELS", "reference")
    with bench.Worker("shale", sys.executable, "tools.bench.shale_worker", demo_model, 1) as worker:
        assert worker.description == "shale, reference kernels, numpy"
        assert worker.measure(Job("decode", prompt=4, generated=2)) > 0


def test_an_engine_that_does_not_start_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LOG_FOLDER", tmp_path)
    with pytest.raises(RuntimeError, match="no_such_file"):
        bench.Worker("shale", sys.executable, "tools.bench.shale_worker", tmp_path / "no_such_file", 1)


def test_engines_alternate_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SETTLE_S", 0)
    order: list[str] = []
    workers = (FakeWorker("a", 10, order), FakeWorker("b", 20, order))
    rounds = bench.interleave(workers, Job("prefill", 8), 3)  # type: ignore[arg-type]
    assert rounds == [(12, 22), (13, 23), (14, 24)]
    assert "".join(order) == "abbaabba"


def test_a_row_has_the_median_of_the_ratios_not_the_ratio_of_the_medians() -> None:
    row = bench.Row.of("m", Job("decode", 16, 48), [(10.0, 10.0), (30.0, 10.0), (20.0, 40.0)])
    assert (row.shale, row.llamacpp, row.ratio, row.ratio_range) == (20.0, 10.0, 1.0, (0.5, 3.0))
    assert bench.line(row) == "| m | decode 48 | 20.0 | 10.0 | **1.00** (0.50 to 3.00) |"


def test_quick_takes_one_model_and_three_rounds() -> None:
    plan, _ = bench.parse(["--quick", "--threads", "2"])
    assert (plan.models, plan.num_rounds, plan.num_thread) == (("llama-1b:q4_k_m",), 3, 2)


def test_an_unknown_model_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse(["--model", "gpt-5:q4_0"])
    assert "llama-1b" in capsys.readouterr().err


def test_only_the_first_processor_is_read() -> None:
    text = "model name\t: One\nflags\t\t: avx2 amx_int8\n\nmodel name\t: Two\n"
    assert read_cpuinfo(text) == {"model name": "One", "flags": "avx2 amx_int8"}
