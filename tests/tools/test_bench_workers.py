"""The measured engines themselves, on small models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tools.bench import process
from tools.bench.process import Place, Worker
from tools.bench.shale_worker import ShaleEngine
from tools.bench.suites import SUITES
from tools.bench.worker import Job, Request, Settings
from tools.tiny_models import write_tiny_model

PEER = os.environ.get("SHALE_PEER_PYTHON", "")


@pytest.fixture(scope="module")
def engine(demo_model: Path) -> Iterator[ShaleEngine]:
    engine = ShaleEngine(demo_model, Settings(1, num_ctx=128, num_batch=32, num_parallel=3))
    yield engine
    engine.close()


def test_a_sequence_grows_and_goes_back(engine: ShaleEngine) -> None:
    engine.forward(range(5, 15))
    engine.forward(range(5, 8), 1)
    engine.rewind(4)
    assert (engine.num_past(0), engine.num_past(1), engine.num_past(2)) == (4, 3, 0)
    engine.forward((5,))
    assert engine.num_past(0) == 5
    engine.reset()
    assert engine.num_past(0) == 0


def test_every_token_of_a_load_has_its_time(engine: ShaleEngine) -> None:
    requests = [Request((5, 6, 7), 6), Request((8, 9), 4), Request(tuple(range(5, 85)), 1, after=2)]
    first, second, late = engine.complete(requests)
    assert (len(first), len(second), len(late)) == (6, 4, 1)
    assert first == sorted(first)
    assert first[1] < late[0]


def test_what_runs_in_the_background_ends_with_the_others(engine: ShaleEngine) -> None:
    background, other = engine.complete([Request((5,), 1000, is_background=True), Request((6,), 3)])
    assert len(other) == 3
    num_then = -1
    while num_then < len(background):  # until it has come to rest
        num_then = len(background)
        time.sleep(0.3)
    assert len(background) < 1000


def test_a_request_that_fails_is_said_to(engine: ShaleEngine) -> None:
    with pytest.raises(ValueError, match="tokens are 0 to"):
        engine.complete([Request((10**9,), 1)])


def worker(module: str, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> Worker:
    monkeypatch.setattr(process, "LOG_FOLDER", folder)
    return Worker(Place("worker", python, f"tools.bench.{module}"), model, Settings(1, num_ctx=128, num_parallel=3))


def test_embeddings_go_through_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny_model(tmp_path / "tiny-bert.gguf", "bert")
    with worker("server_worker", model, tmp_path, monkeypatch, sys.executable) as server:
        assert server.description == "shale serve, tiny-bert"
        assert server.measure(Job("embed", prompt=10, sequences=3))["inputs/s"] > 0
        assert server.measure(Job("embed_singly", prompt=10, sequences=3))["inputs/s"] > 0


@pytest.mark.skipif(not PEER, reason="SHALE_PEER_PYTHON names no Python with llama_cpp")
def test_llamacpp_takes_the_same_jobs(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with worker("llamacpp_worker", demo_model, tmp_path, monkeypatch, PEER) as peer:
        for job in (
            Job("decode", prompt=4, generated=2),
            Job("together", prompt=4, generated=3, sequences=3),
            Job("mixed", prompt=40, generated=8, sequences=2),
            Job("deep", prompt=8, generated=2, depth=64),
        ):
            assert all(value == value for value in peer.measure(job).values())


@pytest.mark.skipif(not PEER, reason="SHALE_PEER_PYTHON names no Python with llama_cpp")
def test_llamacpp_embeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny_model(tmp_path / "tiny-bert.gguf", "bert")
    with worker("llamacpp_worker", model, tmp_path, monkeypatch, PEER) as peer:
        assert peer.measure(Job("embed", prompt=20, sequences=30))["inputs/s"] > 0


def test_a_run_prints_a_table_and_writes_a_report(demo_model: Path, tmp_path: Path, repository_root: Path) -> None:
    """``python -m tools.bench`` as a whole, with the demo model in place of a file of random weights."""
    script = (
        "import sys; from pathlib import Path; from tools.bench import __main__ as bench;"
        f"bench.model_file = lambda model: Path({str(demo_model)!r}); bench.SETTLE_S = 0;"
        f"sys.argv = ['bench', '--quick', '--only', 'prefix', '--threads', '1', '--out', {str(tmp_path / 'o.json')!r}];"
        "bench.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=repository_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| llama-1b:q4_k_m | first token |" in done.stdout
    report = json.loads((tmp_path / "o.json").read_text("utf-8"))
    assert report["prefix"][0]["ratio"] > 1
    assert report["plan"]["suites"] == {"prefix": ["llama-1b:q4_k_m"]}
    assert asdict(SUITES["prefix"].settings)["num_parallel"] == 2
