"""Real processes: started on an inherited socket, heard, ended, and never left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import uvloop

from scheduler.client import RunnerClient
from scheduler.errors import RunnerExitedError, RunnerStartError, RunnerUnreachableError
from scheduler.oom_kills import OomKills
from scheduler.process import RunnerProcess, checkout, runner_command

FAKE_RUNNER = Path(__file__).with_name("fake_runner.py")


async def start(*code: str, **environment: str) -> RunnerProcess:
    """Python running ``code``; ``{fd}`` in it is the listening socket's descriptor."""
    program = "\n".join(code)
    return await RunnerProcess.start(
        "test", lambda fd: [sys.executable, "-S", "-c", program.replace("{fd}", str(fd))], environment
    )


async def test_the_child_has_the_socket_that_the_parent_bound():
    process = await start(
        "import socket",
        "connection, _ = socket.socket(fileno={fd}).accept()",
        "connection.sendall(b'hello')",
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    assert await reader.read() == b"hello"
    writer.close()
    assert await process.wait() == "exit status 0"


@pytest.mark.parametrize("by_kernel", [True, False])
async def test_a_death_that_the_kernel_counts_is_explained(by_kernel):
    numbers = iter([5, 6 if by_kernel else 5])
    process = await RunnerProcess.start(
        "test",
        lambda fd: [sys.executable, "-S", "-c", "import os; print('INFO reading'); os.kill(os.getpid(), 9)"],
        {},
        oom_kills=OomKills(lambda: next(numbers)),
    )
    more = "\nout of memory: the kernel has ended a process for want of memory (oom_kill)" if by_kernel else ""
    assert await process.wait() == f"signal: SIGKILL (Killed){more}"


async def test_a_process_that_we_kill_is_not_the_kernel_s():
    numbers = iter([5, 6])
    sleep = "import time; time.sleep(60)"
    process = await RunnerProcess.start(
        "test", lambda fd: [sys.executable, "-S", "-c", sleep], {}, oom_kills=OomKills(lambda: next(numbers))
    )
    process.kill()
    assert await process.wait() == "signal: SIGKILL (Killed)"


async def test_how_much_memory_is_its_own():
    """What it has written to, without what it only reserved."""
    process = await start(
        "import mmap, sys",
        "reserved = mmap.mmap(-1, 512 << 20)",
        "written = b'x' * (96 << 20)",
        "print('error: ready', flush=True)",
        "sys.stdin.read()",
    )
    while not process.last_words():
        await asyncio.sleep(0.01)
    assert 96 << 20 <= process.own_bytes() < 160 << 20
    await process.stop()
    assert process.own_bytes() == 0


async def test_the_parent_keeps_no_copy_of_the_socket():
    process = await start("pass")
    await process.wait()
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", process.port)


async def test_the_child_sees_an_allow_listed_environment(monkeypatch, start_fake):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    started = await start_fake()
    seen = json.loads(await started.client._ask("GET", "/environment"))
    assert "OPENAI_API_KEY" not in seen
    assert seen["SHALE_RUNNER_TOKEN"] == started.process.token
    assert seen["OPENBLAS_NUM_THREADS"] == "1"
    assert seen["PYTHONPATH"].split(":")[0] == checkout()


async def test_each_process_has_a_token_of_its_own(start_fake):
    first, second = await start_fake(), await start_fake()
    assert first.process.token != second.process.token
    thief = RunnerClient(first.process.port, second.process.token, first.process.obituary)
    with pytest.raises(Exception, match=r"unauthorized"):
        await thief.health()
    await thief.aclose()


async def test_output_is_logged_with_a_prefix_and_without_secrets(caplog):
    caplog.set_level("INFO", "scheduler.process")
    process = await start(
        "import os, sys",
        "print('my token is', os.environ['SHALE_RUNNER_TOKEN'])",
        "print('OPENAI_API_KEY=sk-1', file=sys.stderr)",
    )
    await process.wait()
    assert "[test] my token is [redacted]" in caplog.messages
    assert "[test] OPENAI_API_KEY=[redacted]" in caplog.messages
    assert process.token not in caplog.text


async def test_last_words_go_to_clients_and_have_no_secrets_either():
    process = await start("import os", "raise ValueError('HF_TOKEN=hf_1 ' + os.environ['SHALE_RUNNER_TOKEN'])")
    assert await process.wait() == "ValueError: HF_TOKEN=[redacted] [redacted]"


async def test_last_words_are_the_fatal_lines():
    process = await start("print('INFO fine')", "raise ValueError('the file is damaged')")
    assert await process.wait() == "ValueError: the file is damaged"
    assert process.returncode == 1
    assert not process.is_alive


async def test_a_crash_in_native_code_says_where():
    process = await start("import ctypes", "ctypes.string_at(0)")
    words = await process.wait()
    assert words.startswith("signal: SIGSEGV")
    assert "Fatal Python error: Segmentation fault" in words


async def test_output_without_line_ends_is_not_collected_for_ever():
    process = await start("import sys", "sys.stdout.write('x' * 1_000_000)")
    await asyncio.wait_for(process.wait(), 60)
    assert len(process._words.plain) <= 16 * 1024


async def test_the_end_is_noticed_although_a_grandchild_holds_the_output_open():
    process = await start(
        "import subprocess, sys",
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(300)'])",
        "print('error: gone', child.pid, flush=True)",
        "import os; os._exit(1)",
    )
    words = await asyncio.wait_for(process.wait(), 60)
    assert words.startswith("error: gone")
    os.kill(int(words.split()[-1]), signal.SIGKILL)


async def test_stop_asks_first(start_fake):
    started = await start_fake()
    await started.client.health()
    begin = time.monotonic()
    await started.process.stop(grace_s=60)
    assert started.process.returncode == -signal.SIGTERM
    assert time.monotonic() - begin < 50  # before it is killed
    await started.process.stop()  # again


async def test_stop_kills_what_does_not_listen(start_fake):
    started = await start_fake(ignore_sigterm=True)
    await started.client.health()
    await started.process.stop(grace_s=0.1)
    assert started.process.returncode == -signal.SIGKILL


async def test_while_alive_gives_the_result():
    process = await start("input()")

    async def work() -> int:
        return 42

    assert await process.while_alive(work()) == 42
    await process.stop()


async def test_while_alive_ends_with_the_process():
    process = await start("import time", "time.sleep(0.1)", "raise RuntimeError('no')")
    is_cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            is_cancelled.set()

    with pytest.raises(RunnerExitedError, match=r"^llama runner process has terminated: RuntimeError: no$"):
        await process.while_alive(work())
    assert is_cancelled.is_set()


async def test_while_alive_passes_on_what_the_work_raises():
    process = await start("input()")

    async def work() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match=r"mine"):
        await process.while_alive(work())
    await process.stop()


