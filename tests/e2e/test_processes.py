"""Runner processes in the hands of a server that is killed, told to end, left by its clients, or robbed of them."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serving import ENDLESS, LONG, TIMEOUT_S, Server, kill, runner_of

from runner.protocol import TOKEN_ENVIRONMENT_NAME
from tests.waiting import until

DEMO = "shale-demo"
TINY = "tiny/llama"
PROMPT = {"model": DEMO, "prompt": "What does os.getcwd do?"}
ORPHAN_S = 30.0  # by then nothing may be left of a server that has ended
ANSWERS_END_S = 3.0  # for answers under way when a server is told to end
STOP_S = 20.0  # for a server: those 3 s, then 5 s for runners that do not hear, and some for a busy machine
SECRET = "wJalrXUtnFEMI"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "OPENAI_API_KEY", "SHALE_ANYTHING", "HTTP_PROXY")  # all have it

Start = Callable[..., Server]


@pytest.fixture
def start(models: Path, repository_root: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a server for one test. Whatever the test does to it, it and its children are gone afterwards."""
    servers: list[Server] = []

    def start(**settings: str) -> Server:
        log = tmp_path / f"{len(servers)}.log"
        servers.append(Server(repository_root, models, log, SHALE_MAX_LOADED_MODELS="9", **settings))
        servers[-1].wait_until_up()
        return servers[-1]

    yield start
    for server in servers:
        family = children(server) if server.process.poll() is None else []
        server.process.kill()
        server.process.wait()
        for child in family:
            kill(child)


