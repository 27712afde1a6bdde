"""The runner as others meet it: a real process with a real model, over HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.runner.runner_process import (
    ROOT,
    RunnerProcess,
    command,
    environment,
    running,
    text_of,
    tokens_of,
)
from tests.waiting import rests, until

POSTS = ("load", "completion", "embedding", "tokenize", "detokenize")
ROUTES = [("GET", "/health"), ("GET", "/info"), *(("POST", f"/{name}") for name in POSTS), ("GET", "/nowhere")]
LOAD = {"num_ctx": 256, "num_parallel": 2, "num_batch": 32}
LOG = "runner.log"


@pytest.fixture(scope="module")
def runner(tiny_models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerProcess]:
    """A loaded causal model."""
    with running(tiny_models("llama", "Q8_0"), tmp_path_factory.mktemp("llama") / LOG, LOAD) as process:
        yield process


@pytest.fixture(scope="module")
def embedder(tiny_models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerProcess]:
    with running(tiny_models("bert", "F16"), tmp_path_factory.mktemp("bert") / LOG, {"num_ctx": 128}) as process:
        yield process


# ---- the door ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("header", [None, "Bearer wrong", "a-token-of-this-test", "Bearer a-token"])
def test_every_route_demands_the_token(runner: RunnerProcess, method: str, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = httpx.request(method, runner.url + path, headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"error": "unauthorized"})


def test_the_token_is_not_in_the_log_nor_on_the_command_line(runner: RunnerProcess) -> None:
    assert "a-token" not in runner.output()
    assert "a-token" not in " ".join(psutil.Process(runner.process.pid).cmdline())


def test_info_tells_devices_and_kernels(runner: RunnerProcess) -> None:
    info = runner.client.get("/info").json()
    assert [device["id"] for device in info["devices"]] == ["cpu"]
    assert info["kernels"] == "fast"
    assert info["num_thread"] >= 1


# ---- load --------------------------------------------------------------------------------------


def test_load_operations_go_in_their_order(tiny_models: Callable[..., Path], tmp_path: Path) -> None:
    with running(tiny_models("llama", "Q8_0"), tmp_path / LOG) as fresh:
        assert fresh.client.get("/health").json()["status"] == 2
        for path, body in (
            ("/completion", {"prompt": "a"}),
            ("/tokenize", {"text": "a"}),
            ("/embedding", {"inputs": []}),
        ):
            answer = fresh.post(path, body)
            assert answer.status_code == 503, path
            assert "no model is loaded" in answer.json()["error"]
        early = fresh.post("/load", {"operation": 2, **LOAD})
        assert early.status_code == 409
        assert "alloc" in early.json()["error"]
        fit = fresh.post("/load", {"operation": 0, **LOAD}).json()
        alloc = fresh.post("/load", {"operation": 1, **LOAD}).json()
        assert fit == alloc
        fresh.load(**LOAD)
        again = fresh.post("/load", {"operation": 1, **LOAD})
        assert again.status_code == 409
        before = fresh.complete("hello", num_predict=4)
        assert fresh.post("/load", {"operation": 3}).status_code == 200
        assert fresh.post("/completion", {"prompt": "a"}).status_code == 503
        fresh.load(**LOAD)
        assert tokens_of(fresh.complete("hello", num_predict=4)) == tokens_of(before)


def test_close_ends_an_answer_under_way_with_an_error_line(tiny_models: Callable[..., Path], tmp_path: Path) -> None:
    with running(tiny_models("llama", "Q8_0"), tmp_path / LOG, {"num_ctx": 65536}) as process:
        body = {"prompt": "a", "options": {"ignore_eos": True}}
        with process.client.stream("POST", "/completion", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert process.post("/load", {"operation": 3}).status_code == 200
            assert json.loads(list(lines)[-1]) == {"error": "the model was unloaded"}


# ---- the cache ---------------------------------------------------------------------------------


def test_the_cache_shrinks_and_grows_while_the_model_answers(tiny_models: Callable[..., Path], tmp_path: Path) -> None:
    with running(tiny_models("llama", "Q8_0"), tmp_path / LOG) as process:
        process.load(**LOAD)
        whole = process.client.get("/stats").json()["cache"]["num_cells"]
        before = process.complete("hello", num_predict=8)
        grown = process.post("/cache", {"budget_bytes": 10 << 20}).json()
        assert grown["num_cells"] > whole
        held = -(-grown["held_bytes"] * whole // grown["num_cells"] // 64) * 64
        assert process.post("/cache", {"budget_bytes": 1 << 60}).status_code == 507
        shrunk = process.post("/cache", {"budget_bytes": held // 4}).json()
        assert shrunk["held_bytes"] <= held // 4
        assert 0 < shrunk["num_cells"] < whole
        assert tokens_of(process.complete("hello", num_predict=8)) == tokens_of(before)
        assert process.client.get("/stats").json()["cache"]["num_cells"] == shrunk["num_cells"]
        too_long = process.post("/completion", {"prompt": [7] * (shrunk["num_cells"] + 1)})
        assert too_long.status_code == 500
        assert "the KV cache is full" in too_long.json()["error"]
        again = process.post("/cache", {"budget_bytes": held}).json()
        assert (again["num_cells"], again["held_bytes"] <= held) == (whole, True)
        assert process.post("/cache", {"budget_bytes": -1}).status_code == 400


@pytest.mark.parametrize(("budget_bytes", "status"), [(2**62, 507), (2**62 + 1, 400), (10**30, 400)])
def test_a_budget_beyond_all_memory_ends_nobody(runner: RunnerProcess, budget_bytes: int, status: int) -> None:
    body = {"prompt": "a", "options": {"ignore_eos": True, "num_predict": 100}}
    with runner.client.stream("POST", "/completion", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        refused = runner.post("/cache", {"budget_bytes": budget_bytes})
        assert (refused.status_code, list(refused.json())) == (status, ["error"])
        assert json.loads(list(lines)[-1])["done"]


# ---- completion --------------------------------------------------------------------------------


def test_a_completion_is_lines_and_one_final_line(runner: RunnerProcess) -> None:
    answer = runner.post("/completion", {"prompt": "hello", "options": {"num_predict": 5, "ignore_eos": True}})
    assert answer.headers["content-type"] == "application/x-ndjson"
    *lines, final = [json.loads(line) for line in answer.text.splitlines()]
    assert all(set(line) == {"content", "tokens"} for line in lines)
    assert set(final) == {
        "done", "done_reason", "prompt_eval_count", "prompt_eval_cached", "prompt_eval_duration", "eval_count",
        "eval_duration",
    }  # fmt: skip
    assert (final["done"], final["done_reason"], final["eval_count"]) == (True, "length", 5)
    assert len(tokens_of(lines)) == 5


def test_the_same_request_gives_the_same_answer_alone_and_in_a_crowd(runner: RunnerProcess) -> None:
    def ask(seed: int) -> list[int]:
        return tokens_of(runner.complete(f"prompt {seed}", temperature=1.0, seed=seed, num_predict=20))

    alone = [ask(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == alone
    assert len(set(map(tuple, alone))) > 1


def test_logprobs_are_told_with_their_tokens(runner: RunnerProcess) -> None:
    lines = runner.complete("hello", num_predict=4, ignore_eos=True, request={"top_logprobs": 3})
    entries = [entry for line in lines for entry in line.get("logprobs", ())]
    assert [entry["id"] for entry in entries] == tokens_of(lines)
    for entry in entries:
        values = [top["logprob"] for top in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert (entry["id"], entry["logprob"]) == (entry["top_logprobs"][0]["id"], values[0])
        assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]
        assert values[0] < 0


def test_a_stop_string_cuts_the_text_where_it_begins(runner: RunnerProcess) -> None:
    whole = text_of(runner.complete("hello", num_predict=24, ignore_eos=True))
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    lines = runner.complete("hello", num_predict=24, ignore_eos=True, stop=[stop])
    assert text_of(lines) == whole[: whole.find(stop)]
    assert (lines[-1]["done_reason"], lines[-1]["stopped_by"]) == ("stop", stop)


def test_a_long_prompt_is_cut_and_says_so_or_is_refused(runner: RunnerProcess) -> None:
    tokens = [5 + i % 100 for i in range(300)]
    final = runner.complete(tokens, num_predict=4, request={"return_prompt_tokens": True})[-1]
    assert (final["prompt_eval_count"], final["truncated"]) == (252, 48)
    assert final["prompt_tokens"] == tokens[:4] + tokens[-248:]
    refused = runner.post("/completion", {"prompt": tokens, "truncate": False})
    assert refused.status_code == 400
    assert "300 tokens, the context 256" in refused.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/completion", {"prompt": ""}, "the prompt is empty"),
        ("/completion", {"prompt": [-1]}, "token 0 is -1"),
        ("/completion", {"prompt": [999999]}, "token 0 is 999999"),
        ("/completion", {"prompt": 5}, "prompt"),
        ("/completion", {"prompt": "a", "colour": 1}, "colour"),
        ("/completion", {"prompt": "a", "options": {"top_p": 2}}, "top_p"),
        ("/completion", {"prompt": "a", "top_logprobs": 21}, "top_logprobs"),
        ("/completion", {"prompt": "a", "echo": True}, "echo"),
        ("/completion", {"prompt": "\ud800"}, "surrogate"),
        ("/tokenize", {}, "text"),
        ("/detokenize", {"tokens": [999999]}, "999999"),
        ("/load", {"operation": 9}, "operation"),
    ],
)
def test_what_cannot_be_served_is_400_and_a_sentence(
    runner: RunnerProcess, path: str, body: dict[str, Any], sentence: str
) -> None:
    content = json.dumps(body)
    answer = runner.client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]


def test_bad_json_and_unknown_routes_have_error_bodies_too(runner: RunnerProcess) -> None:
    bad = runner.client.post("/completion", content="{bad", headers={"Content-Type": "application/json"})
    assert (bad.status_code, bad.json()) == (400, {"error": "invalid request: character 1: JSON decode error"})
    assert (runner.client.get("/nowhere").status_code, runner.client.get("/load").status_code) == (404, 405)
    assert runner.client.get("/load").json() == {"error": "Method Not Allowed"}


def test_tokens_go_to_text_and_back(runner: RunnerProcess) -> None:
    body = {"text": "hello wörld 😀", "add_special": False}
    tokens = runner.post("/tokenize", body).json()["tokens"]
    assert runner.post("/detokenize", {"tokens": tokens}).json() == {"text": "hello wörld 😀"}
    long = runner.post("/tokenize", {"text": "hello " * 5000}).json()["tokens"]
    assert len(long) >= 5000


# ---- leaving -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(tiny_models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerProcess]:
    """One request at a time, one token a step: a long prompt takes a second or more, a long answer minutes."""
    load = {"num_ctx": 65536, "num_parallel": 1, "num_batch": 1}
    with running(tiny_models("llama", "Q8_0"), tmp_path_factory.mktemp("slow") / LOG, load) as process:
        yield process


ENDLESS = {"ignore_eos": True, "num_predict": 10**6}
SOON_S = 10.0  # for one token, on a busy machine; far less than an endless answer takes


def is_answered_soon(process: RunnerProcess) -> bool:
    start = time.perf_counter()
    process.complete([5], num_predict=1)
    return time.perf_counter() - start < SOON_S


def test_a_client_that_leaves_while_its_prompt_runs_stops_the_work(slow: RunnerProcess) -> None:
    prompt = [5 + i % 200 for i in range(20_000)]
    slow.abandon(prompt, lambda: until(lambda: slow.stats()["num_active"]), **ENDLESS)
    assert is_answered_soon(slow)


def test_a_client_that_leaves_while_it_waits_is_forgotten(slow: RunnerProcess) -> None:
    def others_come_and_go() -> None:
        until(lambda: slow.stats()["num_active"])
        for _ in range(4):
            slow.abandon([6], lambda: until(lambda: slow.stats()["num_waiting"]), **ENDLESS)
            until(lambda: not slow.stats()["num_waiting"])

    slow.abandon([5], others_come_and_go, **ENDLESS)
    assert is_answered_soon(slow)


def test_a_client_that_leaves_in_the_middle_of_its_answer_stops_the_work(slow: RunnerProcess) -> None:
    body = {"prompt": [5], "options": {"temperature": 0, **ENDLESS}}
    with slow.client.stream("POST", "/completion", json=body) as answer:
        next(answer.iter_lines())
    assert is_answered_soon(slow)
    assert rests(psutil.Process(slow.process.pid))


# ---- embeddings --------------------------------------------------------------------------------


def test_a_batch_of_embeddings_is_as_each_alone(embedder: RunnerProcess) -> None:
    texts = ["hello world", "the", "a longer text than the others"]
    together = embedder.post("/embedding", {"inputs": texts}).json()
    alone = [embedder.post("/embedding", {"inputs": [text]}).json() for text in texts]
    assert together["embeddings"] == [each["embeddings"][0] for each in alone]
    assert together["prompt_eval_counts"] == [each["prompt_eval_counts"][0] for each in alone]
    assert np.linalg.norm(together["embeddings"], axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    raw = embedder.post("/embedding", {"inputs": texts[:1], "normalize": False}).json()["embeddings"][0]
    assert np.array(raw) / np.linalg.norm(raw) == pytest.approx(together["embeddings"][0], abs=1e-5)


def test_embedding_errors_have_their_status(embedder: RunnerProcess, runner: RunnerProcess) -> None:
    long = embedder.post("/embedding", {"inputs": ["hello " * 300], "truncate": False})
    assert long.status_code == 400
    assert "the input length exceeds the context length" in long.json()["error"]
    assert embedder.post("/embedding", {"inputs": ["hello " * 300]}).json()["prompt_eval_counts"] == [128]
    assert embedder.post("/completion", {"prompt": "a"}).status_code == 400
    refused = runner.post("/embedding", {"inputs": ["a"]})
    assert (refused.status_code, refused.json()) == (501, {"error": "this model does not support embeddings"})


# ---- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_even_in_the_middle_of_an_answer(
    tiny_models: Callable[..., Path], tmp_path: Path, number: signal.Signals
) -> None:
    with running(tiny_models("llama", "Q8_0"), tmp_path / LOG, {"num_ctx": 65536}) as process:
        body = {"prompt": "a", "options": {"ignore_eos": True}}
        with process.client.stream("POST", "/completion", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.process.send_signal(number)
            assert json.loads(list(lines)[-1]) == {"error": "the runner was told to end"}
        assert process.process.wait(60) == 0
        assert "Traceback" not in process.output()


PARENT = """
import subprocess, sys, time
from tests.runner.runner_process import command, environment, listening_socket
listener = listening_socket()
fd = listener.fileno()
stdin = subprocess.PIPE if sys.argv[2] == "pipe" else subprocess.DEVNULL
child = subprocess.Popen(command(sys.argv[1], fd), pass_fds=(fd,), stdin=stdin, env=environment())
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("standard_input", ["pipe", "null"])
def test_it_dies_with_its_parent(tiny_models: Callable[..., Path], standard_input: str) -> None:
    arguments = [sys.executable, "-c", PARENT, str(tiny_models("llama", "Q8_0")), standard_input]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment(), cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        while not any("numpy" in each.path for each in child.memory_maps()):  # imported after the lifeline is tied
            time.sleep(0.05)
        parent.kill()
    child.wait(30)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"SHALE_RUNNER_TOKEN": ""}, "error: SHALE_RUNNER_TOKEN is not set"),
        ({"SHALE_DEVICES": "moon:1GiB"}, "error: SHALE_DEVICES names 'moon:1GiB'; this runner knows: auto, cpu"),
        ({"SHALE_KERNELS": "slow"}, "error: kernels 'slow' are unknown"),
    ],
)
def test_with_bad_settings_it_does_not_start(
    tiny_models: Callable[..., Path], change: dict[str, str], sentence: str
) -> None:
    ended = subprocess.run(
        command(tiny_models("llama", "Q8_0"), 0),
        env=environment(**change),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(sentence)


@pytest.mark.parametrize(("content", "sentence"), [(b"no model", "error: "), (None, "error: ")])
def test_a_file_that_is_no_model_ends_it_with_a_sentence(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    model = tmp_path / "model.gguf"
    if content is not None:
        model.write_bytes(content)
    with running(model, tmp_path / LOG) as process:
        assert process.process.wait(60) == 1
        last = process.output().splitlines()[-1]
    assert last.startswith(sentence)
    assert "model.gguf" in last
    assert "Traceback" not in process.output()


def test_it_starts_soon() -> None:
    def seconds(modules: str) -> float:
        code = f"import time; t = time.process_time(); import {modules}; print(time.process_time() - t)"
        return min(float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) for _ in range(5))

    assert seconds("runner.app") < 2 * seconds("fastapi, numpy")  # which it needs, on a machine of any speed