async def test_a_program_that_is_not_there():
    with pytest.raises(RunnerStartError, match=r"^error starting runner: .*No such file"):
        await RunnerProcess.start("test", lambda fd: ["/no/such/program"], {})


async def test_a_crash_before_listening_reaches_whoever_waits_for_an_answer(start_fake):
    started = await start_fake(exit_before_listening=7, say_first=["error: bad magic"])
    with pytest.raises((RunnerUnreachableError, RunnerExitedError), match=r"error: bad magic"):
        await started.process.while_alive(started.client.health())


def test_the_command():
    command = runner_command(Path("/m.gguf"), 5)
    assert command == [sys.executable, "-P", "-m", "runner", "--model", "/m.gguf", "--fd", "5"]


def test_standard_input_ends_when_the_parent_is_killed(tmp_path, repository_root):
    """No orphan survives the front server, even when that is killed with SIGKILL."""
    (tmp_path / "script.json").write_text("{}")
    code = f"""
import asyncio, sys
sys.path.insert(0, {str(repository_root)!r})
from scheduler.process import RunnerProcess
async def main():
    command = lambda fd: [sys.executable, "-S", {str(FAKE_RUNNER)!r},
                          "--model", {str(tmp_path / "script.json")!r}, "--fd", str(fd)]
    process = await RunnerProcess.start("test", command, {{}})
    print(process.pid, flush=True)
    await process.wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        child.wait(timeout=30)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_both_event_loops(run):
    async def life() -> None:
        process = await start(
            "import socket",
            "print('begin', flush=True)",
            "connection, _ = socket.socket(fileno={fd}).accept()",
            "connection.sendall(b'hello')",
            "import time; time.sleep(60)",
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        assert await reader.read(5) == b"hello"
        writer.close()
        os.kill(process.pid, signal.SIGKILL)
        assert await asyncio.wait_for(process.wait(), 60) == "signal: SIGKILL (Killed)"
        assert process._words.plain == "begin"

    run(life())