@pytest.fixture(scope="module")
def standing(models: Path, repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the tests after which it still stands, with things in its environment that are nobody's business."""
    log = tmp_path_factory.mktemp("standing") / "server.log"
    server = Server(repository_root, models, log, SHALE_MAX_LOADED_MODELS="9", **dict.fromkeys(SECRETS, SECRET))
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture
def empty(standing: Server) -> Server:
    """The standing server, with nothing loaded."""
    for model in (DEMO, TINY):
        standing.unload(model)
    assert standing.runners() == []
    return standing


def children(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def the_runner_of(server: Server, model: str) -> psutil.Process:
    """The runner of ``model``, as soon as there is one."""
    found: psutil.Process = until(lambda: runner_of(server, model))
    return found


@contextmanager
def stream(server: Server, body: dict[str, Any]) -> Iterator[Iterator[str]]:
    """The lines of an answer that has begun."""
    with server.stream("/api/generate", body) as response:
        lines = response.iter_lines()
        assert "response" in json.loads(next(lines))
        yield lines


def until_it_breaks(lines: Iterator[str]) -> Iterator[str]:
    with suppress(httpx.TransportError):
        yield from lines


def must_end(processes: list[psutil.Process]) -> None:
    assert processes
    _, alive = psutil.wait_procs(processes, ORPHAN_S)
    for orphan in alive:
        orphan.kill()
    assert alive == []


@pytest.mark.parametrize("after_s", [0.0, 0.15, 0.4], ids=["at its start", "while it imports", "about when it listens"])
def test_no_orphan_survives_a_server_that_is_killed_while_it_loads(start: Start, after_s: float) -> None:
    server = start()
    answer = server.asked(ENDLESS)  # a fast machine loads and answers a short one before the server is killed
    the_runner_of(server, LONG)
    time.sleep(after_s)
    family = children(server)
    server.process.kill()
    must_end(family)
    with pytest.raises(httpx.TransportError):
        answer.result(TIMEOUT_S)


def test_no_orphan_survives_a_server_that_is_killed_in_the_middle_of_a_stream(start: Start) -> None:
    server = start()
    server.post(
        "/api/chat", {"model": TINY, "messages": [{"role": "user", "content": "a"}], "options": {"num_predict": 1}}
    )
    with stream(server, ENDLESS) as lines:
        family = children(server)
        assert len(server.runners()) == 2
        server.process.kill()
        must_end(family)
        with pytest.raises(httpx.TransportError):
            list(lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_end_cuts_long_streams_and_ends_in_time(start: Start, number: signal.Signals) -> None:
    server = start(SHALE_KERNELS="reference")  # slow: the stream takes minutes
    with stream(server, ENDLESS) as lines:
        family = children(server)
        began_at = time.monotonic()
        server.process.send_signal(number)
        assert not any(json.loads(line).get("done") for line in until_it_breaks(lines))
        server.process.wait(STOP_S)
        assert time.monotonic() - began_at < STOP_S
    must_end(family)


def test_a_stream_that_is_cut_is_told_so_and_the_log_stays_clean(start: Start) -> None:
    server = start(SHALE_KERNELS="reference")
    with stream(server, ENDLESS) as lines:
        server.process.terminate()
        *_, last = until_it_breaks(lines)
        server.process.wait(STOP_S)
    assert "Traceback" not in server.log.read_text(), server.log.read_text()
    assert "error" in json.loads(last)


def test_a_server_that_is_told_to_end_finishes_short_answers(start: Start) -> None:
    body = {**PROMPT, "options": {"temperature": 0, "ignore_eos": True, "num_predict": 200}}
    for _ in range(5):
        server = start()
        with stream(server, body) as lines:
            began_at = time.monotonic()
            server.process.terminate()
            *_, last = lines
        server.process.wait(STOP_S)
        if json.loads(last).get("eval_count") == 200:
            return
        assert time.monotonic() - began_at > ANSWERS_END_S, "cut before its time"  # this answer was none of the short
    pytest.fail(f"200 tokens take longer than {ANSWERS_END_S} s")


def test_a_server_that_is_told_to_end_while_it_loads_ends_in_time(start: Start) -> None:
    server = start()
    answer = server.asked(PROMPT)
    the_runner_of(server, DEMO)
    family = children(server)
    server.process.terminate()
    server.process.wait(STOP_S)
    must_end(family)
    response = answer.result(TIMEOUT_S)  # it was loaded within the grace, or the client is told why not
    assert response.status_code in (httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE), response.text
    assert "Traceback" not in server.log.read_text(), server.log.read_text()


def test_a_runner_that_does_not_hear_sigterm_is_killed_after_five_seconds(empty: Server) -> None:
    empty.post("/api/generate", {"model": TINY})
    runner = the_runner_of(empty, TINY)
    runner.suspend()
    began_at = time.monotonic()
    assert empty.post("/api/generate", {"model": TINY, "keep_alive": 0}).json()["done_reason"] == "unload"
    assert 4.5 < time.monotonic() - began_at < 20
    assert not runner.is_running()
    assert "ignored SIGTERM for 5 s" in empty.log.read_text()


def test_a_server_that_ends_does_not_wait_longer_for_a_runner_that_does_not_hear(start: Start) -> None:
    server = start()
    server.post("/api/generate", {"model": TINY})
    family = children(server)
    the_runner_of(server, TINY).suspend()
    server.process.terminate()
    server.process.wait(STOP_S)
    must_end(family)


def test_a_runner_sees_no_secret_of_the_server_and_its_own_is_in_no_command_line(
    empty: Server,
) -> None:
    empty.post("/api/generate", {"model": TINY})
    runner = the_runner_of(empty, TINY)
    environment = runner.environ()
    token = environment[TOKEN_ENVIRONMENT_NAME]
    assert environment["PATH"] == empty.environment["PATH"]
    assert not set(environment) & set(SECRETS)
    assert SECRET not in "".join(environment.values())
    assert len(token) > 30
    for process in psutil.process_iter():
        assert token not in _command_line(process)
    assert token not in empty.log.read_text()
    assert SECRET not in empty.log.read_text()


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def test_a_runner_asks_for_its_token(empty: Server) -> None:
    empty.post("/api/generate", {"model": TINY})
    runner = the_runner_of(empty, TINY)
    (port,) = {each.laddr.port for each in runner.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    for headers in ({}, {"authorization": "Bearer guessed"}):
        response = httpx.get(f"http://127.0.0.1:{port}/info", headers=headers, trust_env=False)
        assert response.status_code == httpx.codes.UNAUTHORIZED


def test_a_client_that_leaves_does_not_abort_a_load_that_another_waits_for(empty: Server) -> None:
    runners: list[psutil.Process] = []
    others: list[Future[httpx.Response]] = []

    def hold_the_load_and_join_it() -> None:
        runners.append(the_runner_of(empty, DEMO))
        runners[0].suspend()
        others.append(empty.asked({**PROMPT, "stream": False, "options": {"temperature": 0}}))
        time.sleep(0.3)

    empty.leave(PROMPT, hold_the_load_and_join_it)
    time.sleep(0.3)
    assert not others[0].done()
    runners[0].resume()
    assert others[0].result(TIMEOUT_S).json()["done_reason"] == "stop"
    assert empty.runners() == runners


def test_a_load_whose_only_client_leaves_goes_on(empty: Server) -> None:
    """The next to ask, which will often be the same user, finds the model loaded or loading."""
    empty.leave(PROMPT, lambda: the_runner_of(empty, DEMO))
    runner = the_runner_of(empty, DEMO)
    time.sleep(0.3)
    assert empty.post("/api/generate", {**PROMPT, "stream": False}).status_code == 200
    assert empty.runners() == [runner]


def kill_while_it_loads(server: Server, model: str, after_s: float) -> None:
    """The request that waits for it is told at once."""
    answer, runner = server.held_load({"model": model}, after_s)
    runner.kill()
    began_at = time.monotonic()
    response = answer.result(TIMEOUT_S)
    assert time.monotonic() - began_at < 10
    assert response.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    assert response.json()["error"].endswith("signal: SIGKILL (Killed)")


@pytest.mark.parametrize(("model", "after_s"), [(DEMO, 0.0), (TINY, 0.15)])
def test_a_request_for_a_model_whose_runner_was_killed_while_it_loaded_starts_a_new_one(
    empty: Server, model: str, after_s: float
) -> None:
    kill_while_it_loads(empty, model, after_s)
    assert empty.post("/api/generate", {"model": model}).json()["done_reason"] == "load"


def test_a_model_whose_runner_is_killed_again_is_left_alone_for_a_second(start: Start) -> None:
    server = start()
    for _ in range(10):
        for _ in range(2):
            kill_while_it_loads(server, TINY, 0.1)
        refused = server.post("/api/generate", {"model": TINY})
        if refused.is_error:
            break
        server.unload(TINY)  # the second was over when the request came
    assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert refused.json()["error"].startswith("model runner has crashed 2 times in a row, next try in 1 s")
    assert refused.headers["retry-after"] == "1"
    assert server.runners() == []
    assert server.post("/api/generate", {"model": DEMO}).json()["done_reason"] == "load"
    time.sleep(1.1)
    assert server.post("/api/generate", {"model": TINY}).json()["done_reason"] == "load"


def test_runners_are_no_zombies_once_they_have_ended(empty: Server) -> None:
    for model in (DEMO, TINY):
        empty.post("/api/generate", {"model": model})
    runners = empty.runners()
    assert len(runners) == 2
    for runner in runners:
        runner.kill()
    # A process that nobody waits for would exist as well.
    until(lambda: not any(psutil.pid_exists(runner.pid) for runner in runners), ORPHAN_S)


# ---- files that change under a loaded model ------------------------------------------------------


@pytest.fixture
def own(start: Start, models: Path, tmp_path: Path) -> tuple[Server, Path]:
    """A server that has loaded, for ever, the model ``mine``; and its file."""
    folder = tmp_path / "models"
    folder.mkdir()
    file = folder / "mine.gguf"
    shutil.copy(models / f"{LONG}.gguf", file)
    server = start(SHALE_MODELS=str(folder), SHALE_DEVICES="cpu")
    assert server.post("/api/generate", {"model": "mine", "keep_alive": -1}).status_code == httpx.codes.OK
    return server, file


def test_a_file_that_was_replaced_is_loaded_anew(own: tuple[Server, Path], models: Path) -> None:
    server, file = own
    old = server.models()[0]
    shutil.copy(models / f"{DEMO}.gguf", file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)
    answer = server.post("/api/generate", {**PROMPT, "model": "mine", "stream": False, "options": {"temperature": 0}})
    assert "working directory" in answer.json()["response"]
    (new,) = server.models()
    assert (new["digest"] != old["digest"], new["size"] != old["size"]) == (True, True)
    assert new["expires_at"] > "2300"
    assert len(server.runners()) == 1


def test_a_file_that_was_replaced_by_what_is_no_model_costs_nobody_the_loaded_one(own: tuple[Server, Path]) -> None:
    server, file = own
    runners = server.runners()
    file.write_bytes(b"GGUF" + bytes(100))
    assert server.post("/api/generate", {"model": "mine"}).status_code == httpx.codes.NOT_FOUND
    assert server.runners() == runners


@pytest.mark.parametrize("by_command", [False, True])
def test_a_model_whose_file_was_deleted_can_be_unloaded(own: tuple[Server, Path], by_command: bool) -> None:
    server, file = own
    file.unlink()
    assert server.post("/api/generate", {**PROMPT, "model": "mine"}).status_code == httpx.codes.NOT_FOUND
    if by_command:
        assert server.command("stop", "mine").returncode == 0
    else:
        assert server.post("/api/generate", {"model": "mine", "keep_alive": 0}).json()["done_reason"] == "unload"
    assert server.models() == []
    assert server.runners() == []


def test_a_runner_that_is_killed_in_its_last_answer_has_crashed(own: tuple[Server, Path]) -> None:
    server, _ = own
    with stream(server, {**ENDLESS, "model": "mine", "keep_alive": 0}) as lines:
        server.runners()[0].kill()
        *_, last = lines
    assert "SIGKILL" in json.loads(last)["error"]
    until(lambda: not server.models())
    text = server.get("/metrics").text
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(("shale_unloads", "shale_cra")))
    counts = {name: float(count) for name, count in counts.items() if float(count) and "created" not in name}
    assert set(counts.values()) == {1.0}, counts
    assert any("crashed" in name for name in counts)
    assert not any("asked" in name for name in counts)
