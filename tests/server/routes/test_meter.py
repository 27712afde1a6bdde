"""The middleware that counts requests: it changes nothing, holds nothing back, and costs microseconds."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from server.metrics import OTHER, Metrics
from server.routes.meter import Meter

SCOPE = {"type": "http", "method": "GET"}
START = {"type": "http.response.start", "status": 200, "headers": []}
MAX_US_PER_REQUEST = 100.0  # measured: 6; a tenth of a millisecond leaves room for a busy machine
MAX_US_PER_CHUNK = 5.0  # measured: 0.15


def count(metrics: Metrics, **labels: str) -> float | None:
    return metrics.registry.get_sample_value("shale_requests_total", {"route": OTHER, "method": "GET", **labels})


async def receive() -> Any:
    return {"type": "http.disconnect"}


async def test_chunks_pass_at_once_and_unchanged() -> None:
    sent: list[Any] = []
    seen_by_app: list[int] = []
    chunks = [{"type": "http.response.body", "body": bytes([i]), "more_body": i < 2} for i in range(3)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in (START, *chunks):
            await send(message)
            seen_by_app.append(len(sent))

    async def send(message: Any) -> None:
        sent.append(message)

    await Meter(app, Metrics())(dict(SCOPE), receive, send)
    assert all(one is other for one, other in zip(sent, [START, *chunks], strict=True))
    assert seen_by_app == [1, 2, 3, 4]


async def test_the_time_runs_until_the_last_byte() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await asyncio.sleep(0.05)
        scope["route"] = SimpleNamespace(path="/slow")

    async def send(message: Any) -> None: ...

    metrics = Metrics()
    await Meter(app, metrics)(dict(SCOPE), receive, send)
    seconds = metrics.registry.get_sample_value("shale_request_seconds_sum", {"route": "/slow"})
    assert seconds is not None
    assert 0.05 <= seconds < 30


async def test_an_application_that_fails_counts_as_500() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("x")

    metrics = Metrics()
    with pytest.raises(KeyError):
        await Meter(app, metrics)(dict(SCOPE), receive, receive)
    assert count(metrics, status="500") == 1
    assert metrics.registry.get_sample_value("shale_requests_in_progress") == 0


async def test_the_life_of_the_application_is_no_request() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    metrics = Metrics()
    await Meter(app, metrics)({"type": "lifespan"}, receive, receive)
    assert count(metrics, status="500") is None


async def test_it_costs_microseconds() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for _ in range(scope["num_chunks"]):
            await send(START)

    async def send(message: Any) -> None: ...

    async def us(target: Any, num_requests: int, num_chunks: int) -> float:
        begin = time.perf_counter()
        for _ in range(num_requests):
            await target({**SCOPE, "num_chunks": num_chunks}, receive, send)
        return (time.perf_counter() - begin) * 1e6

    async def extra(num_requests: int, num_chunks: int) -> float:
        meter = Meter(app, Metrics())
        with_meter = min([await us(meter, num_requests, num_chunks) for _ in range(7)])
        return with_meter - min([await us(app, num_requests, num_chunks) for _ in range(7)])

    request, chunk = await extra(200, 0) / 200, await extra(1, 20_000) / 20_000
    print(f"{request:.2f} µs a request, {chunk:.3f} µs a chunk")
    assert request < MAX_US_PER_REQUEST
    assert chunk < MAX_US_PER_CHUNK
