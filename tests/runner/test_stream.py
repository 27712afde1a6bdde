"""Answers on their way to their readers: what waits for one that does not read, and what one that does gets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from runner.stream import MAX_WAITING_BYTES, PIECE_BYTES, EngineResponse, Mailbox
from tests.runner.runner_process import TOKEN, Lines, RunnerProcess, running, tokens_of

FINAL = {"done": True}
HTTP: dict[str, Any] = {"type": "http"}
MIB = 1 << 20


def piece(number: int) -> dict[str, Any]:
    """A line of about a kilobyte."""
    return {"content": f"{number:1000}", "tokens": [number]}


def read(body: bytes) -> Lines:
    return [json.loads(line) for line in body.splitlines()]


async def everything(mailbox: Mailbox) -> Lines:
    body = b""
    while not mailbox.is_at_end:
        body += await mailbox.take()
    return read(body)


# ---- the mailbox -------------------------------------------------------------------------------


async def test_what_waits_is_taken_in_order_and_in_pieces() -> None:
    mailbox = Mailbox()
    for number in range(1000):
        mailbox.put(piece(number))
    mailbox.put(FINAL)
    bodies = []
    while not mailbox.is_at_end:
        bodies.append(await mailbox.take())
    assert [line.get("tokens") for line in read(b"".join(bodies))] == [*([number] for number in range(1000)), None]
    assert len(bodies) > 10
    assert max(map(len, bodies)) < PIECE_BYTES + 1100
    assert mailbox.status == 200


async def test_a_line_comes_as_soon_as_it_is_there() -> None:
    mailbox = Mailbox()
    taking = asyncio.ensure_future(mailbox.take())
    await asyncio.sleep(0)
    assert not taking.done()
    mailbox.put(piece(1))
    assert read(await taking) == [piece(1)]
    assert not mailbox.is_at_end


async def test_more_than_may_wait_ends_the_answer_with_an_error_and_the_work_with_it() -> None:
    mailbox, ends = Mailbox(), []
    mailbox.on_early_end = lambda: ends.append(True)
    num_waiting = 0
    while not ends:
        mailbox.put(piece(num_waiting))
        num_waiting += 1
        assert num_waiting < 20_000
    mailbox.put(piece(0))
    mailbox.put(FINAL)
    *lines, error = await everything(mailbox)
    assert tokens_of(lines) == list(range(num_waiting - 1))
    assert len(lines) * 1000 == pytest.approx(MAX_WAITING_BYTES, rel=0.05)
    assert error == {"error": "the answer was not read: 10 MiB of it waited, which is the most; it was ended here"}
    assert ends == [True]


async def test_a_reader_who_is_slow_but_reads_gets_everything() -> None:
    mailbox, ends = Mailbox(), []
    mailbox.on_early_end = lambda: ends.append(True)
    lines: Lines = []
    for number in range(30_000):
        mailbox.put(piece(number))
        if number % 5000 == 4999:
            for _ in range(75):  # of about 80 pieces
                lines += read(await mailbox.take())
    mailbox.put(FINAL)
    lines += await everything(mailbox)
    assert tokens_of(lines) == list(range(30_000))
    assert lines[-1] == FINAL
    assert not ends


async def test_the_last_line_has_room_in_a_full_mailbox() -> None:
    mailbox = Mailbox()
    mailbox.put({"content": "x" * MAX_WAITING_BYTES})
    mailbox.put(FINAL)
    assert (await everything(mailbox))[1:] == [FINAL]


async def test_one_line_may_be_as_long_as_it_is() -> None:
    mailbox = Mailbox()
    embeddings = np.ones((4000, 1000), np.float32)
    mailbox.put({"embeddings": embeddings})
    assert np.array_equal((await everything(mailbox))[0]["embeddings"], embeddings)


async def test_a_reader_who_has_left_gets_nothing_and_nothing_is_kept_for_it() -> None:
    mailbox = Mailbox()
    mailbox.put(piece(1))
    mailbox.close()
    mailbox.put(piece(2))
    assert await mailbox.take() == await mailbox.take() == b""


async def test_what_is_no_json_is_an_error_of_its_own_answer_only() -> None:
    mailbox, ends = Mailbox(), []
    mailbox.on_early_end = lambda: ends.append(True)
    mailbox.put(piece(1))
    mailbox.put({"content": "\ud800"})
    *lines, error = await everything(mailbox)
    assert lines == [piece(1)]
    assert "surrogates not allowed" in error["error"]
    assert ends


# ---- the response ------------------------------------------------------------------------------


class Connection:
    """The server's side of a request, as ASGI has it."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.has_left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


