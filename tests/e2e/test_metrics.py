"""What an operator and a waiting user see of a real server: /metrics, /api/ps and bars while a model loads."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ollama
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import ENDLESS_S, TIMEOUT_S, Server

from tests.waiting import until

DEMO = "shale-demo"
TINY = "tiny/llama"
BERT = "tiny/bert"
ASK = {"model": DEMO, "prompt": "What does os.getcwd do?", "options": {"temperature": 0, "num_predict": 5}}
STEPS = "shale_steps_total"
SECRET = "s3cr3t-value-of-a-key"


@pytest.fixture(scope="module")
def counted(models: Path, repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, that keeps one model at a time, so that counts are this file's."""
    log = tmp_path_factory.mktemp("log") / "counted.log"
    settings = {"SHALE_MAX_LOADED_MODELS": "1", "SHALE_DEBUG": "1", "X_API_KEY": SECRET, "HF_TOKEN": SECRET}
    server = Server(repository_root, models, log, **settings)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()
    assert SECRET not in log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


def look(server: Server) -> list[Any]:
    text = server.get("/metrics").raise_for_status().text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def scrape(server: Server) -> list[Any]:
    """Looks again where a runner took too long to answer."""
    return next((found for found in (look(server) for _ in range(20)) if is_complete(found)), None) or look(server)


def is_complete(samples: list[Any]) -> bool:
    loaded, told = ({s.labels["model"] for s in samples if s.name == name} for name in ("shale_model_bytes", STEPS))
    return loaded == told


