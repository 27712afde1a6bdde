"""The ``shale`` command, as a person would use it."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving import Server, run_shale

from runner.kernels import _cpu
from server.settings import ISA_NAMES
from tests.waiting import until

DEMO = "shale-demo"
QUESTION = "What does textwrap.dedent do?"
ANSWER = "Remove any common leading whitespace"


def test_version(server: Any) -> None:
    assert server.command("--version").stdout.startswith("shale ")


def test_list_show_ps_stop(server: Any) -> None:
    listed = server.command("list").stdout.splitlines()
    assert listed[0].split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert any(line.startswith("tiny/llama ") for line in listed)
    assert "Q8_0" in server.command("show", DEMO).stdout
    server.post("/api/generate", {"model": DEMO})
    assert DEMO in server.command("ps").stdout
    assert server.command("stop", DEMO).returncode == 0
    assert DEMO not in server.command("ps").stdout


def test_run_answers_its_arguments(server: Any) -> None:
    result = server.command("run", DEMO, "--verbose", *QUESTION.split())
    assert ANSWER in result.stdout
    assert "tokens/s" in result.stderr
    assert result.stderr.endswith(" s\n")


def test_an_option_without_a_value_is_refused(server: Any) -> None:
    assert "name=value" in server.command("run", DEMO, "-o", "temperature", "hi").stderr


def test_run_answers_what_is_piped_in(server: Any) -> None:
    assert ANSWER in server.command("run", DEMO, text=f"{QUESTION}\n").stdout


def test_errors_are_one_line(server: Any) -> None:
    result = server.command("run", "nope", "hi")
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "shale: model 'nope' not found\n")
    result = server.command("serve")
    assert result.returncode == 1
    assert "the address is in use" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_without_a_server_the_message_says_how_to_start_one(server: Any) -> None:
    environment = {**server.environment, "SHALE_HOST": "127.0.0.1:1"}
    result = run_shale(server, environment, "list")
    assert result.returncode == 1
    assert result.stderr.strip() == "shale: no server answers at http://127.0.0.1:1; start one with: shale serve"


def test_a_bad_setting_is_told_before_anything_starts(server: Any) -> None:
    environment = {**server.environment, "SHALE_NUM_PARALLEL": "many"}
    result = run_shale(server, environment, "serve")
    assert result.returncode == 1
    assert result.stderr.startswith("shale: SHALE_NUM_PARALLEL='many' cannot be used; allowed: ")


def test_an_instruction_set_that_the_cpu_lacks_is_told_before_anything_starts(server: Any) -> None:
    lacking = [name for name in ISA_NAMES if name not in ("auto", *_cpu.available_isas())]
    if not lacking:
        pytest.skip("this CPU has them all")
    environment = {**server.environment, "SHALE_KERNELS": "fast", "SHALE_CPU_ISA": lacking[0]}
    result = run_shale(server, environment, "serve", "--host", "127.0.0.1:0")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(
        f"shale: SHALE_CPU_ISA={lacking[0]!r} cannot be used; allowed on this machine: auto,"
    )


def test_a_misspelt_setting_is_told_at_the_start(repository_root: Path, models: Path, tmp_path: Path) -> None:
    server = Server(repository_root, models, tmp_path / "log", SHALE_CONTEXT_LENGHT="64")
    try:
        server.wait_until_up()
        said = server.log.read_text()
    finally:
        server.stop()
    assert "WARNING" in said
    assert "SHALE_CONTEXT_LENGHT is no setting and has no effect; is SHALE_CONTEXT_LENGTH meant?" in said


def _let_ctrl_c_through() -> None:
    """A test run in the background of a shell ignores SIGINT, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """``shale run`` with a terminal in front of it."""

    def __init__(self, server: Any, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "server", "run", *arguments]
        environment = {**server.environment, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command,
            cwd=server.root,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_let_ctrl_c_through,
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self._seen = ""

    def type(self, line: str) -> None:
        os.write(self._master, line.encode() + b"\n")

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Reads until ``text`` has come; returns what came before it, with which it is done."""
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            assert time.monotonic() < deadline, self._seen
            try:
                self._seen += os.read(self._master, 4096).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.02)
        before, _, self._seen = self._seen.partition(text)
        return before

    def interrupt(self) -> str:
        """Ctrl-C, as often as it takes to get a prompt; returns what comes before that.

        One that comes between two system calls may be seen only when the next of them returns, or never.
        """
        for _ in range(3):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                return self.wait_for(">>> ", 15)
        raise AssertionError(self._seen)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def until_it_waits_for_a_line(process: subprocess.Popen[bytes]) -> None:
    """A signal in the moment between prompt and read is seen only with the next key."""
    status = psutil.Process(process.pid).status
    until(lambda: all(status() == psutil.STATUS_SLEEPING and not time.sleep(0.01) for _ in range(30)))


def test_a_conversation_in_a_terminal(server: Any) -> None:
    terminal = Terminal(server, DEMO)
    try:
        terminal.wait_for(">>> ")
        terminal.type(QUESTION)
        terminal.wait_for(ANSWER)
        terminal.wait_for(">>> ")
        terminal.type("/help")
        terminal.wait_for("/bye leaves")
        terminal.wait_for(">>> ")
        until_it_waits_for_a_line(terminal.process)
        terminal.interrupt()
        terminal.type("/bye")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(server: Any) -> None:
    long = ("-o", "ignore_eos=true", "-o", "num_predict=1000000", "-o", "temperature=0")
    terminal = Terminal(server, DEMO, "--verbose", *long)
    try:
        terminal.wait_for(">>> ")
        for _ in range(5):
            terminal.type(QUESTION)
            terminal.wait_for(ANSWER)
            said = terminal.interrupt()
            if "tokens/s" not in said:
                break
            terminal.type("/clear")  # the answer had come to its end before
        assert "tokens/s" not in said
        terminal.type("/bye")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()
