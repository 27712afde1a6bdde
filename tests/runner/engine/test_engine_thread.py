"""The engine's thread: when it works, and how it ends."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from runner.sequence import Batch
from tests.runner.engine.fakes import Desk
from tests.waiting import until


def test_the_thread_works_when_asked_and_sleeps_otherwise() -> None:
    desk = Desk()
    steps: list[int] = []
    step = desk.engine.step
    desk.engine.step = lambda: (steps.append(1), step())[1]  # type: ignore[method-assign]
    desk.engine.start()
    for _ in range(3):
        asked = desk.complete("a", num_predict=4)
        until(lambda asked=asked: asked.lines and "done" in asked.lines[-1])
    time.sleep(0.05)
    assert len(steps) == 12
    desk.engine.close("enough")
    desk.engine.join()


def test_a_fault_that_nobody_can_be_told_of_ends_the_engine_loudly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk()
    failed = threading.Event()
    monkeypatch.setattr(desk.engine, "_on_failure", failed.set)

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("the books are broken")

    monkeypatch.setattr(desk.model.cache, "advance", broken)
    monkeypatch.setattr(desk.model.cache, "close", broken)
    desk.engine.start()
    desk.complete("a")
    assert failed.wait(60)
    desk.engine.join()
    assert "the engine has failed" in caplog.text


def test_close_ends_everything_with_its_reason_and_later_work_is_told_so() -> None:
    desk = Desk(num_parallel=1, pooling="mean")
    has_begun, may_go_on = threading.Event(), threading.Event()

    def hold(_: Batch) -> None:
        has_begun.set()
        may_go_on.wait(60)

    desk.transformer.before = hold
    desk.engine.start()
    running, waiting, job = desk.complete("a"), desk.complete("a"), desk.embed("a")
    assert has_begun.wait(60)
    desk.engine.close("unloaded")
    may_go_on.set()
    desk.engine.join()
    late = desk.complete("a")
    for asked in (running, waiting, job, late):
        assert asked.lines[-1] == {"error": "unloaded"}
    assert desk.model.cache.num_open == 0