def value(server: Server, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    found = (s for s in scrape(server) if s.name == name and labels.items() <= s.labels.items())
    return float(sum(sample.value for sample in found))


def model_of(server: Server) -> dict[str, Any]:
    """The one that is loaded, with what its runner tells."""
    found: dict[str, Any] = until(lambda: next((each for each in server.models() if "sequences" in each), None))
    return found


def unload_all(server: Server) -> None:
    for model in server.models():
        server.unload(model["name"])


@contextlib.contextmanager
def stopped_load(server: Server) -> Iterator[psutil.Process]:
    """A request for the demo model whose runner stands still before it answers for the first time."""
    unload_all(server)
    answer, runner = server.held_load(ASK)
    try:
        yield runner
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # it was killed
            runner.resume()
        answer.result(TIMEOUT_S)


# ---- counters ----------------------------------------------------------------------------------


def test_a_request_moves_every_counter_it_should(counted: Server) -> None:
    unload_all(counted)
    names = ("shale_loads_total", "shale_load_seconds_count", "shale_queue_wait_seconds_count")
    before = [value(counted, name) for name in names]
    generated = value(counted, "shale_generated_tokens_total", model=DEMO)
    answered = value(counted, "shale_requests_total", route="/api/generate", method="POST", status="200")
    with counted.stream("/api/generate", ASK) as response:
        assert len(list(response.iter_lines())) >= 2
    assert [value(counted, name) for name in names] == [count + 1 for count in before]
    assert value(counted, "shale_generated_tokens_total", model=DEMO) == generated + 5
    until(lambda: value(counted, "shale_requests_total", route="/api/generate", status="200") == answered + 1)
    assert value(counted, "shale_models_loaded") == 1
    assert value(counted, "shale_queue_length") == 0
    phases = [value(counted, "shale_load_phase_seconds_total", phase=p) for p in ("process", "layout", "weights")]
    assert all(seconds > 0 for seconds in phases)
    assert sum(phases) <= value(counted, "shale_load_seconds_sum")


def test_an_eviction_counts_and_bytes_are_those_that_ps_tells(counted: Server) -> None:
    counted.post("/api/generate", ASK)
    before = value(counted, "shale_evictions_total", reason="max_models")
    counted.post("/api/generate", {"model": TINY})
    assert value(counted, "shale_evictions_total", reason="max_models") == before + 1
    (model,) = counted.models()
    held = [s for s in scrape(counted) if s.name == "shale_device_bytes" and s.labels["kind"] != "free"]
    assert sum(sample.value for sample in held) == model["size"]
    assert value(counted, "shale_model_bytes", model=TINY) == model["size"]
    assert value(counted, "shale_device_bytes", device="cpu", kind="free") > 0
    unload_all(counted)
    assert value(counted, "shale_model_bytes") == 0


def test_a_killed_runner_is_a_crash_once(counted: Server) -> None:
    counted.post("/api/generate", ASK)
    before = value(counted, "shale_crashes_total")
    for runner in counted.runners():
        runner.send_signal(signal.SIGKILL)
    until(lambda: value(counted, "shale_crashes_total") == before + 1)
    until(lambda: not counted.models())
    assert value(counted, "shale_unloads_total", reason="crashed") >= 1
    assert counted.post("/api/generate", ASK).status_code == 200
    assert value(counted, "shale_crashes_total") == before + 1


def test_a_runner_killed_while_it_loads_is_a_crash_and_a_failed_load(counted: Server) -> None:
    before = value(counted, "shale_crashes_total"), value(counted, "shale_loads_total", result="crashed")
    with stopped_load(counted) as runner:
        runner.kill()
    assert value(counted, "shale_crashes_total") == before[0] + 1
    assert value(counted, "shale_loads_total", result="crashed") == before[1] + 1


def test_a_key_in_a_request_is_not_logged(counted: Server) -> None:
    headers = {"authorization": f"Bearer {SECRET}"}
    httpx.get(f"{counted.url}/api/tags?api_key={SECRET}", headers=headers, trust_env=False)
    until(lambda: "/api/tags?api_key=[redacted]" in counted.log.read_text())


def test_paths_of_strangers_make_one_series(counted: Server) -> None:
    for number in range(5):
        httpx.get(f"{counted.url}/wp-admin/{number}", trust_env=False)
    until(lambda: value(counted, "shale_requests_total", route="other") >= 5)
    routes = {sample.labels["route"] for sample in scrape(counted) if sample.name == "shale_requests_total"}
    assert not [route for route in routes if "wp-admin" in route]


# ---- what engines tell -------------------------------------------------------------------------


def test_an_engine_tells_of_its_work(counted: Server) -> None:
    unload_all(counted)
    for _ in range(3):
        counted.post("/api/generate", ASK)
    model = model_of(counted)
    assert model["sequences"]["active"] == model["sequences"]["waiting"] == 0
    cache = model["cache"]
    assert cache["cells"] == model["sequences"]["parallel"] * model["context_length"]
    assert cache["used"] + cache["free"] == cache["cells"]
    assert cache["used"] == cache["cached"] > 0
    assert (cache["prefix_hits"], cache["prefix_misses"]) == (2, 1)
    found = {sample.name: sample.value for sample in scrape(counted) if sample.labels.get("model") == DEMO}
    assert found["shale_cache_cells"] == cache["cells"]
    assert found["shale_cache_prefix_hits_total"] == 2
    assert found["shale_cache_reused_tokens_total"] == cache["reused_tokens"] > 0
    assert found["shale_first_token_seconds_count"] == found["shale_sequence_wait_seconds_count"] == 3
    assert found["shale_inter_token_seconds_count"] == 12  # five tokens each
    assert found["shale_step_seconds_count"] == found[STEPS] >= 15
    assert 0 < found["shale_step_seconds_sum"] < 30
    assert 0 < found["shale_batch_occupancy_ratio"] <= 1
    header, row = counted.command("ps").stdout.splitlines()
    assert "CACHE    SEQUENCES" in header
    assert f" 0 of {model['sequences']['parallel']} " in row


def test_an_engine_tells_of_embeddings(counted: Server) -> None:
    unload_all(counted)
    answer = counted.post("/api/embed", {"model": BERT, "input": ["abc", "something else", "abc"]}).json()
    assert value(counted, STEPS, model=BERT) == 1
    assert value(counted, "shale_step_seconds_count", model=BERT) == 1
    assert value(counted, "shale_step_sequences_total", model=BERT) == 3
    assert value(counted, "shale_step_tokens_total", model=BERT) == answer["prompt_eval_count"]
    assert 0 < value(counted, "shale_batch_occupancy_ratio", model=BERT) <= 1
    model = model_of(counted)
    assert model["sequences"]["active"] == model["sequences"]["waiting"] == 0


def test_inputs_under_way_are_no_more_than_can_be_and_the_others_wait(counted: Server) -> None:
    counted.post("/api/embed", {"model": BERT})
    body = {"model": BERT, "input": ["many words " * 100] * 600}
    is_seen = threading.Event()

    def embed() -> None:
        """Again and again, so that there is something to see."""
        while not is_seen.is_set():
            assert counted.post("/api/embed", body).status_code == 200

    def others_wait() -> bool:
        sequences = model_of(counted)["sequences"]
        assert sequences["active"] <= sequences["parallel"]
        return bool(sequences["waiting"] > sequences["parallel"])

    with ThreadPoolExecutor(1) as pool:
        embedding = pool.submit(embed)
        try:
            until(others_wait)
            parallel = model_of(counted)["sequences"]["parallel"]
            until(lambda: value(counted, "shale_sequences_waiting", model=BERT) > parallel)
        finally:
            is_seen.set()
        embedding.result(TIMEOUT_S)
    sequences = model_of(counted)["sequences"]
    assert (sequences["active"], sequences["waiting"]) == (0, 0)


def test_choices_compute_their_prompt_once(counted: Server) -> None:
    counted.post("/api/generate", ASK)
    before = value(counted, "shale_step_tokens_total", model=DEMO)
    prompt = "a prompt that nobody has asked before and that has many words " * 20
    body = {"model": DEMO, "prompt": prompt, "n": 8, "max_tokens": 3}
    usage = counted.post("/v1/completions", body).json()["usage"]
    computed = value(counted, "shale_step_tokens_total", model=DEMO) - before
    assert usage["prompt_tokens"] > 200
    assert computed <= usage["prompt_tokens"] + 8 * 4


def test_choices_are_seen_at_work_and_gone_with_their_client(counted: Server) -> None:
    counted.post("/api/generate", {"model": DEMO})
    body = {"model": DEMO, "prompt": "a", "n": 128, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    parallel = model_of(counted)["sequences"]["parallel"]
    with counted.stream("/v1/completions", body) as response:
        lines = response.iter_lines()  # held: an iterator that goes closes the connection
        next(lines)
        # As many as there are sequences compute, and as many again are ready to follow.
        at_work = {"active": parallel, "waiting": parallel, "parallel": parallel}
        until(lambda: model_of(counted)["sequences"] == at_work)
        until(lambda: value(counted, "shale_sequences_active", model=DEMO) == parallel)
    at_rest = {"active": 0, "waiting": 0, "parallel": parallel}
    until(lambda: model_of(counted)["sequences"] == at_rest, ENDLESS_S)


def test_a_runner_that_stands_still_does_not_hold_up_a_scrape(counted: Server) -> None:
    counted.post("/api/generate", ASK)
    before = value(counted, "shale_unanswered_scrapes_total", model=DEMO)
    (runner,) = counted.runners()
    runner.suspend()
    try:
        began = time.monotonic()
        names = {sample.name for sample in look(counted)}
        (model,) = counted.models()
        assert time.monotonic() - began < 10
    finally:
        runner.resume()
    assert "shale_models_loaded" in names
    assert STEPS not in names
    assert model["state"] == "ready"
    assert "cache" not in model
    assert value(counted, "shale_unanswered_scrapes_total", model=DEMO) > before
    until(lambda: value(counted, STEPS, model=DEMO) > 0)


def test_a_new_runner_counts_from_0_and_a_series_is_there_once(counted: Server) -> None:
    for _ in range(3):
        counted.post("/api/generate", ASK)
    before = value(counted, STEPS, model=DEMO)
    unload_all(counted)
    assert not [sample for sample in scrape(counted) if sample.name == STEPS]
    counted.post("/api/generate", ASK)
    (sample,) = (sample for sample in scrape(counted) if sample.name == STEPS)
    assert 0 < sample.value < before


# ---- while a model loads -----------------------------------------------------------------------


def test_ps_tells_of_a_load_under_way(counted: Server) -> None:
    client = ollama.Client(counted.url)
    with stopped_load(counted):
        (model,) = client.ps().models  # the package's ProcessResponse takes it
        assert (model.model, model.size) == (DEMO, None)
        assert model.expires_at is not None
        (model,) = counted.models()
        assert (model["state"], model["progress"]) == ("loading", 0.0)
        assert value(counted, "shale_models", state="loading") == 1
        listed = counted.command("ps").stdout
        assert "loading [                ] 0%" in listed
    (model,) = client.ps().models
    assert (model.model, model.size) == (DEMO, counted.models()[0]["size"])
    assert counted.models()[0]["state"] == "ready"
    assert " ready " in counted.command("ps").stdout
    client._client.close()


class Screen:
    """``shale run`` on a terminal that knows colours: ``text`` is all that was written to it."""

    def __init__(self, server: Server, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "server", "run", *arguments]
        environment = {**server.environment, "TERM": "xterm"}
        self.process = subprocess.Popen(
            command, cwd=server.root, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.text = ""

    def has(self, text: str) -> bool:
        with contextlib.suppress(BlockingIOError, OSError):
            self.text += os.read(self._master, 65536).decode(errors="replace")
        return text in self.text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def test_a_bar_shows_on_the_terminal_and_is_gone_before_the_answer(counted: Server) -> None:
    with stopped_load(counted) as runner:
        screen = Screen(counted, DEMO)
        try:
            until(lambda: screen.has(f"loading {DEMO}"))
            runner.resume()
            until(lambda: screen.has(">>> "))
        finally:
            screen.close()
    after_bar = screen.text.rpartition(f"loading {DEMO}")[2]
    assert "\x1b[2K" in after_bar.partition("/bye")[0]  # the line is erased before anything else is printed
