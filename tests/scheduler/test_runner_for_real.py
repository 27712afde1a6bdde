"""The scheduler with real runners: the demo model, through real processes, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from runner.protocol import CompletionRequest, Operation, SamplingOptions, TokenizeRequest
from scheduler.errors import ModelFileError, RunnerDiedError, RunnerExitedError, RunnerUnreachableError
from scheduler.process import RunnerProcess, runner_command
from scheduler.scheduler import LoadOptions, ModelFile, Scheduler, SchedulerSettings

SMALL = LoadOptions(num_ctx=128)
ENDLESS = SamplingOptions(temperature=0, num_predict=100_000, ignore_eos=True)


@pytest.fixture
async def scheduler():
    scheduler = Scheduler(SchedulerSettings(kernels=os.environ.get("SHALE_KERNELS")))
    yield scheduler
    await scheduler.close()
    assert runner_children() == []


@pytest.fixture
def model(demo_model) -> ModelFile:
    return ModelFile("demo", demo_model)


def runner_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "runner" in command_line(child)]


def command_line(process: psutil.Process) -> list[str]:
    """Empty for a process that has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def complete(running, **options) -> list[dict]:
    options = {"temperature": 0, "num_predict": 5, "ignore_eos": True} | options
    request = CompletionRequest(prompt="What does textwrap.dedent do?", options=SamplingOptions(**options))
    return [json.loads(line) async for line in await running.client.completion(request)]


async def read_and_kill(stream, process) -> None:
    seen = 0
    async for _ in stream:
        seen += 1
        if seen == 3:
            process.send_signal(signal.SIGKILL)


async def test_a_completion(scheduler, model):
    async with scheduler.acquire(model, SMALL) as running:
        assert running.num_ctx == 128
        lines = await complete(running)
        assert lines[-1]["done"] is True
        assert lines[-1]["eval_count"] == 5
        assert (await running.client.tokenize(TokenizeRequest(text="def f(): pass"))).tokens
        info = await running.client.info()
    assert info.devices[0].id == "cpu"


async def test_what_was_estimated_is_what_the_runner_took(scheduler, model):
    async with scheduler.acquire(model, SMALL) as running:
        request = scheduler._residents[model.path].request
        assert scheduler._estimates.memory(model.path, request) == running.memory


async def test_a_kill_in_the_middle_of_a_stream_ends_that_stream_and_nothing_else(scheduler, model):
    async with scheduler.acquire(model) as running:  # long enough a context for the kill to come before its end
        (process,) = runner_children()
        stream = await running.client.completion(CompletionRequest(prompt="x", options=ENDLESS))
        with pytest.raises(RunnerDiedError) as caught:
            await read_and_kill(stream, process)
        assert str(caught.value) == "an error was encountered while running the model: signal: SIGKILL (Killed)"
    async with scheduler.acquire(model, SMALL) as running:
        assert (await complete(running))[-1]["done"] is True


async def test_a_larger_context_reloads(scheduler, model):
    async with scheduler.acquire(model, SMALL) as running:
        first = running.client
    async with scheduler.acquire(model, LoadOptions(num_ctx=256)) as running:
        assert running.num_ctx == 256
        assert running.client is not first
        assert len(runner_children()) == 1


async def test_unload_gives_everything_back(scheduler, model):
    async with scheduler.acquire(model, SMALL):
        pass
    await scheduler.unload(model)
    assert runner_children() == []
    assert scheduler.running() == []


async def test_a_file_that_is_no_model(scheduler, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelFileError, match=r"unable to load model"):
        async with scheduler.acquire(ModelFile("bad", path)):
            pass


async def test_the_runner_s_own_refusal_is_its_last_words(tmp_path):
    """Past the estimate, straight to the process: it says what is wrong with the file and ends."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"PK\x03\x04" + b"\0" * 100)
    process = await RunnerProcess.start("bad", lambda fd: runner_command(path, fd), {})
    words = await process.wait()
    assert words.startswith("error: ")
    assert str(path) in words
    assert process.returncode == 1


async def test_a_kill_while_loading_is_told_and_the_next_request_loads(scheduler, model, monkeypatch):
    spawn, has_killed = scheduler._spawn, []

    async def spawn_and_kill(*arguments):
        started = await spawn(*arguments)
        if not has_killed:
            has_killed.append(True)
            load = started.client.load

            async def load_and_die(request):
                if request.operation == Operation.ALLOC:
                    os.kill(started.process.pid, signal.SIGKILL)
                return await load(request)

            monkeypatch.setattr(started.client, "load", load_and_die)
        return started

    monkeypatch.setattr(scheduler, "_spawn", spawn_and_kill)
    with pytest.raises((RunnerExitedError, RunnerUnreachableError), match=r"SIGKILL"):
        async with scheduler.acquire(model, SMALL):
            pass
    async with scheduler.acquire(model, SMALL) as running:
        assert (await complete(running))[-1]["done"] is True


def test_no_runner_survives_a_front_server_that_is_killed(model, repository_root):
    code = f"""
import asyncio, sys
sys.path.insert(0, {str(repository_root)!r})
from pathlib import Path
from scheduler.scheduler import LoadOptions, ModelFile, Scheduler
async def main():
    scheduler = Scheduler()
    model = ModelFile("demo", Path({str(model.path)!r}))
    async with scheduler.acquire(model, LoadOptions(num_ctx=128)):
        print(scheduler._residents[model.path].started.process.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        child.wait(timeout=30)
