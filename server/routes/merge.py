"""Several streams as one: the choices of an answer come side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")

MAX_WAITING = 64
"""Items that may wait for a slow reader before the sources are left alone."""


class _End:
    """What a worker leaves behind: ``error`` is None where all its sources ended well."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error


async def merged(sources: Iterable[AsyncGenerator[T, None]], num_at_a_time: int) -> AsyncGenerator[T, None]:
    """The items of all sources as they come, those of each in their order. Sources begin in order.

    At most ``num_at_a_time`` sources run, each on a task of its own. The first error ends all of them and is raised
    here; closing the generator ends all as well, and returns when they are closed.
    """
    items: asyncio.Queue[T | _End] = asyncio.Queue(MAX_WAITING)
    remaining = iter(sources)
    workers = [asyncio.create_task(_work(remaining, items)) for _ in range(num_at_a_time)]
    try:
        num_busy = len(workers)
        while num_busy:
            item = await items.get()
            if not isinstance(item, _End):
                yield item
            elif item.error is None:
                num_busy -= 1
            else:
                raise item.error
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _work(remaining: Iterable[AsyncGenerator[T, None]], items: asyncio.Queue[T | _End]) -> None:
    """Takes one source after the other from what all workers share."""
    try:
        for source in remaining:
            async with aclosing(source):
                async for item in source:
                    await items.put(item)
    except Exception as error:  # raised again where the items are read
        await items.put(_End(error))
    else:
        await items.put(_End())
