"""The client against a real process that speaks HTTP and dies when told."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from runner.protocol import CompletionRequest, LoadRequest, Operation, Status, TokenizeRequest
from scheduler.client import RunnerClient
from scheduler.errors import RunnerDiedError, RunnerRequestError, RunnerUnreachableError

REQUEST = CompletionRequest(prompt="x")


async def lines_of(client, request=REQUEST) -> list[bytes]:
    return [line async for line in await client.completion(request)]


async def collect(stream, seen) -> None:
    async for line in stream:
        seen.append(line)


async def test_a_completion_is_its_lines(start_fake):
    client = (await start_fake(tokens=3)).client
    lines = await lines_of(client)
    assert [json.loads(line) for line in lines] == [
        *({"content": f"t{i}", "tokens": [i]} for i in range(3)),
        {"done": True, "done_reason": "stop"},
    ]
    assert not any(b"\n" in line for line in lines)


async def test_many_completions_at_a_time(start_fake):
    client = (await start_fake(tokens=20)).client
    found = await asyncio.gather(*(lines_of(client) for _ in range(30)))
    assert {len(lines) for lines in found} == {21}


async def test_a_refusal_carries_status_and_text_before_any_line(start_fake):
    client = (await start_fake(status=400, error="the input length exceeds the context length")).client
    with pytest.raises(RunnerRequestError, match=r"^the input length exceeds the context length$") as caught:
        await client.completion(REQUEST)
    assert caught.value.status == 400


async def test_a_refusal_of_a_plain_request(start_fake):
    client = (await start_fake()).client
    with pytest.raises(RunnerRequestError, match=r"^no /info$") as caught:
        await client.info()
    assert caught.value.status == 404


@pytest.mark.parametrize("by_kill", [True, False])
async def test_death_in_the_middle_of_a_stream(start_fake, by_kill):
    client = (await start_fake(tokens=9, die_after=3, say=["error: device lost"], by_kill=by_kill)).client
    seen = []
    stream = await client.completion(REQUEST)
    with pytest.raises(RunnerDiedError) as caught:
        await collect(stream, seen)
    assert len(seen) == 3
    signal = "signal: SIGKILL (Killed)\n" if by_kill else ""
    assert str(caught.value) == f"an error was encountered while running the model: {signal}error: device lost"
    assert caught.value.status == 500


async def test_a_connection_that_breaks_while_the_runner_lives(start_fake):
    client = (await start_fake(tokens=9, close_after=2)).client
    with pytest.raises(RunnerDiedError, match=r"the connection was closed"):
        await lines_of(client)


async def test_a_runner_that_is_gone(start_fake):
    started = await start_fake(say_first=["error: it was me"])
    await started.client.health()
    await started.process.stop()
    for ask in (started.client.completion(REQUEST), started.client.health()):
        with pytest.raises(RunnerUnreachableError) as caught:
            await ask
        assert str(caught.value).startswith("model runner has unexpectedly stopped, this may be due to resource ")
        assert str(caught.value).endswith("check ollama server logs for details: signal: SIGTERM (Terminated)\n"
                                          "error: it was me")  # fmt: skip


async def test_aclose_stops_the_generation(start_fake, until):
    client = (await start_fake(tokens=100_000, pace_s=0.001)).client
    stream = await client.completion(REQUEST)
    async for _ in stream:
        break
    await stream.aclose()

    async def cut_off() -> int:
        return int(json.loads(await client._ask("GET", "/seen"))["cut_off"])

    async with asyncio.timeout(60):
        while not await cut_off():
            await asyncio.sleep(0.01)


async def test_a_cancelled_reader_can_close(start_fake):
    client = (await start_fake(tokens=10, pace_s=10)).client
    stream = await client.completion(REQUEST)

    async def read() -> None:
        try:
            async for _ in stream:
                pass
        finally:
            await stream.aclose()

    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_load_health_and_tokens(start_fake):
    client = (await start_fake()).client
    assert (await client.health()).status == Status.LAUNCHED
    response = await client.load(LoadRequest(operation=Operation.COMMIT))
    assert response.success
    assert response.memory.cpu.weights == (10, 10, 10)
    assert (await client.health()).status == Status.READY
    assert (await client.tokenize(TokenizeRequest(text="ab"))).tokens == (97, 98)


async def test_a_late_answer_about_health_is_a_timeout():
    has_left = asyncio.Event()

    async def never(reader, writer):
        await reader.read()
        await hang_up(writer)
        has_left.set()

    async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
        client = RunnerClient(server.sockets[0].getsockname()[1], "token", obituary)
        with pytest.raises(TimeoutError):
            await client.health(timeout_s=0.05)
        await client.aclose()
        await has_left.wait()


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "unexpectedly stopped"),
        (b"", "unexpectedly stopped"),
        (b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n", "^runner error: status 500$"),
        (b"HTTP/1.1 502 X\r\ncontent-length: 4\r\n\r\nbusy", "^busy$"),
        (b'HTTP/1.1 418 X\r\ncontent-length: 13\r\n\r\n{"error":"no"}'[:-1], '^{"error":"no"$'),
    ],
)
async def test_answers_that_are_not_as_agreed(answer, match):
    async def speak(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await hang_up(writer)

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        client = RunnerClient(server.sockets[0].getsockname()[1], "token", obituary)
        with pytest.raises((RunnerUnreachableError, RunnerRequestError), match=match):
            await client.completion(REQUEST)
        await client.aclose()


async def test_lines_split_anywhere_are_put_together():
    body = b'{"content":"\xc3\xa9"}\n{"done":true}\n'

    async def speak(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        for byte in head + b"".join(b"1\r\n%c\r\n" % b for b in body) + b"0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
        await hang_up(writer)

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        client = RunnerClient(server.sockets[0].getsockname()[1], "token", obituary)
        assert await lines_of(client) == body.splitlines()
        await client.aclose()


async def test_a_line_costs_little(start_fake):
    """CPU of this process per line, of a stream that comes as fast as it can. Far below what httpx needs."""
    client = (await start_fake(tokens=3000)).client
    costs = []
    for _ in range(10):
        begin = time.process_time()
        await lines_of(client)
        costs.append((time.process_time() - begin) / 3000)
    assert min(costs) < 150e-6


async def obituary() -> str:
    return ""


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()
