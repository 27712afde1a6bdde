"""The measuring harness: in which order sides are measured, what is made of the figures, and what can be asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.bench import __main__ as bench
from tools.bench import compare, process
from tools.bench.compare import Row, interleave, rows
from tools.bench.machine import read_cpuinfo
from tools.bench.measures import EMBEDDING_KINDS, KINDS, SHALLOW
from tools.bench.process import Place, Worker, idle_shares
from tools.bench.suites import LLAMACPP, SHALE, SUITES
from tools.bench.worker import Figures, Job, Settings
from tools.make_gguf import RECIPES, SHAPES

SHALE_PLACE = Place("shale", sys.executable, "tools.bench.shale_worker")


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_FOLDER", tmp_path)
    monkeypatch.setattr(compare, "SETTLE_S", 0)


def test_an_engine_is_measured_in_a_process_of_its_own(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHALE_KERNELS", "reference")
    with Worker(SHALE_PLACE, demo_model, Settings(1)) as worker:
        assert worker.description == "shale, reference kernels, numpy"
        assert worker.measure(Job("decode", prompt=4, generated=2))["tokens/s"] > 0
        assert any(idle_shares([worker], 0.2)["shale"] < 0.5 for _ in range(50)), "an engine comes to rest"


def test_an_engine_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no_such_file"):
        Worker(SHALE_PLACE, tmp_path / "no_such_file", Settings(1))


def rising(name: str, speed: float, order: list[str]) -> Callable[[], Figures]:
    """A side that gets faster with every call."""

    def side() -> Figures:
        nonlocal speed
        order.append(name)
        speed += 1
        return {"tokens/s": speed}

    return side


def test_sides_alternate_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    found = interleave(rising("a", 10, order), rising("b", 20, order), 3)
    assert [(a["tokens/s"], b["tokens/s"]) for a, b in found] == [(12, 22), (13, 23), (14, 24)]
    assert "".join(order) == "abbaabba"


def test_a_row_has_the_median_of_the_ratios_not_the_ratio_of_the_medians() -> None:
    row = Row.of("m", "decode", "tokens/s", [(10.0, 10.0), (30.0, 10.0), (20.0, 40.0)])
    assert (row.first, row.second, row.ratio, row.ratio_range) == (20.0, 10.0, 1.0, (0.5, 3.0))
    assert row.line() == "| m | decode | 20.0 | 10.0 | tokens/s | **1.00** (0.50 to 3.00) |"


def test_of_times_the_smaller_is_better() -> None:
    assert Row.of("m", "first token", "p99 ms", [(10.0, 30.0)]).ratio == 3.0


def test_each_figure_of_a_measurement_is_a_row() -> None:
    found = rows("m", "gaps", [({"p50 ms": 1.0, "p99 ms": 2.0}, {"p50 ms": 2.0, "p99 ms": 3.0})])
    assert [(row.unit, row.ratio) for row in found] == [("p50 ms", 2.0), ("p99 ms", 1.5)]


def test_quick_takes_the_first_model_of_each_suite_and_three_rounds() -> None:
    plan, _ = bench.parse(["--quick", "--threads", "2"])
    assert plan.suites.keys() == SUITES.keys()
    assert plan.suites["many"] == ("llama-1b:q4_k_m",)
    assert (plan.num_rounds, plan.num_thread) == (3, 2)


def test_suites_and_models_can_be_chosen() -> None:
    plan, _ = bench.parse(["--only", "many,embed", "--model", "qwen3-0.6b:q4_0"])
    assert plan.suites == {"many": ("qwen3-0.6b:q4_0",), "embed": ("qwen3-0.6b:q4_0",)}


@pytest.mark.parametrize(
    ("arguments", "known"), [(["--model", "gpt-5:q4_0"], "llama-1b"), (["--only", "speed"], "attention")]
)
def test_the_unknown_is_refused_with_the_known_ones(
    arguments: list[str], known: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench.parse(arguments)
    assert known in capsys.readouterr().err


@pytest.mark.parametrize("name", SUITES)
def test_what_a_suite_names_exists(name: str) -> None:
    suite = SUITES[name]
    for model in suite.models:
        shape, recipe = model.split(":")
        assert shape in SHAPES
        assert recipe in RECIPES
    for case in suite.cases:
        assert {case.first[1].kind, case.second[1].kind} <= KINDS.keys() | EMBEDDING_KINDS.keys()
        for _, job in (case.first, case.second):
            reached = job.depth + job.prompt if job.kind == "deep" else max(job.prompt, SHALLOW + job.generated)
            assert reached <= suite.settings.num_ctx


def test_a_suite_starts_only_the_engines_that_it_needs() -> None:
    assert SUITES["many"].engines == (SHALE, LLAMACPP)
    assert SUITES["latency"].engines == (SHALE,)


def test_only_the_first_processor_is_read() -> None:
    text = "model name\t: One\nflags\t\t: avx2 amx_int8\n\nmodel name\t: Two\n"
    assert read_cpuinfo(text) == {"model name": "One", "flags": "avx2 amx_int8"}