async def test_a_first_line_with_an_error_is_a_status() -> None:
    mailbox, connection, ends = Mailbox(), Connection(), []
    mailbox.put({"error": "no"})
    await EngineResponse(mailbox, lambda: ends.append(True), is_stream=True)(HTTP, connection.receive, connection.send)
    assert connection.sent[0]["status"] == 500
    assert read(connection.sent[1]["body"]) == [{"error": "no"}]
    assert ends


async def test_a_client_that_leaves_is_told_of_at_once() -> None:
    mailbox, connection, ends = Mailbox(), Connection(), []
    response = EngineResponse(mailbox, lambda: ends.append(True), is_stream=True)
    answering = asyncio.ensure_future(response(HTTP, connection.receive, connection.send))
    mailbox.put(piece(1))
    async with asyncio.timeout(60):
        while not any(message.get("body") for message in connection.sent):
            await asyncio.sleep(0.001)
    assert not ends
    connection.has_left.set()
    await answering
    assert ends
    assert connection.sent[-1]["more_body"]


# ---- a real runner -----------------------------------------------------------------------------


class Reader:
    """A client that reads when it is told to."""

    def __init__(self, runner: RunnerProcess, **options: Any) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", runner.port)
        self._connection.sock = socket.socket()
        self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._connection.sock.connect(("127.0.0.1", runner.port))
        body = {"prompt": [5], "top_logprobs": 20, "options": {"temperature": 0, "ignore_eos": True, **options}}
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        self._connection.request("POST", "/completion", json.dumps(body), headers)

    def lines(self) -> Lines:
        """The whole answer."""
        return read(self._connection.getresponse().read())

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def runner(tiny_models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerProcess]:
    log = tmp_path_factory.mktemp("stream") / "runner.log"
    load = {"num_ctx": 4096, "num_parallel": 4, "num_batch": 32}
    with running(tiny_models("llama", "Q8_0", num_layers=1, context_length=4096), log, load) as process:
        yield process


def num_begun(runner: RunnerProcess) -> int:
    """How many answers have had a first token."""
    return sum(runner.stats()["first_token"]["counts"])


@pytest.fixture
def readers(runner: RunnerProcess) -> Iterator[Callable[..., Reader]]:
    """Makes clients, and ends them."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(contextlib.closing(Reader(runner, **options)))


def test_a_client_that_does_not_read_is_given_up_and_its_sequence_is_free(
    runner: RunnerProcess, readers: Callable[..., Reader]
) -> None:
    runner.complete("warm", num_predict=4, request={"top_logprobs": 20})
    process = psutil.Process(runner.process.pid)
    before = process.memory_full_info().uss
    begun_before = num_begun(runner)
    those_who_wait = [readers() for _ in range(4)]
    deadline = time.monotonic() + 600
    most = 0
    while num_begun(runner) < begun_before + 4 or runner.stats()["num_active"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        most = max(most, process.memory_full_info().uss - before)
    assert most < 4 * 16 * MIB
    assert len(runner.complete("hello", num_predict=4, ignore_eos=True)) == 5
    for reader in those_who_wait:
        *lines, error = reader.lines()
        assert "the answer was not read" in error["error"]
        assert len(lines) > 5000
        assert all(len(entry["top_logprobs"]) == 20 for line in lines for entry in line["logprobs"])
    assert len(runner.complete("hello", num_predict=4, ignore_eos=True)) == 5


def test_a_client_that_pauses_loses_nothing(readers: Callable[..., Reader]) -> None:
    eager, late = readers(num_predict=4000), readers(num_predict=4000)
    expected = eager.lines()
    time.sleep(0.5)
    found = late.lines()
    assert len(tokens_of(expected)) == 4000
    assert found[:-1] == expected[:-1]
    assert found[-1]["done"]
