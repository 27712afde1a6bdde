"""A server on simulated devices: plans come true to the byte, and a split model answers as on the CPU."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving import Server, kill

from runner.sim_ledger import SimLedger
from tests.waiting import until

DEMO = "shale-demo"
ASK = {"model": DEMO, "prompt": "What does textwrap.dedent do?", "stream": False}
MIB = 2**20


@pytest.fixture(scope="module")
def split_server(models: Path, repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two simulated devices, neither of which holds the demo model with a context of 256."""
    folder = tmp_path_factory.mktemp("sim")
    command_line = {"SHALE_DEVICES": "sim:4MiB,sim:5MiB", "SHALE_SIM_LEDGER": str(folder / "ledger")}
    server = Server(repository_root, models, folder / "server.log", **command_line)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()
    assert "Traceback" not in server.log.read_text()


def get(server: Server, path: str) -> Any:
    return server.get(path).json()


def generate(server: Server, **options: Any) -> Any:
    response = server.post("/api/generate", {**ASK, "options": {"temperature": 0, **options}})
    assert response.status_code == 200, response.text
    return response.json()


def held(server: Server) -> list[int]:
    folder = Path(server.environment["SHALE_SIM_LEDGER"])
    return [SimLedger(folder, f"sim{number}").held_bytes() for number in range(2)]


def test_a_plan_comes_true_to_the_byte_and_the_text_is_the_cpu_s(split_server: Server, server: Server) -> None:
    options = {"num_ctx": 256, "num_batch": 64}
    expected = generate(server, **options)["response"]
    planned = split_server.post("/api/plan", {"model": DEMO, **options}).json()
    assert planned["fits_wholly"] is True
    assert all(device["layers"] for device in planned["devices"][1:])

    assert generate(split_server, **options)["response"] == expected
    (loaded,) = get(split_server, "/api/ps")["models"]
    assert loaded["devices"] == planned["devices"]
    assert (loaded["size"], loaded["size_vram"]) == (planned["size"], planned["size_vram"])
    assert held(split_server) == [device["total_bytes"] for device in planned["devices"][1:]]
    free = [device["free_bytes"] for device in get(split_server, "/api/devices")["devices"][1:]]
    assert free == [4 * MIB - held(split_server)[0], 5 * MIB - held(split_server)[1]]
    assert "100% GPU" in split_server.command("ps").stdout
    beside = split_server.post("/api/plan", {"model": DEMO, **options}).json()
    assert beside["notes"] == ["the model is loaded now; this is a plan for loading it anew"]
    assert beside["devices"] == planned["devices"]

    split_server.command("stop", DEMO)
    assert held(split_server) == [0, 0]


def test_what_does_not_fit_stays_on_the_cpu_as_planned(split_server: Server, server: Server) -> None:
    options = {"num_ctx": 1024, "num_batch": 64}
    planned = split_server.post("/api/plan", {"model": DEMO, **options}).json()
    assert planned["fits_wholly"] is False
    assert generate(split_server, **options)["response"] == generate(server, **options)["response"]
    (loaded,) = get(split_server, "/api/ps")["models"]
    assert loaded["devices"] == planned["devices"]
    assert 0 < loaded["size_vram"] < loaded["size"]
    split_server.command("stop", DEMO)


def test_auto_context_is_what_the_plan_said(split_server: Server) -> None:
    largest = split_server.post("/api/plan", {"model": DEMO}).json()["max_num_ctx"]
    answer = generate(split_server, num_ctx="auto")
    assert answer["notes"] == [f'num_ctx "auto" is {largest}']
    (loaded,) = get(split_server, "/api/ps")["models"]
    assert loaded["context_length"] == largest
    assert sum(device["total_bytes"] for device in loaded["devices"]) == loaded["size"]
    split_server.command("stop", DEMO)


def test_another_program_takes_memory(split_server: Server) -> None:
    ledger = SimLedger(Path(split_server.environment["SHALE_SIM_LEDGER"]), "sim1")
    ledger.set_quota(2 * MIB)
    try:
        assert generate(split_server, num_ctx=256, num_batch=64)["response"]
        (loaded,) = get(split_server, "/api/ps")["models"]
        assert held(split_server) == [device["total_bytes"] for device in loaded["devices"][1:]]
        assert held(split_server)[1] <= 2 * MIB
        split_server.command("stop", DEMO)
    finally:
        ledger.set_quota(5 * MIB)


def test_the_commands(split_server: Server, demo_model: Path) -> None:
    devices = split_server.command("devices").stdout.splitlines()
    assert [line.split()[0] for line in devices] == ["ID", "cpu", "sim0", "sim1"]
    assert split_server.command("plan", DEMO).stdout.startswith(f"{DEMO}: ")
    plan = split_server.command("plan", str(demo_model), "--devices", "24GiB,12GiB", "--ctx", "auto", "--kv", "f32")
    assert "all 7 layers are on GPUs" in plan.stdout
    refused = split_server.command("plan", DEMO, "--kv", "q5_1")
    known = "f16, bf16, f32, q8_0, q4_0"
    assert (refused.returncode, refused.stderr) == (1, f"shale: kv_cache_type must be one of {known}, found 'q5_1'\n")
    refused = split_server.command("plan", DEMO, "--ctx", "large")
    assert (refused.returncode, refused.stderr) == (1, 'shale: option "num_ctx" must be of type integer, or "auto"\n')


def test_a_runner_that_is_killed_gives_its_memory_back(split_server: Server) -> None:
    generate(split_server, num_ctx=256)
    assert any(held(split_server))
    for runner in split_server.runners():
        kill(runner)
        runner.wait()
    assert held(split_server) == [0, 0]
    until(lambda: not split_server.models())
    assert generate(split_server, num_ctx=256)["response"]
    split_server.command("stop", DEMO)


def test_the_cpu_server_has_no_devices_and_clamps_with_a_note(server: Server) -> None:
    answer = generate(server, num_ctx=99999)
    assert answer["notes"] == ["num_ctx 99999 was clamped to 2048, the length the model was trained for"]
    (loaded,) = (model for model in get(server, "/api/ps")["models"] if model["name"] == DEMO)
    (cpu,) = loaded["devices"]
    assert (cpu["id"], cpu["total_bytes"]) == ("cpu", loaded["size"])


def test_the_server_removes_the_ledger_it_made(
    models: Path, repository_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = Server(repository_root, models, tmp_path / "server.log", SHALE_DEVICES="sim:1MiB")
    try:
        server.wait_until_up()
        assert len(list(tmp_path.glob("shale-sim-*"))) == 1
    finally:
        server.stop()
    assert list(tmp_path.glob("shale-sim-*")) == []


@contextmanager
def held_up(server: Server, device: str) -> Iterator[None]:
    """Nobody gets an answer about this device meanwhile: the lock of its ledger is taken."""
    with (Path(server.environment["SHALE_SIM_LEDGER"]) / f"{device}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_devices_that_do_not_answer_hold_up_nobody_else(split_server: Server) -> None:
    """As a driver that hangs would: who asks for devices waits, who uses a loaded model does not."""
    options = {"num_ctx": 256, "num_batch": 64}
    generate(split_server, **options)
    with ThreadPoolExecutor(20) as threads:
        with held_up(split_server, "sim0"):
            asking = [threads.submit(split_server.get, path) for path in ("/metrics", "/api/devices") * 10]
            time.sleep(0.5)
            for _ in range(3):
                assert generate(split_server, **options)["done"]
                assert get(split_server, "/api/ps")["models"][0]["state"] == "ready"
            assert not any(each.done() for each in asking)
        assert [each.result().status_code for each in asking] == [200] * 20
