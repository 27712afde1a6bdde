"""Waiting for what a test needs to see, however long the machine takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

Found = TypeVar("Found")


def until(condition: Callable[[], Found], seconds: float = 60.0) -> Found:
    """What the condition gives, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)
    return found


def rests(process: psutil.Process) -> bool:
    """Whether it comes to rest, but for what it does now and then; one that works for ever does not."""
    return any(_busy_s(process, 0.3) < 0.1 for _ in range(20))


def _busy_s(process: psutil.Process, rest_s: float) -> float:
    before = process.cpu_times()
    time.sleep(rest_s)
    after = process.cpu_times()
    return float(after.user + after.system - before.user - before.system)
