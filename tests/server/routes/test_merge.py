"""Several streams as one: order, how many at a time, failures, and that everything is closed in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from server.routes.merge import MAX_WAITING, merged


class Source:
    """``num_items`` numbers from ``start`` on, then the error; knows whether it runs."""

    running = 0
    most = 0

    def __init__(self, start: int, num_items: int, error: Exception | None = None, pause_s: float = 0) -> None:
        self.start = start
        self.num_items = num_items
        self.error = error
        self.pause_s = pause_s
        self.num_made = 0
        self.is_closed = False

    async def items(self) -> AsyncGenerator[int, None]:
        Source.running += 1
        Source.most = max(Source.most, Source.running)
        try:
            for number in range(self.num_items):
                await asyncio.sleep(self.pause_s)
                self.num_made += 1
                yield self.start + number
            if self.error:
                raise self.error
        finally:
            Source.running -= 1
            self.is_closed = True


@pytest.fixture(autouse=True)
def _nothing_runs() -> None:
    Source.running = Source.most = 0


def merge(*sources: Source, num_at_a_time: int = 8) -> AsyncGenerator[int, None]:
    return merged((source.items() for source in sources), num_at_a_time)


async def test_all_items_come_each_source_in_its_order() -> None:
    found = [item async for item in merge(Source(0, 50), Source(100, 50), Source(200, 0), Source(300, 1))]
    assert sorted(found) == [*range(50), *range(100, 150), 300]
    assert [item for item in found if item < 100] == list(range(50))
    assert found[:2] == [0, 100]  # side by side
    assert Source.running == 0


async def test_no_more_run_than_are_allowed() -> None:
    found = [item async for item in merge(*(Source(10 * i, 3) for i in range(9)), num_at_a_time=2)]
    assert len(found) == 27
    assert Source.most == 2


async def test_sources_begin_in_order() -> None:
    assert [item async for item in merge(*(Source(i, 1) for i in range(5)), num_at_a_time=1)] == list(range(5))


async def test_the_first_error_ends_all() -> None:
    endless = Source(0, 10**9, pause_s=0.001)
    with pytest.raises(ValueError, match="broken"):
        [item async for item in merge(endless, Source(0, 3, ValueError("broken")))]
    assert endless.is_closed
    assert Source.running == 0


async def test_leaving_closes_all() -> None:
    sources = [Source(0, 10**9), Source(0, 10**9, pause_s=60)]
    async with aclosing(merge(*sources)) as items:
        async for _ in items:
            break
    assert [source.is_closed for source in sources] == [True, True]


async def test_a_reader_that_is_cancelled_closes_all() -> None:
    sources = [Source(0, 10**9, pause_s=60) for _ in range(3)]

    async def read() -> None:
        async with aclosing(merge(*sources)) as items:
            async for _ in items:
                pass

    task = asyncio.create_task(read())
    async with asyncio.timeout(60):
        while Source.running < 3:
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(source.is_closed for source in sources)


async def test_a_slow_reader_stops_the_sources() -> None:
    source = Source(0, 10**9)
    async with aclosing(merge(source)) as items:
        async for _ in items:
            await asyncio.sleep(0.05)
            break
        assert source.num_made <= MAX_WAITING + 2
    assert source.is_closed
